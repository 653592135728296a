"""Whether a candidate's samples are as good as the reference's: accepted, refused, or too few samples to say.

All criteria must accept, so a candidate that is worse by any of them passes in no more than 5 % of all trials, and
nothing is to be corrected for their number. Each is asked whether the candidate is worse by more than a margin: a limit
of its 95 % interval decides, and where both ends are on different sides of the margin the answer is "too few samples".
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from benchmarks.evaluation.distances import Features, kernel_difference
from benchmarks.evaluation.pairs import Masks, Pairs
from benchmarks.evaluation.shapes import compared_features
from benchmarks.evaluation.statistics import Array, Groups, Interval, bootstrapped_mean
from benchmarks.quality.faults import FAULTS
from training.data.classes import LESION

Verdict = Literal["accepted", "refused", "too few samples"]
CHANCE = 0.05  # of taking what is worse than the margin
CERTAIN = 0.01  # below it the samples drawn so far are enough to give a candidate up
KS_SPREAD = 1.358  # of Kolmogorov's distribution the 95 % point
KINDS = 4  # of faults that are named
ENOUGH = 64  # real pictures: two halves of fewer differ so much by chance that the margin lets blurs through
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Limits:
    """Of a sample, beyond which it is bad, and of what all of them together may be worse by.

    rms: of an image's grey levels, whose range is 1, from the reference's of the same seed. dice: of the two masks, at
    least. bad_rate: of samples beyond these. kernel: of the kernel distance that two halves of the real images may
    have. lost: of the Dice by which a mask is found in its own picture rather than in another's. ks: Kolmogorov and
    Smirnov's D of any feature. faults: how much larger the share of pairs that cannot be is.
    """

    rms: float = 0.05
    dice: float = 0.8
    bad_rate: float = 0.05
    kernel: float = 0.25
    lost: float = 0.05
    ks: float = 0.25
    faults: float = 0.05


@dataclass(frozen=True)
class Criterion:
    """value: with the interval that the verdict is by; limit: that it must keep below; what: in words."""

    name: str
    verdict: Verdict
    value: Interval
    limit: float
    what: str

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "value": self.value.as_json()}


def together(criteria: Sequence[Criterion]) -> Verdict:
    """Of all criteria."""
    verdicts = {criterion.verdict for criterion in criteria}
    if "refused" in verdicts:
        return "refused"
    return "too few samples" if "too few samples" in verdicts or not verdicts else "accepted"


def by_interval(value: Interval, limit: float) -> Verdict:
    if value.high < limit:
        return "accepted"
    return "refused" if value.low > limit else "too few samples"


# --- one by one, where the solver is deterministic ---


def allowed_bad(count: int, rate: float = 0.05) -> int:
    """How many of so many samples may be bad, if a rate of bad ones this high is to pass once in 20 times; -1: none."""
    most = -1
    while stats.binom.cdf(most + 1, count, rate) <= CHANCE:
        most += 1
    return most


def apart(reference: Pairs, candidate: Pairs) -> tuple[Array, Array]:
    """Root mean square difference [N] of images, and Dice [N] of masks: the mean over classes that either has."""
    rms = np.sqrt(np.square(reference.images.astype(np.float64) - candidate.images).mean((1, 2)))
    dice = agreement(reference.masks, candidate.masks)
    return rms, np.where(np.isnan(dice), 1.0, dice)


def agreement(first: Masks, second: Masks) -> Array:
    """Dice [N] of masks [N, S, S]: the mean over classes that either has, and NaN where both are empty."""
    each = []
    for k in range(1, int(max(first.max(), second.max())) + 1):
        one, other = first == k, second == k
        both, sizes = (one & other).sum((1, 2)), one.sum((1, 2)) + other.sum((1, 2))
        each.append(np.where(sizes > 0, 2 * both / np.maximum(sizes, 1), np.nan))
    scores = np.array(each).reshape(-1, len(first))
    there = np.isfinite(scores)
    return np.where(there.any(0), np.nansum(scores, 0) / np.maximum(there.sum(0), 1), np.nan)


def bad_ones(reference: Pairs, candidate: Pairs, limits: Limits) -> Bools:
    rms, dice = apart(reference, candidate)
    return (rms > limits.rms) | (dice < limits.dice)


def one_by_one(bad: Bools, limits: Limits) -> Criterion:
    """Exact limits of Clopper and Pearson, each of 95 %."""
    count, hits = len(bad), int(bad.sum())
    found = stats.binomtest(hits, count).proportion_ci(1 - 2 * CHANCE, "exact")
    value = Interval(hits / count, float(found.low), float(found.high))
    allowed = allowed_bad(count, limits.bad_rate)
    room = f"at most {allowed} may be" if allowed >= 0 else "too few even if none were"
    verdict: Verdict = "accepted" if hits <= allowed else by_interval(value._replace(high=1.0), limits.bad_rate)
    return Criterion("seed by seed", verdict, value, limits.bad_rate, f"{hits} of {count} beyond the limits; {room}")


def is_lost(bad: Bools, limits: Limits) -> bool:
    """Whether so many are bad so soon that the rest need not be drawn."""
    return bool(stats.binom.sf(int(bad.sum()) - 1, len(bad), limits.bad_rate) < CERTAIN)


# --- as a crowd ---


@dataclass(frozen=True)
class Judged:
    """By one extractor: features [N, D] of real images, and how far two halves of them may be from each other."""

    name: str
    real: Features
    groups: Groups
    scale: float


def nearness(
    by: Judged, reference: Features, candidate: Features, groups: Groups, limits: Limits, seed: int
) -> Criterion:
    """How much farther from real images it is than the reference, by the unbiased kernel distance.

    The bootstrap draws the same seeds of both, so what they share does not blur their difference. groups: of samples
    [N], who they are of, where they were drawn under masks.
    """
    difference = kernel_difference(by.real, reference, candidate, by.groups, groups, seed)
    limit = limits.kernel * by.scale
    verdict = by_interval(difference, limit)
    what = f"{difference.value:+.3g} beside the reference's; margin {limits.kernel:g} of {by.scale:.3g}"
    if verdict == "accepted" and len(by.real) < ENOUGH:
        verdict, what = "too few samples", f"{what}, which {len(by.real)} real pictures leave too wide; {ENOUGH} do"
    return Criterion(f"kernel distance ({by.name})", verdict, difference, limit, what)


@dataclass(frozen=True)
class Followed:
    """Of the reference: Dice [N] of each mask with what is found in its own picture, and in another sample's; NaN
    where both are empty."""

    own: Array
    others: Array


def following(
    reference: Followed, candidate: Array, groups: Groups, limits: Limits, seed: int, chance: float = CHANCE
) -> Criterion:
    """How much less the candidate's pictures follow their masks: Dice [N] of each mask with what a segmenter of real
    pictures finds in its own.

    The limit is what would be lost if so large a share of the reference's pictures were of other masks: where the
    segmenter finds a mask no better in its own picture than in another's, nothing can be said. The bootstrap draws the
    same seeds of both; under one mask both may be hard to read. ``chance`` lies beyond each end of its interval.
    """
    level = 1 - 2 * chance
    told = bootstrapped_mean(reference.own - reference.others, groups, seed, level=level)
    # Nothing where the reference has a mask, and nothing found: all that there was to follow is lost.
    # Of an empty mask nothing can be lost but this: the reference's picture rightly shows nothing, and this one does.
    own = np.where(np.isnan(reference.own) & np.isfinite(candidate), 1.0, reference.own)
    candidate = np.where(np.isnan(candidate) & np.isfinite(own), 0.0, candidate)
    lost = bootstrapped_mean(own - candidate, groups, seed, level=level)
    limit = limits.lost * max(float(np.nan_to_num(told.value)), 0.0)
    after, before, strangers = (_mean(each) for each in (candidate, own, reference.others))
    what = (
        f"Dice {after:.3f} with what a segmenter finds, the reference {before:.3f}, in others' pictures {strangers:.3f}"
    )
    verdict = by_interval(lost, limit) if told.low > 0 else "too few samples"
    return Criterion("pictures follow masks", verdict, lost, limit, what)


def _mean(values: Array) -> float:
    there = np.isfinite(values)
    return float(values[there].mean()) if there.any() else np.nan


def shapes(
    reference: Mapping[str, Array], candidate: Mapping[str, Array], count: int, limits: Limits, seed: int,
    chance: float = CHANCE,
) -> Criterion:  # fmt: skip
    """Refused by any test that Holm's correction leaves, or by a D that is beyond the limit for certain; accepted if
    for no feature a D beyond it is possible. Each of ``count`` samples counts, whatever mask it was drawn under: the
    other side has the same."""
    worst, verdict, what = Interval(0.0, 0.0, 0.0), "accepted", "no feature to compare"
    found = list(compared_features(reference, candidate, np.arange(count), seed))
    for name, each, adjusted in found:
        sizes = [int(np.isfinite(side[name]).sum()) for side in (reference, candidate)]
        reach = KS_SPREAD * (sum(sizes) / (sizes[0] * sizes[1])) ** 0.5
        value = Interval(each.d, max(0.0, each.d - reach), min(1.0, each.d + reach))
        if value.high > worst.high:
            worst, what = value, f"largest D in {name}, p {adjusted:.2g} after Holm for {len(found)}"
        if adjusted < chance:
            return Criterion(
                "shapes", "refused", value, limits.ks, f"{name} differs: p {adjusted:.2g} after Holm for {len(found)}"
            )
    verdict = by_interval(worst, limits.ks) if found else "too few samples"
    return Criterion("shapes", verdict, worst, limits.ks, what)


def wrong_with(pairs: Pairs, features: Mapping[str, Array], of_phantoms: bool) -> list[list[str]]:
    """What of each pair cannot be, as ``FAULTS`` has it of its classes.

    It knows breasts as phantoms alone. Where others are learnt, a structure that is missing, in pieces, or half on
    black film cannot be.
    """
    known = FAULTS.get(pairs.labels)
    if known is not None and (of_phantoms or pairs.labels != LESION):
        return [known(image, mask) for image, mask in zip(pairs.images, pairs.masks, strict=True)]
    wrong: list[list[str]] = [[] for _ in range(len(pairs))]
    for name, values in features.items():
        structure, _, feature = name.partition(": ")
        for row, value in zip(wrong, values, strict=True):
            if feature == "components" and value != 1:
                row.append(f"{structure} in {value:g} pieces" if value else f"no {structure}")
            if feature == "off the breast %" and value > 50:
                row.append(f"{structure} off the breast")
    return wrong


def faultless(
    reference: Sequence[Sequence[str]], candidate: Sequence[Sequence[str]], limits: Limits, chance: float = CHANCE
) -> Criterion:
    """The difference of two shares in the same seeds: Agresti and Min 2005, which holds where none is faulty too."""
    before, after = (np.array([bool(each) for each in wrong], bool) for wrong in (reference, candidate))
    more, fewer = int((after & ~before).sum()), int((before & ~after).sum())
    count = len(before) + 2
    shift = (more - fewer) / count
    spread = (max((more + fewer + 1) / count - shift**2, 0.0) / count) ** 0.5
    reach = float(stats.norm.ppf(1 - chance)) * spread
    value = Interval((more - fewer) / len(before), shift - reach, shift + reach)
    kinds = Counter(kind for each in candidate for kind in each).most_common()
    told = [f"{kind}: {number}" for kind, number in kinds[:KINDS]]
    told += [f"others: {sum(number for _, number in kinds[KINDS:])}"] if kinds[KINDS:] else []
    named = f" ({', '.join(told)})" if told else ""
    what = f"{int(after.sum())} of {len(after)}{named}, the reference {int(before.sum())}"
    return Criterion("pairs that cannot be", by_interval(value, limits.faults), value, limits.faults, what)
