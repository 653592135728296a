"""What the CPU is for an engine: how many threads to compute with, and by which instructions."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

CORES = Path("/sys/devices/system/cpu")
GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
CPUINFO = Path("/proc/cpuinfo")
UNLIMITED = 1 << 20  # more than any machine has
# Of those that libraries choose kernels by, the newest that there is of each kind.
INSTRUCTIONS = (
    ("amx_fp16", "amx_bf16", "amx_int8"),
    ("avx512_fp16", "avx512_bf16", "avx512f", "avx2", "avx", "sse4_2"),
)


def threads() -> int:
    """One for each core that this process may use; a container's share of the machine's time counts as so many cores.

    Two threads of one core share the units that multiply, so that the second is of no use.
    """
    return max(1, min(cores(os.sched_getaffinity(0)), quota()))


def cores(processors: Iterable[int]) -> int:
    """How many cores these logical processors are of; as many as there are processors where Linux does not say."""
    return len({_siblings(processor) for processor in processors})


def quota() -> int:
    """How many processors' time this process may use, rounded up: the least that any control group around it has."""
    return min(_limits(), default=UNLIMITED)


def instruction_sets() -> str:
    """Such as "avx2", or "amx_bf16 and avx512_bf16"; "no instructions known" where Linux does not say."""
    try:
        line = next(line for line in CPUINFO.read_text().splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return "no instructions known"
    flags = {*line.partition(":")[2].split()}
    newest = [next((each for each in kind if each in flags), None) for kind in INSTRUCTIONS]
    return " and ".join(filter(None, newest)) or "no instructions known"


def _limits() -> Iterator[int]:
    """Of both versions of control groups, in the process's own and in all above it.

    In a container the own one is the root of what is mounted, whatever its name outside is.
    """
    try:
        lines = OWN_GROUPS.read_text().splitlines()
    except OSError:
        lines = []
    for line in ["0::/", "1:cpu:/", *lines]:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = GROUPS / "cpu" if controllers else GROUPS
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(root) and (found := _limit(folder)):
                yield found


def _limit(folder: Path) -> int | None:
    """Of a control group of version 2 or 1."""
    try:
        if (file := folder / "cpu.max").is_file():
            most, period = file.read_text().split()
        else:
            most, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return -(-int(most) // int(period)) if int(most) > 0 else None
    except (OSError, ValueError):  # no control groups, or "max"
        return None


def _siblings(processor: int) -> str:
    try:
        return (CORES / f"cpu{processor}" / "topology" / "thread_siblings_list").read_text()
    except OSError:
        return str(processor)
