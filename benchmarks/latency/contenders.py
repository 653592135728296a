"""What is compared: each row of the table is one way to draw the same samples from the same weights."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Condition, Manifest, Output

P = ParamSpec("P")
R = TypeVar("R")
Arrays = Mapping[str, NDArray[Any]]

YARDSTICK = "pytorch-eager"
PAPER = "paper-sampler"
SGD, ADAM = "pytorch-autograd-sgd", "pytorch-autograd-adam"
OTHERS = (PAPER, SGD, ADAM)  # whose samples are others by nature, and so are not compared
ROWS = {
    YARDSTICK: "benchmarks.latency.without_medgen:Eager",
    "pytorch-channels-last": "benchmarks.latency.without_medgen:ChannelsLast",
    "pytorch-compile": "benchmarks.latency.without_medgen:Compiled",
    "pytorch-bf16": "benchmarks.latency.without_medgen:Bf16",
    "pytorch-compile-bf16": "benchmarks.latency.without_medgen:CompiledBf16",
    "onnxruntime-python-loop": "benchmarks.latency.without_medgen:OnnxRuntimeLoop",
    SGD: "benchmarks.latency.autograd:Sgd",
    ADAM: "benchmarks.latency.autograd:Adam",
    "medgen": "benchmarks.latency.with_medgen:InProcess",
    "medgen-triton": "benchmarks.latency.with_medgen:OverTriton",
    "medgen-onnxruntime": "benchmarks.latency.with_medgen:OnOnnxRuntime",
    "medgen-openvino": "benchmarks.latency.with_medgen:OnOpenVino",
    "medgen-openvino-bf16": "benchmarks.latency.with_medgen:OnOpenVinoInBf16",
    PAPER: "benchmarks.latency.without_medgen:PaperSampler",
}
BUNDLES_OWN = ("medgen", "medgen-triton")  # rows that compute in what the bundles are built for
WARM_UP = 2


def batches(name: str, rounds: int) -> tuple[int, int]:
    """How many batches a row draws to get warm, and how many that count.

    The paper's sampler takes minutes where the others take seconds, and its first step is one of hundreds.
    """
    return (0, 1) if name == PAPER else (WARM_UP, rounds)


@dataclass(frozen=True)
class Stage:
    """One model of a case: a stage of a chain, or the model alone; one without steps has no solver.

    bundle: its digest, and manifest what it says. inputs, outputs: the model's own names of its condition and outputs
    -> those in the case.
    """

    model: str
    checkpoint: Path
    bundle: str
    manifest: Manifest
    solver: str | None
    steps: int
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.model} {self.solver} {self.steps} steps" if self.solver else f"{self.model} in one pass"


@dataclass(frozen=True)
class Case:
    """What every row does: ``batch`` samples at a time, with the same solvers, on ``threads`` threads.

    condition: what a client gives (``benchmarks.latency.masks``), of pictures those, if not discs, and parameters: what
    it asks for, where the rows draw with medgen. outputs: what all stages draw.
    """

    model: str
    stages: tuple[Stage, ...]
    condition: Condition | None
    parameters: Mapping[str, Any]
    outputs: tuple[Output, ...]
    repository: Path
    batch: int
    threads: int
    pictures: NDArray[np.float32] | None = None


def precision_of(name: str, case: Case) -> str:
    """What a row computes in: "fp32", or what rounds most."""
    if name in BUNDLES_OWN:
        precisions = [stage.manifest.precision for stage in case.stages]
        return max(precisions, key=["fp32", "tf32", "fp16", "bf16"].index, default="fp32")
    return "bf16" if name.endswith("-bf16") else "fp32"


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
        """The case's outputs, [N, ...] each, for N seeds."""
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
