"""Whether samples are copies: how near the training set they come, beside real images that were not trained on.

The cardiac paper's protocol (L2 and LPIPS to the nearest, NNDR), against the training set, and with held-out real
images as the measure of how near is too near.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.statistics import Array, Groups, Interval, auc_of, one_sided, share_of

SUSPECT = 0.05  # share of held-out images that are nearer than the threshold, by its definition
PAPER_NNDR, PAPER_LPIPS = 0.6, 0.05  # the cardiac paper's fixed limits
BLOCK = 256


@dataclass(frozen=True)
class Nearest:
    """Of each of N pictures: the row of the nearest training picture, its distance, and that of the second nearest."""

    row: NDArray[np.int64]
    first: Array
    second: Array

    @property
    def ratio(self) -> Array:
        """NNDR: near 0 for a copy, near 1 for what lies between several; 1 where two are equally near."""
        return np.divide(self.first, self.second, out=np.ones_like(self.first), where=self.second > 0)


def nearest(pictures: NDArray[np.floating], training: NDArray[np.floating]) -> Nearest:
    """By the Euclidean distance of rows [N, D] to rows [M, D], M at least 2."""
    rows, first, second = [], [], []
    squares = np.square(training, dtype=np.float64).sum(1)
    for start in range(0, len(pictures), BLOCK):
        block = pictures[start : start + BLOCK].astype(np.float64)
        distances = squares - 2 * block @ training.T.astype(np.float64)
        two = np.argpartition(distances, 1, axis=1)[:, :2]
        for picture, both in zip(block, two, strict=True):  # exactly, as a difference of large numbers is not
            exact = np.linalg.norm(training[both] - picture, axis=1)
            order = exact.argsort()
            rows.append(int(both[order[0]]))
            first.append(float(exact[order[0]]))
            second.append(float(exact[order[1]]))
    return Nearest(np.array(rows), np.array(first), np.array(second))


@dataclass(frozen=True)
class Closeness:
    """Samples beside held-out images, both to the training set.

    limit: the distance that 5 % of held-out images are within. nearer: the share of samples within it, 5 % if they are
    no nearer. auc: how likely a sample is nearer than a held-out image, 0.5 if it is as likely as not, 1 for copies.
    """

    limit: float
    nearer: Interval
    ratio_limit: float
    lower_ratio: Interval
    auc: Interval
    ratio_auc: Interval
    distance: Interval
    held_out_distance: Interval
    ratio: Interval
    held_out_ratio: Interval


def closeness(samples: Nearest, held_out: Nearest, groups: Groups, others: Groups, seed: int = 0) -> Closeness:
    """groups: whose the samples are, of those under a patient's masks the patient's; others: the held-out images'.
    Intervals are over them."""
    limit, ratio_limit = (float(np.quantile(values, SUSPECT)) for values in (held_out.first, held_out.ratio))
    return Closeness(
        limit,
        share_of(samples.first < limit, groups, seed),
        ratio_limit,
        share_of(samples.ratio < ratio_limit, groups, seed),
        auc_of(-samples.first, -held_out.first, groups, others, seed),
        auc_of(-samples.ratio, -held_out.ratio, groups, others, seed),
        median_of(samples.first, groups, seed),
        median_of(held_out.first, others, seed),
        median_of(samples.ratio, groups, seed),
        median_of(held_out.ratio, others, seed),
    )


def median_of(values: Array, groups: Groups, seed: int = 0) -> Interval:
    order = np.argsort(values)
    ordered = values[order]

    def median(weights: Array) -> float:
        running = np.cumsum(weights[order])
        middle = [np.searchsorted(running, running[-1] / 2, side) for side in ("left", "right")]
        return float(ordered[middle].mean())

    return one_sided(median, groups, seed, 500)
