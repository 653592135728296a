"""Whether a sample's bits depend on the batch that it is in."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.parity import random_condition, stacked_noise, table_of
from serving.engines import StepEngine
from serving.sampling.solvers import HISTORY
from training.family import Family

BATCHES = range(2, 17)  # compared with their rows alone
SAMPLES = 64  # that are run alone; a larger batch has them more than once


def rows_are_independent(family: Family, engine: StepEngine, most: int) -> bool:
    """Whether the engine gives each row, to the bit, what it gives the row alone.

    Asked of a step, where there are any, and the finish, in ``BATCHES`` and the largest there may be, each in an order
    and company of its own.
    """
    count = min(most, SAMPLES)
    table = table_of(family, family.preset.default_solver, family.preset.default_steps)
    sample, *history, noise = (stacked_noise(family, number, count) for number in range(HISTORY + 2))
    coeffs = table[np.linspace(0, len(table) - 1, count).astype(int)].astype(np.float32) if len(table) else None
    condition = random_condition(family, count)

    def run(rows: NDArray[np.intp]) -> list[NDArray[Any]]:
        masks = None if condition is None else condition[rows]
        if coeffs is None:
            return [*engine.finish(sample[rows], masks).values()]
        past = tuple(state[rows] for state in history)
        outputs = engine.step(sample[rows], past, noise[rows], coeffs[rows], masks)
        return [*outputs, *engine.finish(outputs[0], masks).values()]

    alone = [np.concatenate(parts) for parts in zip(*(run(np.array([row])) for row in range(count)), strict=True)]
    random = np.random.default_rng(0)
    sizes = sorted({*BATCHES, most})
    orders = [random.permutation(np.arange(max(size, count)) % count)[:size] for size in sizes if size <= most]
    return all(
        got.tobytes() == expected[rows].tobytes()
        for rows in orders
        for got, expected in zip(run(rows), alone, strict=True)
    )
