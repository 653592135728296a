"""How many threads an engine on the CPU computes with."""

import os
from collections.abc import Iterable
from pathlib import Path

CORES = Path("/sys/devices/system/cpu")
QUOTA = Path("/sys/fs/cgroup/cpu.max")


def threads() -> int:
    """One for each core that this process may use; a container's share of the machine's time counts as so many cores.

    Two threads of one core share the units that multiply, so that the second is of no use.
    """
    return max(1, min(cores(os.sched_getaffinity(0)), quota()))


def cores(processors: Iterable[int]) -> int:
    """How many cores these logical processors are of; as many as there are processors where Linux does not say."""
    return len({_siblings(processor) for processor in processors})


def quota() -> int:
    """How many processors' time a container may use, rounded up; without a limit more than any machine has."""
    try:
        most, period = QUOTA.read_text().split()
        return -(-int(most) // int(period))
    except (OSError, ValueError):  # no control groups, or "max"
        return 1 << 20


def _siblings(processor: int) -> str:
    try:
        return (CORES / f"cpu{processor}" / "topology" / "thread_siblings_list").read_text()
    except OSError:
        return str(processor)
