"""Samples beside those of the reference, by every criterion of the gate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.evaluation.cache import Cache
from benchmarks.evaluation.distances import Features, frechet, kernel_distance
from benchmarks.evaluation.features import Extractor, standardised
from benchmarks.evaluation.pairs import EvaluationError, Pairs, halves_by_patient
from benchmarks.evaluation.shapes import features_of
from benchmarks.evaluation.similarity import Lpips, likeness
from benchmarks.evaluation.statistics import FEWEST, Array, Interval, around, resampled
from benchmarks.tune import gate
from benchmarks.tune.gate import Criterion, Followed, Judged, Limits
from benchmarks.tune.reader import Reader

HALVINGS = 5  # of the real pairs: by a single one the margin would depend on chance
SMALLEST = 1e-9  # floor of a kernel distance: the reference is no farther than itself whatever the floor comes to


@dataclass(frozen=True)
class Known:
    """Of the reference's samples, what each candidate is compared with."""

    drawn: Pairs
    judged: Sequence[Judged]
    features: Sequence[Features]
    shapes: Mapping[str, Array]
    wrong: Sequence[Sequence[str]]
    followed: Followed | None


class Comparison:
    """By real images, and by limits that were stated before.

    reader: finds masks in pictures; None where there are no pictures to read.
    """

    def __init__(
        self, real: Pairs, extractors: Sequence[Extractor], reader: Reader | None, limits: Limits, cache: Cache,
        seed: int, lpips: Lpips | None = None,
    ) -> None:  # fmt: skip
        self.real, self.extractors, self.reader = real, extractors, reader
        self.limits, self.cache, self.seed, self.lpips = limits, cache, seed, lpips
        self.of_phantoms = real.facts.get("layout") == "phantoms"
        self._features = {each.name: each.of(real, cache) for each in extractors}
        self._scales = {name: self._scale(raw) for name, raw in self._features.items()}

    def known(self, drawn: Pairs) -> Known:
        """Of the reference's samples."""
        judged, features = [], []
        for extractor in self.extractors:
            name = extractor.name
            raw = self._features[name]
            real, reference = standardised(raw, raw, extractor.of(drawn, self.cache))
            judged.append(Judged(name, real, self.real.groups, self._scales[name]))
            features.append(reference)
        shapes = features_of(drawn)
        followed = None if self.reader is None else self.reader.followed(drawn, self.cache, self.seed)
        return Known(drawn, judged, features, shapes, self._wrong(drawn, shapes), followed)

    def _scale(self, raw: Features) -> float:
        """How far two halves of the real images may be from each other: the mean over some ways to halve them.

        Not of the reference's own distance: the worse that is, the worse a candidate might be. Raises EvaluationError
        if no way leaves four patients in each half: eight at the least, and more where some have many pairs.
        """
        (real,) = standardised(raw, raw)
        highs = []
        for way in range(HALVINGS):
            halves = halves_by_patient(self.real, self.seed + way)
            one, other = (real[np.isin(self.real.names, half.names)] for half in halves)
            highs.append(kernel_distance(one, other, halves[0].groups, halves[1].groups, self.seed).high)
        if np.isnan(highs).all():
            raise EvaluationError(
                f"the real pairs are of {self.real.patient_count} patients; the margin of the kernel distance needs "
                f"at least {2 * FEWEST}, {FEWEST} in each half"
            )
        return max(float(np.nanmean(highs)), SMALLEST)

    def criteria(self, known: Known, after: Pairs, is_paired: bool) -> tuple[list[Criterion], dict[str, Interval]]:
        """Of as many samples, whose seeds are the same samples or not; and figures for the table alone."""
        before, criteria = known.drawn, []
        figures = self.figures(before, after) if is_paired else {}
        if is_paired:
            criteria.append(gate.one_by_one(gate.bad_ones(before, after, self.limits), self.limits))
        for extractor, judged, of_reference in zip(self.extractors, known.judged, known.features, strict=True):
            (of_candidate,) = standardised(self._features[extractor.name], extractor.of(after, self.cache))
            criteria.append(gate.nearness(judged, of_reference, of_candidate, before.groups, self.limits, self.seed))
            value = frechet(judged.real, of_candidate)
            figures[extractor.frechet_name()] = Interval(value, np.nan, np.nan)
        if self.reader is not None and known.followed is not None:
            after_all = self.reader.agreement(after, self.cache)
            criteria.append(gate.following(known.followed, after_all, before.groups, self.limits, self.seed))
        shapes = features_of(after)
        criteria.append(gate.shapes(known.shapes, shapes, len(after), self.limits, self.seed))
        criteria.append(gate.faultless(known.wrong, self._wrong(after, shapes), self.limits))
        return criteria, figures

    def lost(self, known: Known, drawn: Pairs, is_paired: bool) -> Criterion | None:
        """What speaks so clearly against the first samples that the rest need not be drawn."""
        count = len(drawn)
        if is_paired:
            bad = gate.bad_ones(known.drawn.at(range(count)), drawn, self.limits)
            if gate.is_lost(bad, self.limits):
                return replace(gate.one_by_one(bad, self.limits), verdict="refused")
        shapes = features_of(drawn)
        before = {name: values[:count] for name, values in known.shapes.items()}
        found = [
            gate.shapes(before, shapes, count, self.limits, self.seed, gate.CERTAIN),
            gate.faultless(known.wrong[:count], self._wrong(drawn, shapes), self.limits, gate.CERTAIN),
        ]
        if self.reader is not None and known.followed is not None:
            first = gate.Followed(known.followed.own[:count], known.followed.others[:count])
            agreement, groups = self.reader.agreement(drawn, self.cache), known.drawn.groups[:count]
            found.append(gate.following(first, agreement, groups, self.limits, self.seed, gate.CERTAIN))
        return next((each for each in found if each.verdict == "refused"), None)

    def figures(self, before: Pairs, after: Pairs) -> dict[str, Interval]:
        """Means over seeds with their bootstraps, but the median of the rms."""
        rms, dice = gate.apart(before, after)
        figures = {"rms": _over_seeds(np.median, rms, self.seed), "Dice": _over_seeds(np.mean, dice, self.seed)}
        if self.lpips is not None:
            figures["LPIPS"] = _over_seeds(np.mean, likeness(before, after, self.lpips)["LPIPS"], self.seed)
        return figures

    def _wrong(self, pairs: Pairs, shapes: Mapping[str, Array]) -> list[list[str]]:
        return gate.wrong_with(pairs, shapes, self.of_phantoms)


def _over_seeds(statistic: Callable[[Array], Any], values: Array, seed: int) -> Interval:
    groups = np.arange(len(values))
    drawn = [float(statistic(np.repeat(values, weights.astype(int)))) for weights in resampled(groups, seed, 200)]
    return around(float(statistic(values)), drawn)
