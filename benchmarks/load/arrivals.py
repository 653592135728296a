"""Open-loop requests: when they come, and what they ask for, all from one seed."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Kind(NamedTuple):
    """A class of requests: its steps, and its share of all requests."""

    steps: int
    share: float


class Arrival(NamedTuple):
    """second: after the start. rows: samples wanted. seed: of the first of them."""

    second: float
    rows: int
    steps: int
    seed: int


MOST_ROWS = 4
MIX = (Kind(8, 0.7), Kind(50, 0.3))


def mean_row_steps(mix: Sequence[Kind] = MIX, most_rows: int = MOST_ROWS) -> float:
    """Rows times steps of a request, on average."""
    return (1 + most_rows) / 2 * sum(kind.steps * kind.share for kind in mix)


def poisson(rate: float, seed: int, count: int, mix: Sequence[Kind] = MIX, most_rows: int = MOST_ROWS) -> list[Arrival]:
    """``count`` requests that arrive independently of each other, ``rate`` per second; 1 to ``most_rows`` rows each."""
    random = np.random.default_rng(seed)
    seconds = np.cumsum(random.exponential(1 / rate, count))
    rows = random.integers(1, most_rows + 1, count)
    steps = random.choice([kind.steps for kind in mix], count, p=[kind.share for kind in mix])
    seeds = random.integers(0, 2**62, count)
    return [Arrival(*one) for one in zip(seconds.tolist(), rows.tolist(), steps.tolist(), seeds.tolist(), strict=True)]
