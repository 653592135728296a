"""What a step costs on the engine that is there, measured when it is opened."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Manifest, buckets
from serving.engines import Float32, StepEngine, Trajectory
from serving.sampling.scheduler import Cost
from serving.sampling.solvers import COLUMNS, HISTORY, longest_table

REPEATS = 3
LONG_ENOUGH = 0.3  # seconds of one size after which it is not repeated
STEPS = 16  # of a trajectory
PATIENCE = 10.0  # seconds in all; sizes that are left then are taken to cost as much a row as the last


def measure_cost(engine: StepEngine, manifest: Manifest, clock: Callable[[], float] = time.perf_counter) -> Cost:
    """The least of a few repeats, for batches of 1, 2, 4, ... and the largest; of finish where there are no steps.

    Of an engine that is at its best with whole trajectories it is a step's share of a short one.
    """
    padded = engine.buckets
    began = clock()
    seconds: dict[int, float] = {}
    for size in padded or buckets(manifest.max_batch):
        if seconds and clock() - began > PATIENCE:
            largest = max(seconds)
            seconds[size] = seconds[largest] * size / largest
            continue
        run = _launch(engine, manifest, size)
        run()  # the first of a size prepares the engine for it
        best, spent = math.inf, 0.0
        for _ in range(REPEATS):
            start = clock()
            run()
            best, spent = min(best, clock() - start), spent + clock() - start
            if spent > LONG_ENOUGH:
                break
        seconds[size] = best / (1 if engine.joins else max(1, _steps(manifest)))
    return Cost(seconds, padded=bool(padded))


def _launch(engine: StepEngine, manifest: Manifest, size: int) -> Callable[[], object]:
    shape = (size, *manifest.sample_shape)
    sample = np.random.default_rng(0).standard_normal(shape, np.float32)
    wanted = manifest.condition
    condition = None if wanted is None else np.zeros((size, *wanted.shape), wanted.dtype)
    if not engine.joins:
        return _trajectory(engine, manifest, sample, condition)
    if manifest.schedule is None:
        return lambda: engine.finish(sample, condition)
    zeros, coeffs = np.zeros(shape, np.float32), np.ones((size, len(COLUMNS)), np.float32)
    return lambda: engine.step(sample, (zeros,) * HISTORY, zeros, coeffs, condition)


def _steps(manifest: Manifest) -> int:
    return min(STEPS, longest_table(manifest.schedule)) if manifest.schedule else 0


def _trajectory(
    engine: StepEngine, manifest: Manifest, start: Float32, condition: NDArray[Any] | None
) -> Callable[[], object]:
    steps, silence = _steps(manifest), np.zeros_like(start)
    coeffs = np.ones((steps, len(start), len(COLUMNS)), np.float32)
    lengths = np.full(len(start), steps)
    return lambda: engine.generate(Trajectory(start, lengths, coeffs, lambda number: silence, condition))
