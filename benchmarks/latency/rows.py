"""What is compared: each row of the table is one way to draw the same samples from the same weights."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from numpy.typing import NDArray

P = ParamSpec("P")
R = TypeVar("R")
Arrays = Mapping[str, NDArray[Any]]

YARDSTICK = "pytorch-eager"
ROWS = {
    YARDSTICK: "benchmarks.latency.peers:Eager",
    "pytorch-channels-last": "benchmarks.latency.peers:ChannelsLast",
    "pytorch-compile": "benchmarks.latency.peers:Compiled",
    "onnxruntime-python-loop": "benchmarks.latency.peers:OnnxRuntimeLoop",
    "medgen": "benchmarks.latency.ours:InProcess",
    "medgen-triton": "benchmarks.latency.ours:OverTriton",
}


@dataclass(frozen=True)
class Case:
    """What every row does: ``batch`` samples at a time, with one solver, on ``threads`` threads."""

    model: str
    checkpoint: Path
    repository: Path
    solver: str
    steps: int
    batch: int
    threads: int


class Stopwatch:
    """Adds up the seconds spent in the functions it times."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timing(self, function: Callable[P, R]) -> Callable[P, R]:
        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


class Row(Protocol):
    """One way to sample, ready to go.

    note: what a reader of the table should know, or nothing. networks: what times the networks (medgen's are in one
    graph with the solver's update), or None where that cannot be seen. processes: the ids of those that do the work.
    """

    note: str
    networks: Stopwatch | None

    def sample(self, seeds: list[int]) -> Arrays:
        """The model's outputs, [N, ...] each, for N seeds."""
        ...

    def processes(self) -> list[int]: ...

    def close(self) -> None: ...


class NotPossibleError(Exception):
    """A row cannot do what the case asks for; the message says why."""


def open_row(place: str, case: Case) -> Row:
    """The row at MODULE:NAME. Nothing else is imported: a row's memory is its own."""
    module, _, attribute = place.partition(":")
    row: Row = getattr(import_module(module), attribute)(case)
    return row
