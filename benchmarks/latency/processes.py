"""A process for each row: its peak memory is its own, and no row runs on what another left behind."""

import re
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.latency.contenders import Arrays, Case, NotPossibleError, open_row

PATIENCE = 30.0  # seconds for a row to end; Triton takes some


class RowError(Exception):
    """A row cannot be measured; the message says why."""


class RowNotPossibleError(RowError):
    """A row cannot do what the case asks for."""


@dataclass(frozen=True, eq=False)
class Round:
    """One batch: how long it took, how long its networks took (None if unknown), and what came out.

    peak_mib: the peak resident memory, up to now, of the processes that do the row's work.
    """

    seconds: float
    network_seconds: float | None
    outputs: Arrays
    peak_mib: float


class Worker:
    """The row at ``place`` (MODULE:NAME) in its own process, idle between rounds.

    Raises RowError where the row cannot be opened; so does ``round`` where it cannot be run.
    """

    def __init__(self, place: str, case: Case) -> None:
        context = get_context("spawn")  # a forked process would have this one's memory, and its threads' locks
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, place, case), name=place)
        self._process.start()
        theirs.close()
        try:
            note = self._receive()
        except RowError:
            self.close()
            raise
        assert isinstance(note, str)
        self.note = note

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def round(self, seeds: list[int]) -> Round:
        """Draw one batch."""
        with suppress(BrokenPipeError):
            self._connection.send(seeds)
        answer = self._receive()
        assert isinstance(answer, Round)
        return answer

    def close(self) -> None:
        self._connection.close()
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _receive(self) -> str | Round:
        try:
            answer: str | Round | RowError = self._connection.recv()
        except EOFError:
            self._process.join()
            answer = RowError(f"its process ended with code {self._process.exitcode}")
        if isinstance(answer, RowError):
            raise answer
        return answer


def serve(connection: Connection, place: str, case: Case) -> None:
    """The other process: opens the row, says so, and draws a batch for every list of seeds until there are no more."""
    with suppress(EOFError, KeyboardInterrupt):
        try:
            with closing(open_row(place, case)) as row:
                connection.send(row.note)
                while True:
                    seeds = connection.recv()
                    networks_before = row.networks.seconds if row.networks else 0.0
                    began = time.perf_counter()
                    outputs = row.sample(seeds)
                    seconds = time.perf_counter() - began
                    network_seconds = row.networks.seconds - networks_before if row.networks else None
                    peak = sum(map(peak_mib, row.processes()))
                    connection.send(Round(seconds, network_seconds, dict(outputs), peak))
        except EOFError:
            raise
        except NotPossibleError as error:
            connection.send(RowNotPossibleError(str(error)))
        except Exception as error:
            (reason, *_) = str(error).strip().splitlines() or [""]
            connection.send(RowError(f"{type(error).__name__}: {reason}"))


def peak_mib(process: int) -> float:
    """Linux's high-water mark of a process's resident memory.

    Not getrusage's: that one is handed on to a process by the one that started it.
    """
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0
