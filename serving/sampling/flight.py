"""Rows in flight: their states between steps, on an engine that runs one step at a time."""

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Manifest
from serving.engines import EngineError, Float32, History, StepEngine
from serving.sampling.noise import START, draw_all, draw_each
from serving.sampling.rows import Row, not_finite
from serving.sampling.solvers import COLUMNS, HISTORY

S = COLUMNS.index("s")


@dataclasses.dataclass(eq=False)
class States:
    """Where the rows of one request are, all of which have the same table. done: steps that they have taken.

    sample: float32 [N, C, H, W]. condition: uint8 [N, 1, H, W], or None for a model that has none.
    """

    rows: Sequence[Row]
    sample: Float32
    history: History
    condition: NDArray[np.uint8] | None
    done: int = 0

    @property
    def left(self) -> int:
        return len(self.rows[0].table) - self.done


class Flight:
    """Steps any states together, in one batch; they are copied only when others step than before."""

    def __init__(self, engine: StepEngine, manifest: Manifest) -> None:
        self._engine, self._manifest = engine, manifest
        self._silence = np.zeros((manifest.max_batch, *manifest.sample_shape), np.float32)
        self._batch: list[States] = []
        self._sample: Float32 = self._silence[:0]
        self._history: History = ()
        self._condition: NDArray[np.uint8] | None = None
        self.network_seconds = 0.0

    def begin(self, rows: Sequence[Row]) -> States:
        sample = np.empty((len(rows), *self._manifest.sample_shape), np.float32)
        draw_all([row.seed for row in rows], self._manifest.model, START, list(sample))
        conditions = [row.condition for row in rows if row.condition is not None]
        history = (np.zeros_like(sample),) * HISTORY
        return States(rows, sample, history, np.stack(conditions) if conditions else None)

    def step(self, together: Sequence[States]) -> int:
        """One row of their tables for each; if the engine fails, all states are as before. Returns how many rows."""
        self._gather(together)
        rows = [(row, states.done) for states in together for row in states.rows]
        coeffs = np.stack([row.table[done] for row, done in rows])
        row_noise = self._noise(rows)
        began = time.perf_counter()
        states_next = self._engine.step(self._sample, self._history, row_noise, coeffs, self._condition)
        self.network_seconds += time.perf_counter() - began
        self._sample, prediction = states_next
        self._history = (prediction, *self._history[:-1])
        for states in together:
            states.done += 1
        return len(rows)

    def finish(self, together: Sequence[States]) -> list[dict[str, NDArray] | EngineError]:
        """For each its outputs by name, [N, ...] each, or what is wrong with them."""
        self._gather(together)
        sample = self._sample
        began = time.perf_counter()
        outputs = self._engine.finish(sample, self._condition)
        self.network_seconds += time.perf_counter() - began
        self._batch = []
        cuts = np.cumsum([len(states.rows) for states in together])[:-1]
        parts = {name: np.split(values, cuts) for name, values in outputs.items()}
        answers: list[dict[str, NDArray] | EngineError] = []
        for k, (states, last) in enumerate(zip(together, np.split(sample, cuts), strict=True)):
            own = {name: part[k] for name, part in parts.items()}
            answers.append(not_finite(self._manifest.model, states.rows, last, own) or own)
        return answers

    def _gather(self, together: Sequence[States]) -> None:
        if list(together) == self._batch:
            return
        self._put_back()
        self._sample = np.concatenate([states.sample for states in together])
        self._history = tuple(np.concatenate(past) for past in zip(*(s.history for s in together), strict=True))
        conditions = [states.condition for states in together if states.condition is not None]
        self._condition = np.concatenate(conditions) if conditions else None
        self._batch = list(together)  # last: what there was no memory for must not be put back

    def _put_back(self) -> None:
        """The states of the batch are their own again, and keep nothing of the others alive."""
        first = 0
        for states in self._batch:
            own = slice(first, first + len(states.rows))
            states.sample = self._sample[own].copy()
            states.history = tuple(past[own].copy() for past in self._history)
            first = own.stop
        self._batch = []

    def _noise(self, rows: Sequence[tuple[Row, int]]) -> Float32:
        """Of each row for the step that it takes; nothing where that is deterministic."""
        noisy = [k for k, (row, done) in enumerate(rows) if row.table[done, S]]
        if not noisy:
            return self._silence[: len(rows)]
        values = np.zeros((len(rows), *self._manifest.sample_shape), np.float32)
        seeds, numbers = [rows[k][0].seed for k in noisy], [rows[k][1] + 1 for k in noisy]
        draw_each(seeds, self._manifest.model, numbers, [values[k] for k in noisy])
        return values
