"""Rows in flight on an engine that is at its best with whole trajectories: all go from their start to their outputs."""

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Manifest
from serving.engines import Engine, EngineError
from serving.sampling.rows import Row, not_finite
from serving.sampling.trajectory import trajectory


@dataclasses.dataclass(eq=False)
class Pending:
    """The rows of one request, all of which have the same table. left: steps, all of them or none."""

    rows: Sequence[Row]
    left: int


class WholeFlight:
    """As ``Flight``, for a step that is as long as the longest trajectory in it: nobody joins or leaves meanwhile."""

    def __init__(self, engine: Engine, manifest: Manifest) -> None:
        self._engine, self._manifest = engine, manifest
        self.network_seconds = 0.0

    def begin(self, rows: Sequence[Row]) -> Pending:
        return Pending(rows, len(rows[0].table))

    def step(self, together: Sequence[Pending]) -> int:
        """The work is done by ``finish``."""
        taken = sum(len(pending.rows) * pending.left for pending in together)
        for pending in together:
            pending.left = 0
        return taken

    def finish(self, together: Sequence[Pending]) -> list[dict[str, NDArray] | EngineError]:
        """For each its outputs by name, [N, ...] each, or what is wrong with them."""
        rows = [row for pending in together for row in pending.rows]
        longest_first = sorted(range(len(rows)), key=lambda k: -len(rows[k].table))
        back = np.argsort(longest_first)
        work = trajectory(self._manifest, [rows[k] for k in longest_first])
        began = time.perf_counter()
        last, outputs = self._engine.generate(work)
        self.network_seconds += time.perf_counter() - began
        answers: list[dict[str, NDArray] | EngineError] = []
        first = 0
        for pending in together:
            own = back[first : first + len(pending.rows)]
            first += len(pending.rows)
            arrays = {name: values[own] for name, values in outputs.items()}
            answers.append(not_finite(self._manifest.model, pending.rows, last[own], arrays) or arrays)
        return answers
