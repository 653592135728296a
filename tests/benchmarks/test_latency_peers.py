"""The loops around diffusers' schedulers draw the samples that medgen draws."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.latency.ours import InProcess
from benchmarks.latency.peers import ChannelsLast, Eager
from benchmarks.latency.rows import NotPossibleError

SEEDS = [5, 2**62]


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(np.abs(one[name] - other[name].astype(float)).max() for name in one)


@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpmpp_2m", "ipndm"])
def test_eager_draws_what_medgen_draws(case, solver):
    case = replace(case, solver=solver)
    eager = Eager(case)
    assert bool(eager.note) == (solver == "ipndm")
    assert largest_difference(eager.sample(SEEDS), InProcess(case).sample(SEEDS)) < 1e-4


def test_a_loop_without_its_scheduler_is_refused(case):
    with pytest.raises(NotPossibleError, match="ipndm"):
        ChannelsLast(replace(case, solver="ipndm"))


def test_the_networks_are_all_that_is_timed(case):
    for row in (Eager(case), InProcess(case)):
        assert row.networks.seconds == 0
        row.sample(SEEDS)
        assert row.networks.seconds > 0
