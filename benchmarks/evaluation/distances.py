"""How far two clouds of features lie apart, and how much of each the other covers."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.spatial.distance import cdist

from benchmarks.evaluation.statistics import Groups, Interval, jackknife, mean_of, share_of, two_sided

Features = NDArray[np.float64]
NEIGHBOURS = 5


def frechet(one: Features, other: Features) -> float:
    """The Frechet distance between normal distributions with the moments of features [N, D] and [M, D].

    Heusel et al. 2017 (arXiv 1706.08500), eq. 6. The trace of the root of the covariances' product is the sum of the
    singular values of the two centred clouds' product: it needs no root of a matrix, which is not exact where N <= D.
    NaN of fewer than two items, which have no covariance.
    """
    if min(len(one), len(other)) < 2:
        return float("nan")
    shift = one.mean(0) - other.mean(0)
    first, second = ((side - side.mean(0)) / np.sqrt(len(side) - 1) for side in (one, other))
    # Of tall clouds the triangles, D x D, have the same singular values.
    if len(one) > one.shape[1]:
        first, second = (linalg.qr(side, mode="r")[0] for side in (first, second))
    root = linalg.svdvals(first @ second.T).sum()
    return float(shift @ shift + np.square(first).sum() + np.square(second).sum() - 2 * root)


def frechet_between(one: Features, other: Features, groups: Groups, others: Groups, seed: int = 0) -> Interval:
    """``frechet`` with a jackknife over patients."""
    found = jackknife(lambda kept, also: frechet(one[kept], other[also]), groups, others, seed)
    return found._replace(low=max(found.low, 0.0))


def kernel_distance(
    one: Features, other: Features, groups: Groups, others: Groups, seed: int = 0, count: int = 500,
    same: NDArray[np.bool_] | None = None,
) -> Interval:  # fmt: skip
    """The unbiased squared MMD under (x.y / D + 1)^3, of all items as one subset: KID's, Binkowski et al. 2018 (arXiv
    1801.01401), eq. 4. Within a side pairs of one patient are left out, in the bootstrap too, for they are alike
    whatever the other side is; across sides those of patients of whom an exact copy is on the other side: a set that
    is compared with itself has a distance of 0, not below. same: which pairs [N, M] across sides are of one patient,
    and left out too; None: none is. NaN of a side of one patient alone."""
    return two_sided(_kernel_distance(one, other, groups, others, same), groups, others, seed, count)


def kernel_difference(
    one: Features, other: Features, third: Features, groups: Groups, others: Groups, seed: int = 0, count: int = 500
) -> Interval:
    """How much farther ``third`` is from ``one`` than ``other`` is: rows of these two belong together, and are drawn
    together by the bootstrap."""
    before, after = (_kernel_distance(one, side, groups, others) for side in (other, third))
    return two_sided(lambda *weights: after(*weights) - before(*weights), groups, others, seed, count)


def _kernel_distance(
    one: Features, other: Features, groups: Groups, others: Groups, same: NDArray[np.bool_] | None = None
) -> Callable[[Features, Features], float]:
    """By how often each item is there."""
    copied = np.zeros((groups.max() + 1, others.max() + 1), bool)  # patients of whom a picture is on both sides
    rows, columns = np.nonzero(cdist(one, other) == 0)
    copied[groups[rows], others[columns]] = True
    left_out = copied[groups][:, others] if same is None else copied[groups][:, others] | same
    within, also, between = (
        _mean_of_pairs((left @ right.T / one.shape[1] + 1) ** 3, counts)
        for left, right, counts in (
            (one, one, groups[:, None] != groups),
            (other, other, others[:, None] != others),
            (one, other, ~left_out),
        )
    )
    return lambda weights, more: within(weights, weights) + also(more, more) - 2 * between(weights, more)


def _mean_of_pairs(kernel: Features, counts: NDArray[np.bool_]) -> Callable[[Features, Features], float]:
    """Of the pairs [N, M] that count, by how often each item is there; NaN of none."""
    there = counts.astype(np.float64)
    kernel = kernel * there

    def mean(weights: Features, more: Features) -> float:
        pairs = float(weights @ there @ more)
        return float(weights @ kernel @ more) / pairs if pairs else float("nan")

    return mean


class Coverage(NamedTuple):
    """Kynkaanniemi et al. 2019 (arXiv 1904.06991), and Naeem et al. 2020 (arXiv 2002.09797) for the last two."""

    precision: Interval
    recall: Interval
    density: Interval
    coverage: Interval


def coverage(real: Features, synthetic: Features, groups: Groups, others: Groups, seed: int = 0) -> Coverage:
    """Of features [N, D] and [M, D], with balls that reach to the fifth neighbour.

    Intervals are over patients, with the balls as they are.
    """
    between = cdist(real, synthetic)
    of_real, of_synthetic = (_reach(side) for side in (real, synthetic))
    within_real = between <= of_real[:, None]
    neighbours = min(NEIGHBOURS, len(real) - 1)
    return Coverage(
        share_of(within_real.any(0), others, seed),
        share_of((between <= of_synthetic).any(1), groups, seed),
        mean_of(within_real.sum(0) / neighbours, others, seed),
        share_of(within_real.any(1), groups, seed),
    )


def _reach(features: Features) -> Features:
    """The distance of each item to its fifth neighbour."""
    place = min(NEIGHBOURS, len(features) - 1)
    return np.partition(cdist(features, features), place, axis=1)[:, place]
