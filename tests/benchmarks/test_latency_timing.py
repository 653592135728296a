"""The figures, from rounds whose times are known."""

from dataclasses import replace

import numpy as np
import pytest
from latency_rows import CASE

from benchmarks.latency.contenders import PAPER, ROWS, YARDSTICK
from benchmarks.latency.processes import Round
from benchmarks.latency.timing import figures, measure


def rounds(seconds, share=0.5, image=0.0, lesions=0):
    mask = np.zeros((4, 1, 32, 32), np.uint8)
    mask.ravel()[:lesions] = 1
    outputs = {"mask": mask, "image": np.full(mask.shape, image, np.float32)}
    return [Round(each, None if share is None else share * each, outputs, peak_mib=10.0 + each) for each in seconds]


def of(measured, yardstick, name="row"):
    return figures(name, CASE, measured, yardstick, note="")


def test_seconds_are_per_sample_and_ratios_are_taken_within_a_round():
    # A slow second round hits both: the ratio of medians would be 3, that of most rounds is 2.
    row = of(rounds([1.0, 4.0, 2.0]), rounds([2.0, 8.0, 6.0]))
    assert row.seconds_per_sample == 0.5
    assert row.p95 == pytest.approx((2 + 0.9 * 2) / 4)
    assert row.ratio_to_eager == 2.0
    assert row.network_share == pytest.approx(0.5)
    assert row.peak_memory_mib == 12.0
    assert row.max_difference == row.label_difference == 0


def test_a_network_share_that_nobody_can_see_is_left_out():
    assert of(rounds([1.0], share=None), rounds([1.0])).network_share is None


@pytest.mark.parametrize("different", [{"image": 0.01}, {"image": np.nan}, {"lesions": 5}])
def test_a_row_that_drew_something_else_has_no_ratio(different):
    row = of(rounds([1.0], **different), rounds([2.0]))
    assert row.void
    assert row.ratio_to_eager is None


@pytest.mark.parametrize("different", [{"image": 0.003}, {"lesions": 4}])
def test_rounding_is_no_difference(different):
    row = of(rounds([1.0], **different), rounds([2.0]))
    assert not row.void
    assert row.ratio_to_eager == 2.0
    assert row.max_difference == pytest.approx(different.get("image", 0) / 2)
    assert row.label_difference == different.get("lesions", 0) / 4096


def test_a_descent_is_judged_by_its_first_steps():
    """Where a gradient jumps two right ways part, and one that is wrong from the start is no better for that."""
    (same,), (other,) = rounds([1.0]), rounds([1.0], image=0.5)
    parted = figures("row", CASE, [other], [same], "", {"row": same, YARDSTICK: same})
    assert (parted.void, parted.ratio_to_eager) == (False, 1.0)
    assert figures("row", CASE, [same], [same], "", {"row": other, YARDSTICK: same}).void


def test_the_paper_s_sampler_draws_one_batch_which_nothing_is_compared_with():
    row = of(rounds([60.0], image=1.0), rounds([2.0, 3.0, 40.0]), PAPER)
    assert not row.void
    assert row.max_difference is None
    assert row.ratio_to_eager == 3 / 60
    assert (row.rounds, row.p95) == (1, None)


def test_a_round_is_of_all_rows_that_are_not_done(monkeypatch):
    for name in (YARDSTICK, "medgen", PAPER):
        monkeypatch.setitem(ROWS, name, "latency_rows:Plain")
    rows = measure(replace(CASE, outputs=CASE.outputs[1:]), [YARDSTICK, "medgen", PAPER], rounds=3)
    assert [row.rounds for row in rows] == [3, 3, 1]
    assert [row.max_difference for row in rows] == [0, 0, None]
