"""Intervals over patients, tests between two samples, and what is left of their p-values when there are many."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Groups = NDArray[np.int64]
LEVEL = 0.95
RESAMPLINGS = 1000
FOLDS = 20  # of the jackknife
FEWEST = 4  # groups: resamplings of fewer are too much alike to say how groups differ
DEFINED = 0.95  # of the resamplings, for an interval
DRAWS = 99  # of one slice a patient


class Interval(NamedTuple):
    """A figure and its interval, of 95 % where nothing else is said; NaN where there is none."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float | None]:
        return {name: None if np.isnan(number) else float(number) for name, number in self._asdict().items()}


def resampled(groups: Groups, seed: int, count: int = RESAMPLINGS) -> Iterator[Array]:
    """How often each item [N] is in each of ``count`` bootstrap samples that draw whole groups (patients)."""
    random = np.random.default_rng(seed)
    number = int(groups.max()) + 1
    for _ in range(count):
        yield np.bincount(random.integers(number, size=number), minlength=number)[groups].astype(np.float64)


def are_enough(*sides: Groups) -> bool:
    """Whether each side has as many groups as an interval needs."""
    return all(len(np.unique(groups)) >= FEWEST for groups in sides)


def around(value: float, drawn: Sequence[float] | Array, level: float = LEVEL) -> Interval:
    """The percentile interval of a bootstrap; resamplings in which the figure is not defined do not count, and where
    they are more than 5 % there is no interval."""
    every = np.asarray(drawn, np.float64)
    kept = every[np.isfinite(every)]
    if len(kept) < max(2, DEFINED * len(every)) or np.isnan(value):
        return Interval(float(value), np.nan, np.nan)
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high))


def mean_of(
    values: NDArray[Any], groups: Groups, seed: int = 0, count: int = RESAMPLINGS, level: float = LEVEL
) -> Interval:
    """The mean of what is not NaN in values [N], with a bootstrap over groups, of which there must be four for an
    interval, and not all values equal: no resampling has another mean. NaN if nothing is."""
    found = bootstrapped_mean(values, groups, seed, count, level)
    differ = len(np.unique(np.asarray(values, np.float64)[np.isfinite(values)])) > 1
    return found if differ else Interval(found.value, np.nan, np.nan)


def bootstrapped_mean(
    values: NDArray[Any], groups: Groups, seed: int = 0, count: int = RESAMPLINGS, level: float = LEVEL
) -> Interval:
    """``mean_of``, whose interval has no width where all values are equal."""
    values = np.asarray(values, np.float64)
    there = np.isfinite(values)
    if not there.any():
        return Interval(np.nan, np.nan, np.nan)
    values, groups = values[there], np.unique(groups[there], return_inverse=True)[1].astype(np.int64)
    if not are_enough(groups):
        return Interval(float(values.mean()), np.nan, np.nan)
    drawn = [float(weights @ values / weights.sum()) for weights in resampled(groups, seed, count)]
    return around(float(values.mean()), drawn, level)


def two_sided(
    statistic: Callable[[Array, Array], float], one: Groups, other: Groups, seed: int = 0, count: int = RESAMPLINGS
) -> Interval:
    """``statistic(weights [N], weights [M])`` of two samples, with a bootstrap over the groups of each.

    A side of fewer than four groups gives no interval: too little is known of how groups differ.
    """
    value = statistic(np.ones(len(one)), np.ones(len(other)))
    if not are_enough(one, other):
        return Interval(float(value), np.nan, np.nan)
    both = zip(resampled(one, seed, count), resampled(other, seed + 1, count), strict=True)
    return around(value, [statistic(*weights) for weights in both])


def jackknife(
    statistic: Callable[[NDArray[np.bool_], NDArray[np.bool_]], float], one: Groups, other: Groups, seed: int = 0
) -> Interval:
    """``statistic(kept [N], kept [M])`` of two samples, its interval from leaving out folds of groups of each side.

    For figures that a bootstrap, in which items come twice, biases: a Frechet distance does not know its own copies. A
    side of fewer than four groups gives no interval.
    """
    everything = np.ones(len(one), bool), np.ones(len(other), bool)
    value = statistic(*everything)
    if not are_enough(one, other):
        return Interval(value, np.nan, np.nan)
    variance = 0.0
    for side, groups in enumerate((one, other)):
        number = int(groups.max()) + 1
        folds = np.random.default_rng(seed + side).permutation(number) % min(FOLDS, number)
        left = []
        for fold in range(int(folds.max()) + 1):
            kept = list(everything)
            kept[side] = folds[groups] != fold
            left.append(statistic(kept[0], kept[1]))
        variance += (len(left) - 1) / len(left) * float(np.square(np.array(left) - np.mean(left)).sum())
    reach = float(stats.norm.ppf((1 + LEVEL) / 2)) * variance**0.5
    return Interval(value, value - reach, value + reach)


def one_sided(statistic: Callable[[Array], float], groups: Groups, seed: int = 0, count: int = RESAMPLINGS) -> Interval:
    """``statistic(weights [N])``, with a bootstrap over the groups, of which there must be four for an interval."""
    value = statistic(np.ones(len(groups)))
    if not are_enough(groups):
        return Interval(float(value), np.nan, np.nan)
    return around(value, [statistic(weights) for weights in resampled(groups, seed, count)])


def share_of(hits: NDArray[np.bool_], groups: Groups, seed: int = 0) -> Interval:
    """How many are, as a share: Wilson's interval where each item is its own group, else a bootstrap over groups.

    Where all are or none is, a bootstrap knows no other share: the interval is then Wilson's, of as many as groups.
    """
    number, share = len(np.unique(groups)), float(hits.mean())
    if number == len(groups) or share in (0, 1):
        found = stats.binomtest(round(share * number), number).proportion_ci(LEVEL, "wilson")
        return Interval(share, float(found.low), float(found.high))
    return mean_of(hits.astype(np.float64), groups, seed)


class Compared(NamedTuple):
    """Two samples of one feature: Kolmogorov and Smirnov's D and p, and Cliff's delta as the effect size.

    p: of patients with several values twice the middle one of 99 draws of one value a patient, which is too small no
    more often than a test's p may be, however alike a patient's values are (Rueger 1978).
    delta: how much more often a synthetic value is above a real one than below it, from -1 to 1, 0 for alike.
    """

    real_mean: float
    synthetic_mean: float
    d: float
    p: float
    delta: Interval


def compare(
    real: Array, synthetic: Array, groups: Groups, seed: int = 0, count: int = 200, others: Groups | None = None
) -> Compared | None:
    """None if a side has fewer than two values; the interval of delta is a bootstrap over the patients of each side.

    others: the patients of the synthetic side; None: each value is its own.
    """
    there, also = np.isfinite(real), np.isfinite(synthetic)
    others = np.arange(len(synthetic)) if others is None else others
    real, groups, synthetic, others = real[there], groups[there], synthetic[also], others[also]
    if min(len(real), len(synthetic)) < 2:
        return None
    found = stats.ks_2samp(real, synthetic)
    groups, others = (np.unique(each, return_inverse=True)[1].astype(np.int64) for each in (groups, others))
    # Delta is the mean of either side's; what resampling one side changes is nearly what it does whatever the other is.
    excess, deficit = _excess(real, synthetic), _excess(synthetic, real)
    value = float(excess.mean())
    drawn = [
        float(weights @ excess / weights.sum() - also @ deficit / also.sum()) - value
        for weights, also in zip(resampled(groups, seed, count), resampled(others, seed + 1, count), strict=True)
    ]
    delta = around(value, np.clip(drawn, -1, 1) if are_enough(groups, others) else [])
    p = _p_of_patients(real, synthetic, groups, others, seed)
    return Compared(float(real.mean()), float(synthetic.mean()), float(found.statistic), p, delta)


def _p_of_patients(real: Array, synthetic: Array, groups: Groups, others: Groups, seed: int) -> float:
    """Of as many values as patients on both sides, D alone makes p: the middle p is that of the middle D."""
    counts = len(np.unique(groups)), len(np.unique(others))
    if counts == (len(real), len(synthetic)):
        return float(stats.ks_2samp(real, synthetic).pvalue)
    random = np.random.default_rng(seed)
    draws = [(_one_each(real, groups, random), _one_each(synthetic, others, random)) for _ in range(DRAWS)]
    middle = draws[np.argsort([_largest_gap(*both) for both in draws])[DRAWS // 2]]
    return min(2 * float(stats.ks_2samp(*middle).pvalue), 1.0)


def _largest_gap(one: Array, other: Array) -> float:
    """D alone, a hundred times as fast as scipy's."""
    every = np.concatenate([one, other])
    below, also = (np.searchsorted(np.sort(side), every, "right") / len(side) for side in (one, other))
    return float(np.abs(below - also).max())


def _one_each(values: Array, groups: Groups, random: np.random.Generator) -> Array:
    """A value of each group."""
    order = random.permutation(len(values))
    return values[order[np.unique(groups[order], return_index=True)[1]]]


def _excess(values: Array, others: Array) -> Array:
    """Of each value [N], how many of the others are above it less those below, as a share of them."""
    ordered = np.sort(others)
    above = len(ordered) - np.searchsorted(ordered, values, "right")
    return (above - np.searchsorted(ordered, values, "left")) / len(ordered)


def ks_interval(d: float, one: Groups, other: Groups) -> Interval:
    """What Kolmogorov and Smirnov's D of whole populations may be, of two samples with this one.

    Dvoretzky, Kiefer and Wolfowitz's inequality with Massart's constant (1990) for each side at half of what is left,
    as if each group gave one value: wide, and true however alike a patient's slices are. A bootstrap's D is too large.
    """
    reach = sum((np.log(4 / (1 - LEVEL)) / (2 * len(np.unique(groups)))) ** 0.5 for groups in (one, other))
    return Interval(d, max(0.0, d - float(reach)), min(1.0, d + float(reach)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number: Holm 1979."""
    order = np.argsort(p_values)
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.minimum(np.maximum.accumulate(np.array(p_values, np.float64)[order] * factors), 1)
    back = np.empty(len(p_values))
    back[order] = adjusted
    return back.tolist()


def auc(positives: Array, negatives: Array, weights: tuple[Array, Array] | None = None) -> float:
    """How likely a positive's score is above a negative's, ties by half: the area under the ROC curve.

    weights: how often each is there; NaN if none of a side is.
    """
    first, second = (np.ones(len(positives)), np.ones(len(negatives))) if weights is None else weights
    return auc_by_weights(positives, negatives)(first, second)


def auc_of(positives: Array, negatives: Array, groups: Groups, others: Groups, seed: int = 0) -> Interval:
    """``auc`` with a bootstrap over the groups of each side."""
    return two_sided(auc_by_weights(positives, negatives), groups, others, seed)


def auc_by_weights(positives: Array, negatives: Array) -> Callable[[Array, Array], float]:
    """``auc`` by how often each is there; sorted once, for a bootstrap asks a thousand times."""
    order = np.argsort(negatives)
    below, within = (np.searchsorted(negatives[order], positives, side) for side in ("left", "right"))

    def area(first: Array, second: Array) -> float:
        running = np.concatenate([[0.0], np.cumsum(second[order])])
        whole = first.sum() * running[-1]
        return float(first @ (running[below] + running[within]) / 2 / whole) if whole else float("nan")

    return area


def caught(positives: Array, negatives: Array, false_alarms: float = 0.01) -> float:
    """The share of positives above a threshold that no more than this share of negatives reaches: TPR at a FPR."""
    allowed = int(false_alarms * len(negatives))
    threshold = np.sort(negatives)[::-1][allowed]
    return float((positives > threshold).mean())
