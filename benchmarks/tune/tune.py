"""From candidates to the one answer: who passes, who of those is the fastest, and whether it passes again."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from benchmarks.evaluation.pairs import EvaluationError, Pairs
from benchmarks.evaluation.statistics import Interval
from benchmarks.tune import gate
from benchmarks.tune.candidates import Candidate
from benchmarks.tune.comparison import HALVINGS, Comparison, Known
from benchmarks.tune.drawing import Drawer
from benchmarks.tune.gate import Criterion, Verdict
from benchmarks.tune.looks import Look, Looks
from benchmarks.tune.timing import Clock
from training.models import load_family

Say = Callable[[str], object]


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
            "figures": {name: each.as_json() for name, each in self.figures.items()},
        }


@dataclass
class Answer:
    """confirmed: the winner and its reference on seeds that nothing was chosen by; None if nobody had passed. by_hand:
    seconds a sample of what is no candidate, by its name. earlier: what the seeds to confirm by were asked before."""

    reference: Candidate
    trials: list[Trial]
    untried: list[tuple[Candidate, str]]
    winner: Trial | None = None
    confirmed: Trial | None = None
    by_hand: Mapping[str, float] = field(default_factory=dict)
    earlier: Sequence[str] = ()
    evidence: dict[str, Any] = field(default_factory=dict)

    def why_untried(self) -> list[list[str]]:
        """Their names and why, as a table or JSON has it."""
        return [[each.name, why] for each, why in self.untried]

    @property
    def verdict(self) -> Verdict:
        if self.confirmed:
            return self.confirmed.verdict
        verdicts = {trial.verdict for trial in self.trials if trial.candidate != self.reference}
        if not verdicts and self.trials[0].verdict == "refused":
            return "refused"
        return "too few samples" if "too few samples" in verdicts or not verdicts else "refused"


def published(model: str) -> tuple[str, int]:
    """The paper's solver and steps, ``ddim`` with the noise that clipping leaves: of PIG's own networks, which do not
    clip, the same. Raises EvaluationError for a model of no paper.
    """
    found = load_family(model).sampling_of_the_paper()
    if found is None:
        raise EvaluationError(f"{model} has no preset of its paper; name --reference-solver and --reference-steps")
    solver, steps = found
    return ("ddim_clipped" if solver == "ddim" else solver), steps


class Judge:
    """Draws candidates with the reference's seeds, and compares them with it."""

    def __init__(self, drawer: Drawer, reference: Candidate, comparison: Comparison) -> None:
        self.drawer, self.reference, self.comparison = drawer, reference, comparison
        self._known: dict[range, Known] = {}

    def trial(self, candidate: Candidate, seeds: range) -> Trial:
        if seeds not in self._known:
            self._known[seeds] = self.comparison.known(self.drawer.all(self.reference, seeds))
        known, unpaired = self._known[seeds], unlike(candidate, self.reference)
        drawn = known.drawn
        for drawn in self.drawer.parts(candidate, seeds) if candidate != self.reference else ():
            if len(drawn) < len(seeds) and (lost := self.comparison.lost(known, drawn, not unpaired)):
                figures = self.comparison.figures(known.drawn.at(range(len(drawn))), drawn) if not unpaired else {}
                return Trial(candidate, drawn, [lost], figures, "refused", was_given_up=True, unpaired=unpaired)
        criteria, figures = self.comparison.criteria(known, drawn, not unpaired)
        return Trial(candidate, drawn, criteria, figures, gate.together(criteria), unpaired=unpaired)


def unlike(candidate: Candidate, reference: Candidate) -> str:
    """Why a seed is not the same sample of both, even were one as good as the other; "" if it is."""
    noisy = [each.solver for each in (candidate, reference) if not each.is_deterministic]
    if noisy:
        return f"{' and '.join(dict.fromkeys(noisy))} draws noise on the way: a seed is another sample"
    one, other = ([m.noise_channels, *m.sample_shape[1:]] for m in (candidate.manifest, reference.manifest))
    if one != other:
        return f"it begins with noise of {one}, the reference with {other}: a seed is another sample"
    return ""


def tuned(
    judge: Judge, ladders: Sequence[Sequence[Candidate]], seed: int, count: int, clock: Clock, looks: Looks, say: Say
) -> Answer:
    """The reference first; of each ladder, from the costliest down, up to the first that is not accepted.

    Below that nothing is tried: a fixed order that ends at the first failure needs no correction for its length. That
    holds within one ladder; over several it is the confirmation that keeps the rate. All that were tried are then timed
    in turn, as what is in the cache may be of another day. Of those that passed the fastest is drawn once more, with as
    many other seeds (a model under masks gets the same real masks again), and what these were asked before is said; one
    that is no faster than the reference is refused. Where there are too few samples to accept the reference itself
    nothing is tried.
    """
    seeds, fresh = range(seed, seed + count), range(seed + count, seed + 2 * count)
    answer = Answer(judge.reference, [judge.trial(judge.reference, seeds)], [])
    itself = answer.trials[0]
    say(_line(itself))
    hopeless = "" if itself.verdict == "accepted" else f"the reference itself: {itself.verdict} ({itself.why})"
    terms = json.dumps(_terms(judge.comparison), sort_keys=True)
    looks.note(Look(whose := _identity(judge.reference), "to choose by", "", seeds.start, seeds.stop - 1))
    for ladder in ladders:
        stopped = hopeless
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
        look = Look(whose, _identity(answer.winner.candidate), terms, fresh.start, fresh.stop - 1)
        answer.earlier = looks.earlier(look)
        looks.note(look)
        confirmed = judge.trial(answer.winner.candidate, fresh)
        say(f"on {'fresh' if not answer.earlier else 'other'} seeds: {_line(confirmed)}")
        if answer.earlier:
            say(f"these seeds are not fresh: {'; '.join(answer.earlier)}. Another --seed or --out has others")
        timed = Interval(answer.winner.seconds, np.nan, np.nan)
        if not timed.value < reference.seconds:
            slow = Criterion("time", "refused", timed, reference.seconds, "no faster than that")
            confirmed = replace(confirmed, verdict="refused", criteria=[*confirmed.criteria, slow])
        answer.confirmed = confirmed
        answer.evidence = _evidence(judge, answer, confirmed, seeds, fresh)
    return answer


def _terms(comparison: Comparison) -> dict[str, Any]:
    """What a verdict depends on beside the samples."""
    return {
        "limits": asdict(comparison.limits),
        "features": {each.name: each.identity for each in comparison.extractors},
        "reader": comparison.reader and comparison.reader.identity,
        "real": comparison.real.digest,
    }


def is_no_faster(candidate: Candidate, reference: Candidate) -> bool:
    """Known without a try: the reference's engines take no fewer steps, or others more."""
    same = candidate.held.bundle.digest == reference.held.bundle.digest
    return candidate.rows >= reference.rows if same else candidate.rows > reference.rows


def _identity(candidate: Candidate) -> str:
    """What draws the same, though its bundle may have another default since."""
    manifest = candidate.manifest
    engine = f"{manifest.target['name']} {manifest.precision}"
    return f"{candidate.solver} {candidate.steps}, {engine}, of weights {candidate.held.weights}"


def _line(trial: Trial) -> str:
    why = f" ({trial.why})" if trial.why else ""
    return f"{trial.candidate.name}: {trial.verdict}{why}"


def split(judge: Judge, seeds: range, fresh: range, earlier: Sequence[str]) -> dict[str, Any]:
    """What was used for what, as the report and the evidence have it."""
    real, reader = judge.comparison.real, judge.comparison.reader
    once = f"not fresh: {'; '.join(earlier)}" if earlier else "drawn once"
    read = {} if reader is None else {"pictures follow masks": reader.told(real, judge.comparison.cache)}
    return {
        "real pairs": f"{len(real)} of {real.name}, split {real.facts.get('split', 'all')}",
        "kernel distance": f"to all {len(real)} of them; its floor is that of halves, {HALVINGS} ways",
        **read,
        "seeds to choose by": f"{seeds.start} to {seeds.stop - 1}, of reference and candidates",
        "seeds to confirm by": f"{fresh.start} to {fresh.stop - 1}, of reference and winner, {once}",
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
        "earlier": list(answer.earlier),
        "used": split(judge, seeds, fresh, answer.earlier),
        **_terms(judge.comparison),
        "real": judge.comparison.real.described(),
        "untried": answer.why_untried(),
    }
