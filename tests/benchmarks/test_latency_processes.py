"""Each row runs in a process of its own, whose memory and failures are its own."""

import numpy as np
import pytest
from latency_rows import BALLAST_MIB, CASE, NETWORK_SECONDS

from benchmarks.latency.processes import RowError, Worker


def worker(row: str) -> Worker:
    return Worker(f"latency_rows:{row}", CASE)


def test_a_round_brings_back_what_the_row_drew_and_how_long_it_took():
    with worker("Plain") as plain:
        rounds = [plain.round([3, 4]) for _ in range(2)]
        assert plain.note == "as plain as can be"
    for each in rounds:
        np.testing.assert_array_equal(each.outputs["image"], [3, 4])
        assert NETWORK_SECONDS <= each.network_seconds <= each.seconds


def test_the_peak_of_memory_is_the_row_s_own():
    here = np.ones(BALLAST_MIB << 20, np.uint8)  # what this process holds is none of the row's business
    with worker("Plain") as plain, worker("Large") as large:
        difference = large.round([0]).peak_mib - plain.round([0]).peak_mib
        assert BALLAST_MIB * 0.9 < difference < BALLAST_MIB * 1.1
        assert plain.round([0]).peak_mib < here.nbytes / 2**20 + 60


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("Impossible", "^nobody can$"),
        ("Broken", "^ValueError: out of seeds$"),
        ("Dying", "^its process ended with code 9$"),
        ("Missing", "^AttributeError: .*Missing"),
    ],
)
def test_a_row_that_fails_says_why(row, reason):
    with pytest.raises(RowError, match=reason), worker(row) as failing:
        failing.round([0])
