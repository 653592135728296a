"""Processes, as /proc shows them."""

import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

POLL_SECONDS = 0.2


# Becomes the program in its arguments, to which the kernel will send SIGTERM (prctl's PR_SET_PDEATHSIG is 1) when the
# process that is the first argument has ended, in whatever way.
_TIED_TO_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class Process(NamedTuple):
    """A process; its state is one letter, Z for one that has ended and that nobody has asked about yet."""

    pid: int
    parent: int
    group: int
    state: str


def tied_to_us(program: str) -> list[str]:
    """What to start instead of a program, followed by its arguments, so that it ends when this process does."""
    return [sys.executable, "-I", "-c", _TIED_TO_PARENT, str(os.getpid()), program]


def processes() -> Iterator[Process]:
    """Every process of this machine."""
    return _read(file.parent.name for file in Path("/proc").glob("[0-9]*/stat"))


def children(pid: int) -> Iterator[Process]:
    """Those that a process, by whichever of its threads, has started and not asked about yet."""
    lists = list(Path(f"/proc/{pid}/task").glob("*/children"))
    if not lists:  # it has ended, or the kernel was built without them
        return (process for process in processes() if process.parent == pid)
    pids: list[str] = []
    for file in lists:
        with suppress(OSError):  # the thread has ended
            pids += file.read_text().split()
    return _read(pids)


def _read(pids: Iterable[str]) -> Iterator[Process]:
    for pid in pids:
        with suppress(OSError):  # ended meanwhile
            state, parent, group = _fields(Path(f"/proc/{pid}/stat"))[:3]
            yield Process(int(pid), int(parent), int(group), state)


def command(pid: int) -> list[str]:
    """The arguments that a process was started with; none if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []


def end_group(group: int, grace: float) -> None:
    """Kills the processes of a group that have not ended by themselves after `grace` seconds."""
    deadline = time.monotonic() + grace
    while any(process.group == group and process.state != "Z" for process in processes()):
        if time.monotonic() >= deadline:
            os.killpg(group, signal.SIGKILL)
            return
        time.sleep(POLL_SECONDS)


def hide(pid: int, secret: str) -> None:
    """Overwrites a secret among the arguments of a running process of ours: every user of a machine can list those.

    Raises OSError where that is not allowed.
    """
    first, last = map(int, _fields(Path(f"/proc/{pid}/stat"))[45:47])
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(first)
        arguments = memory.read(last - first)
        memory.seek(first)
        memory.write(arguments.replace(secret.encode(), b"*" * len(secret)))


def _fields(stat: Path) -> list[str]:
    """What follows the program's name, which may itself hold spaces and brackets."""
    return stat.read_text().rpartition(")")[2].split()
