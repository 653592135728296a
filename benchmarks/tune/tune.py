"""From candidates to the one answer: who passes, who of those is the fastest, and whether it passes again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.cache import Cache
from benchmarks.evaluation.distances import frechet, kernel_distance
from benchmarks.evaluation.features import Extractor, standardised
from benchmarks.evaluation.pairs import EvaluationError, Pairs, halves_by_patient
from benchmarks.evaluation.shapes import features_of
from benchmarks.evaluation.similarity import Lpips, likeness
from benchmarks.evaluation.statistics import Array, Interval, around, resampled
from benchmarks.tune import gate
from benchmarks.tune.candidates import Candidate
from benchmarks.tune.drawing import Drawer, grey_of
from benchmarks.tune.gate import Criterion, Judged, Limits, Verdict
from benchmarks.tune.timing import Clock
from training.models import load_family

Say = Callable[[str], object]
SMALLEST = 1e-9  # floor of a kernel distance: the reference is no farther than itself whatever the floor comes to


@dataclass(frozen=True)
class Trial:
    """What is known of a candidate after the seeds that were drawn.

    figures: for the table alone. seconds: a sample, NaN before it was timed. unpaired: why it is not compared with the
    reference seed by seed.
    """

    candidate: Candidate
    drawn: Pairs
    criteria: Sequence[Criterion]
    figures: Mapping[str, Interval]
    verdict: Verdict
    was_given_up: bool = False
    unpaired: str = ""
    seconds: float = float("nan")

    @property
    def count(self) -> int:
        return len(self.drawn)

    @property
    def why(self) -> str:
        """Who spoke against it, or kept silent."""
        speaking = [each for each in self.criteria if each.verdict == self.verdict]
        if self.verdict == "accepted":
            return ""
        early = f", refused early after {self.count} samples" if self.was_given_up else ""
        return "; ".join(f"{each.name}: {each.what}" for each in speaking) + early

    def as_json(self) -> dict[str, Any]:
        held = self.candidate.held
        return {
            "solver": self.candidate.solver,
            "steps": self.candidate.steps,
            "bundle": held.bundle.digest,
            "weights": held.bundle.manifest.checkpoint.get("digest"),
            "target": held.bundle.manifest.target["name"],
            "precision": held.bundle.manifest.precision,
            "seconds_per_sample": None if np.isnan(self.seconds) else self.seconds,
            "samples": self.count,
            "samples_sha256": self.drawn.digest,
            "verdict": self.verdict,
            "refused_early": self.was_given_up,
            "not_seed_by_seed": self.unpaired or None,
            "criteria": [each.as_json() for each in self.criteria],
        }


@dataclass
class Answer:
    """confirmed: the winner and its reference on seeds that nothing was chosen by; None if nobody had passed. by_hand:
    seconds a sample of what is no candidate, by its name."""

    reference: Candidate
    trials: list[Trial]
    untried: list[tuple[Candidate, str]]
    winner: Trial | None = None
    confirmed: Trial | None = None
    by_hand: Mapping[str, float] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        if self.confirmed:
            return self.confirmed.verdict
        verdicts = {trial.verdict for trial in self.trials if trial.candidate != self.reference}
        return "too few samples" if "too few samples" in verdicts or not verdicts else "refused"


def published(model: str) -> tuple[str, int]:
    """The paper's solver and steps. Raises EvaluationError for a model of no paper."""
    found = load_family(model).sampling_of_the_paper()
    if found is None:
        raise EvaluationError(f"{model} has no preset of its paper; name --reference-solver and --reference-steps")
    return found


class Judge:
    """Compares candidates with the reference on the same seeds, by the limits that were stated before."""

    def __init__(
        self, drawer: Drawer, reference: Candidate, real: Pairs, extractors: Sequence[Extractor], limits: Limits,
        cache: Cache, seed: int, lpips: Lpips | None = None,
    ) -> None:  # fmt: skip
        self.drawer, self.reference, self.limits, self.cache, self.seed = drawer, reference, limits, cache, seed
        self.extractors, self.lpips = extractors, lpips
        self.real = real if self._has_pictures else _as_pictures(real)
        self.of_phantoms = real.facts.get("layout") == "phantoms"
        self._known: dict[range, _Reference] = {}

    @property
    def _has_pictures(self) -> bool:
        return any(output.name == "image" for output in self.reference.held.bundle.manifest.outputs)

    def trial(self, candidate: Candidate, seeds: range) -> Trial:
        known, unpaired = self._reference(seeds), unlike(candidate, self.reference)
        if candidate == self.reference:
            return self._judged(candidate, known, known.drawn, unpaired)
        for drawn in self.drawer.parts(candidate, seeds):
            if len(drawn) < len(seeds) and (lost := self._lost(known, drawn, unpaired)):
                figures = self._figures(known.drawn.at(range(len(drawn))), drawn, unpaired)
                return Trial(candidate, drawn, [lost], figures, "refused", was_given_up=True, unpaired=unpaired)
        return self._judged(candidate, known, drawn, unpaired)

    def _lost(self, known: "_Reference", drawn: Pairs, unpaired: str) -> Criterion | None:
        """What speaks so clearly against the samples so far that the rest need not be drawn."""
        rows = range(len(drawn))
        if not unpaired:
            bad = gate.bad_ones(known.drawn.at(rows), drawn, self.limits)
            if gate.is_lost(bad, self.limits):
                return replace(gate.one_by_one(bad, self.limits), verdict="refused")
        features = features_of(drawn)
        before = {name: values[: len(drawn)] for name, values in known.shapes.items()}
        wrong = gate.wrong_with(drawn, features, self.of_phantoms)
        found = (
            gate.shapes(before, features, np.arange(len(drawn)), self.limits, self.seed, gate.CERTAIN),
            gate.faultless(known.wrong[: len(drawn)], wrong, self.limits, gate.CERTAIN),
        )
        return next((each for each in found if each.verdict == "refused"), None)

    def _judged(self, candidate: Candidate, known: "_Reference", after: Pairs, unpaired: str) -> Trial:
        before, criteria = known.drawn, []
        figures = self._figures(before, after, unpaired)
        if not unpaired:
            criteria.append(gate.one_by_one(gate.bad_ones(before, after, self.limits), self.limits))
        for extractor, judged, of_reference in zip(self.extractors, known.judged, known.features, strict=True):
            _, of_candidate = standardised(known.real_features[extractor.name], extractor.of(after, self.cache))
            criteria.append(gate.nearness(judged, of_reference, of_candidate, self.limits, self.seed))
            value = frechet(judged.real, of_candidate)
            figures[extractor.frechet_name()] = Interval(value, np.nan, np.nan)
        shapes = features_of(after)
        criteria.append(gate.shapes(known.shapes, shapes, before.groups, self.limits, self.seed))
        wrong = gate.wrong_with(after, shapes, self.of_phantoms)
        criteria.append(gate.faultless(known.wrong, wrong, self.limits))
        return Trial(candidate, after, criteria, figures, gate.together(criteria), unpaired=unpaired)

    def _figures(self, before: Pairs, after: Pairs, unpaired: str) -> dict[str, Interval]:
        """Means over seeds with their bootstraps, but the median of the rms; nothing where seeds say nothing."""
        if unpaired:
            return {}
        rms, dice = gate.apart(before, after)
        figures = {"rms": _over_seeds(np.median, rms, self.seed), "Dice": _over_seeds(np.mean, dice, self.seed)}
        if self.lpips is not None:
            figures["LPIPS"] = _over_seeds(np.mean, likeness(before, after, self.lpips)["LPIPS"], self.seed)
        return figures

    def _reference(self, seeds: range) -> "_Reference":
        if seeds not in self._known:
            drawn = self.drawer.all(self.reference, seeds)
            judged, features, real_features = [], [], {}
            one, other = halves_by_patient(self.real, self.seed)
            for extractor in self.extractors:
                raw = extractor.of(self.real, self.cache)
                real, reference = standardised(raw, extractor.of(drawn, self.cache))
                groups = self.real.groups
                first, second = (real[np.isin(self.real.names, side.names)] for side in (one, other))
                floor = kernel_distance(first, second, one.groups, other.groups, self.seed)
                # Not of the reference's own distance: the worse that is, the worse a candidate might be.
                judged.append(Judged(extractor.name, real, groups, max(floor.high, SMALLEST)))
                features.append(reference)
                real_features[extractor.name] = raw
            shapes = features_of(drawn)
            wrong = gate.wrong_with(drawn, shapes, self.of_phantoms)
            self._known[seeds] = _Reference(drawn, judged, features, real_features, shapes, wrong)
        return self._known[seeds]


@dataclass(frozen=True)
class _Reference:
    drawn: Pairs
    judged: Sequence[Judged]
    features: Sequence[NDArray[np.float64]]
    real_features: Mapping[str, NDArray[np.float64]]
    shapes: Mapping[str, Array]
    wrong: Sequence[Sequence[str]]


def unlike(candidate: Candidate, reference: Candidate) -> str:
    """Why a seed is not the same sample of both, even were one as good as the other; "" if it is."""
    noisy = [each.solver for each in (candidate, reference) if not each.is_deterministic]
    if noisy:
        return f"{' and '.join(dict.fromkeys(noisy))} draws noise on the way: a seed is another sample"
    one, other = ([m.noise_channels, *m.sample_shape[1:]] for m in (candidate.manifest, reference.manifest))
    if one != other:
        return f"it begins with noise of {one}, the reference with {other}: a seed is another sample"
    return ""


def _over_seeds(statistic: Callable[[Array], Any], values: Array, seed: int) -> Interval:
    groups = np.arange(len(values))
    drawn = [float(statistic(np.repeat(values, weights.astype(int)))) for weights in resampled(groups, seed, 200)]
    return around(float(statistic(values)), drawn)


def _as_pictures(pairs: Pairs) -> Pairs:
    classes = max(len(pairs.labels), int(pairs.masks.max()) + 1, 2)
    return replace(pairs, images=grey_of(pairs.masks, classes))


def tuned(
    judge: Judge, ladders: Sequence[Sequence[Candidate]], seed: int, count: int, clock: Clock, say: Say
) -> Answer:
    """The reference first; of each ladder, from the costliest down, up to the first that is not accepted.

    Below that nothing is tried: a fixed order that ends at the first failure needs no correction for its length. That
    holds within one ladder; over several it is the confirmation that keeps the rate. All that were tried are then timed
    in turn, as what is in the cache may be of another day. Of those that passed the fastest is drawn once more, with as
    many seeds that nobody has seen (a model under masks gets the same real masks again); one that is no faster than the
    reference is refused.
    """
    seeds, fresh = range(seed, seed + count), range(seed + count, seed + 2 * count)
    answer = Answer(judge.reference, [judge.trial(judge.reference, seeds)], [])
    say(_line(answer.trials[0]))
    for ladder in ladders:
        stopped = ""
        for candidate in ladder:
            if candidate == judge.reference:
                continue
            if stopped or is_no_faster(candidate, judge.reference):
                answer.untried.append((candidate, stopped or "evaluates the network no less often than the reference"))
                continue
            trial = judge.trial(candidate, seeds)
            say(_line(trial))
            answer.trials.append(trial)
            if trial.verdict != "accepted":
                stopped = f"{candidate.name} was not accepted"
    say(f"{len(answer.trials)} are timed in turn")
    seconds, answer.by_hand = clock([trial.candidate for trial in answer.trials], seeds)
    answer.trials = [replace(trial, seconds=each) for trial, each in zip(answer.trials, seconds, strict=True)]
    reference, *others = answer.trials
    passed = [trial for trial in others if trial.verdict == "accepted"]
    if passed:
        answer.winner = min(passed, key=lambda trial: trial.seconds)
        confirmed = judge.trial(answer.winner.candidate, fresh)
        say(f"on fresh seeds: {_line(confirmed)}")
        timed = Interval(answer.winner.seconds, np.nan, np.nan)
        if not timed.value < reference.seconds:
            slow = Criterion("time", "refused", timed, reference.seconds, "no faster than that")
            confirmed = replace(confirmed, verdict="refused", criteria=[*confirmed.criteria, slow])
        answer.confirmed = confirmed
        answer.evidence = _evidence(judge, answer, confirmed, seeds, fresh)
    return answer


def is_no_faster(candidate: Candidate, reference: Candidate) -> bool:
    """Known without a try: the reference's engines take no fewer steps, or others more."""
    same = candidate.held.bundle.digest == reference.held.bundle.digest
    return candidate.rows >= reference.rows if same else candidate.rows > reference.rows


def _line(trial: Trial) -> str:
    why = f" ({trial.why})" if trial.why else ""
    return f"{trial.candidate.name}: {trial.verdict}{why}"


def split(judge: Judge, seeds: range, fresh: range) -> dict[str, Any]:
    """What was used for what, as the report and the evidence have it."""
    one, other = halves_by_patient(judge.real, judge.seed)
    return {
        "real pairs": f"{len(judge.real)} of {judge.real.name}, split {judge.real.facts.get('split', 'all')}",
        "kernel distance": f"to all {len(judge.real)} of them; its floor is that of {len(one)} and {len(other)}",
        "seeds to choose by": f"{seeds.start} to {seeds.stop - 1}, of reference and candidates",
        "fresh seeds to confirm by": f"{fresh.start} to {fresh.stop - 1}, of reference and winner, drawn once",
    }


def _evidence(judge: Judge, answer: Answer, confirmed: Trial, seeds: range, fresh: range) -> dict[str, Any]:
    reference, winner = answer.trials[0], answer.winner
    assert winner is not None
    seconds = {"reference": reference.seconds, "chosen": winner.seconds, **answer.by_hand}
    return {
        "verdict": confirmed.verdict,
        "reference": {key: value for key, value in reference.as_json().items() if key not in ("criteria", "verdict")},
        "chosen": winner.as_json(),
        "confirmed": confirmed.as_json(),
        "seconds_per_sample": seconds,
        "times_as_fast": reference.seconds / winner.seconds,
        "seeds": [[each.start, each.stop - 1] for each in (seeds, fresh)],
        "used": split(judge, seeds, fresh),
        "limits": asdict(judge.limits),
        "features": {each.name: each.identity for each in judge.extractors},
        "real": judge.real.described(),
    }
