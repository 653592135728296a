"""What a step costs on the engine that is there, measured when it is opened."""

import math
import time
from collections.abc import Callable

import numpy as np

from serving.bundle import Manifest, buckets
from serving.engines import StepEngine
from serving.sampling.scheduler import Cost
from serving.sampling.solvers import COLUMNS, HISTORY

REPEATS = 3
LONG_ENOUGH = 0.3  # seconds of one size after which it is not repeated
PATIENCE = 10.0  # seconds in all; sizes that are left then are taken to cost as much a row as the last


def measure_cost(engine: StepEngine, manifest: Manifest, clock: Callable[[], float] = time.perf_counter) -> Cost:
    """The least of a few repeats, for batches of 1, 2, 4, ... and the largest; of finish where there are no steps.

    An engine with ``buckets`` pads all other batches to the next of them.
    """
    padded = getattr(engine, "buckets", None)
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
        seconds[size] = best
    return Cost(seconds, padded=bool(padded))


def _launch(engine: StepEngine, manifest: Manifest, size: int) -> Callable[[], object]:
    shape = (size, *manifest.sample_shape)
    sample = np.random.default_rng(0).standard_normal(shape, np.float32)
    condition = None if manifest.condition is None else np.zeros((size, *manifest.condition.shape), np.uint8)
    if manifest.schedule is None:
        return lambda: engine.finish(sample, condition)
    zeros, coeffs = np.zeros(shape, np.float32), np.ones((size, len(COLUMNS)), np.float32)
    return lambda: engine.step(sample, (zeros,) * HISTORY, zeros, coeffs, condition)
