import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serving.sampling import noise


def drawn(seed, stage, number, count=4096):
    out = np.empty(count, np.float32)
    noise.draw(seed, stage, number, out=out)
    return out


def test_the_stream_is_the_one_that_samples_were_promised_from():
    """If this fails, every sample of every bundle changes: numpy's stream, or the way it is keyed, is another."""
    assert drawn(7, "pig", 0, 4).tolist() == [
        -1.0107758045196533,
        0.6238280534744263,
        0.001078880624845624,
        -1.24454665184021,
    ]
    digest = hashlib.sha256(drawn(123, "tiny", 5, 16 * 64 * 64).astype("<f4").tobytes()).hexdigest()
    assert digest == "dc995574bda00b049354f3be7c1f04e956b72b0e18be61d2612216db3374a00f"


@pytest.mark.parametrize("other", [(8, "pig", 3), (7, "cmr_mask", 3), (7, "pig", 4), (7 + 2**32, "pig", 3)])
def test_streams_and_draws_share_nothing(other):
    """Not even shifted: draws that took their blocks from one run of the counter would overlap."""
    one, two = drawn(7, "pig", 3), drawn(*other)
    assert not np.isin(one, two).reshape(-1, 4).all(axis=1).any()
    assert abs(np.corrcoef(one, two)[0, 1]) < 5 / np.sqrt(len(one))


def test_a_draw_depends_on_no_earlier_one():
    alone = drawn(7, "pig", 9)
    for number in range(9):
        drawn(7, "pig", number)
    assert np.array_equal(drawn(7, "pig", 9), alone)


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_it_is_standard_normal(seed):
    values = drawn(seed, "pig", 0, 1_000_000).astype(np.float64)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((values**power).mean() - moment) < 5 * np.sqrt(variance / len(values))


@pytest.mark.parametrize(("seed", "number"), [(1.5, 0), (1, 0.5), ("1", 0), (-1, 0), (2**63, 0), (1, -1)])
def test_no_number_is_cut_to_fit(seed, number):
    with pytest.raises((TypeError, ValueError)):
        drawn(seed, "pig", number)


def test_samples_are_drawn_at_the_same_time_and_with_the_same_bits(monkeypatch):
    one_by_one = [drawn(seed, "pig", 4) for seed in (3, 2**62, 5)]
    both, draw = threading.Barrier(2), noise.draw

    def meet(seed, *arguments):
        if seed != 5:
            both.wait(timeout=10)
        draw(seed, *arguments)

    monkeypatch.setattr(noise, "draw", meet)
    with ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(noise, "_threads", lambda: pool)
        outs = np.empty((3, 4096), np.float32)
        noise.draw_all([3, 2**62, 5], "pig", 4, outs)
        assert np.array_equal(outs, one_by_one)
