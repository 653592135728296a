"""An engine whose rows depend on the size of their batch, given batches of a few sizes alone."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.engines import Float32, History, StepEngine


class PaddedEngine(StepEngine):
    """Pads each batch to the next of ``buckets`` by repeating its last row, and leaves out what comes of that."""

    def __init__(self, engine: StepEngine, buckets: tuple[int, ...]) -> None:
        self._engine, self.buckets, self.machine = engine, buckets, engine.machine

    def step(
        self,
        sample: Float32,
        history: History,
        noise: Float32,
        coeffs: Float32,
        condition: NDArray[Any] | None = None,
    ) -> tuple[Float32, Float32]:
        rows = self._padded_rows(len(sample))
        masks = None if condition is None else condition[rows]
        past = tuple(state[rows] for state in history)
        sample_next, prediction = self._engine.step(sample[rows], past, noise[rows], coeffs[rows], masks)
        return sample_next[: len(sample)], prediction[: len(sample)]

    def finish(self, sample: Float32, condition: NDArray[Any] | None = None) -> dict[str, NDArray]:
        rows = self._padded_rows(len(sample))
        masks = None if condition is None else condition[rows]
        return {name: values[: len(sample)] for name, values in self._engine.finish(sample[rows], masks).items()}

    def _padded_rows(self, count: int) -> NDArray[np.intp]:
        assert self.buckets is not None
        bucket = min(size for size in self.buckets if size >= count)
        return np.minimum(np.arange(bucket), count - 1)
