"""An engine whose rows depend on their batch, given one at a time: on a CPU a batch costs hardly less than its rows."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.engines import Float32, History, StepEngine


class OneByOneEngine(StepEngine):
    """Has a row of a batch computed as if it were alone: in no company, and in no place but the first."""

    def __init__(self, engine: StepEngine) -> None:
        self._engine = engine

    def step(
        self,
        sample: Float32,
        history: History,
        noise: Float32,
        coeffs: Float32,
        condition: NDArray[Any] | None = None,
    ) -> tuple[Float32, Float32]:
        past = zip(*(alone(state) for state in history), strict=True)
        rows = zip(alone(sample), past, alone(noise), alone(coeffs), each_of(condition, len(sample)), strict=True)
        sample_next, prediction = zip(*(self._engine.step(*row) for row in rows), strict=True)
        return np.concatenate(sample_next), np.concatenate(prediction)

    def finish(self, sample: Float32, condition: NDArray[Any] | None = None) -> dict[str, NDArray]:
        rows = zip(alone(sample), each_of(condition, len(sample)), strict=True)
        ends = [self._engine.finish(*row) for row in rows]
        return {name: np.concatenate([end[name] for end in ends]) for name in ends[0]}


def alone(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Each row, [1, ...], copied: some sums begin where memory is aligned, as a copy is, and a row of a batch need not
    be."""
    return (values[row : row + 1].copy() for row in range(len(values)))


def each_of(condition: NDArray[Any] | None, rows: int) -> Iterator[NDArray[Any] | None]:
    return iter([None] * rows) if condition is None else alone(condition)
