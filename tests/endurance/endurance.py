"""How long the tests of endurance take: seconds in CI, minutes where MEDGEN_ENDURANCE is "long"."""

import os
import time
from collections.abc import Iterator

LONG = os.environ.get("MEDGEN_ENDURANCE") == "long"
AT_MOST = 360.0  # seconds that one test repeats itself, on a machine that is slow


def repetitions(count: int) -> Iterator[int]:
    """0, 1, 2, ... as many as asked for, or as there is time for, of which at least one."""
    deadline = time.monotonic() + AT_MOST
    for number in range(count):
        yield number
        if time.monotonic() > deadline:
            return
