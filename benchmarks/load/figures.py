"""What came out of one load, served in one way."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.load.arrivals import Arrival


@dataclass(frozen=True)
class OfClass:
    """The requests of one number of steps; seconds from when they were due to the answer, of those that have one."""

    steps: int
    requests: int
    refused: int
    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True)
class Figures:
    """load: the share of the capacity that was asked for. network_share: of the time in which there was work."""

    way: str
    load: float
    samples_per_second: float
    steps_per_second: float
    classes: tuple[OfClass, ...]
    refused: int
    memory_mib: tuple[float, float] | None = None
    network_share: float | None = None
    lag: float | None = None


def summed_up(
    way: str, load: float, arrivals: Sequence[Arrival], seconds: Sequence[float | None], until: float
) -> Figures:
    """seconds: of each arrival until its answer, None for one that was refused. until: when the last was answered."""
    served = [arrival for arrival, latency in zip(arrivals, seconds, strict=True) if latency is not None]
    classes = []
    for steps in sorted({arrival.steps for arrival in arrivals}):
        own = [latency for arrival, latency in zip(arrivals, seconds, strict=True) if arrival.steps == steps]
        answered = [latency for latency in own if latency is not None]
        points = np.percentile(answered, [50, 95, 99]).tolist() if answered else [None] * 3
        classes.append(OfClass(steps, len(own), len(own) - len(answered), *points))
    return Figures(
        way,
        load,
        samples_per_second=sum(arrival.rows for arrival in served) / until,
        steps_per_second=sum(arrival.rows * arrival.steps for arrival in served) / until,
        classes=tuple(classes),
        refused=len(arrivals) - len(served),
    )
