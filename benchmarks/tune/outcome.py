"""What the page and the terminal say of a tuning."""

import math
from dataclasses import asdict
from typing import Any

from benchmarks.evaluation.pairs import Pairs
from benchmarks.evaluation.report import Cell, Picture, Section, Table, picture, sheet
from benchmarks.latency.contenders import PAPER
from benchmarks.tune.gate import Limits
from benchmarks.tune.plot import Point, best, plot
from benchmarks.tune.tune import Answer, Trial

TIMED = (
    "seconds are those of the fastest of three rounds of 16 samples in which all that is here took turns, those that "
    "take over a minute in the first alone, on this machine with whatever else it did"
)


def section(answer: Answer, limits: Limits, real: Pairs, used: dict[str, Any]) -> Section:
    """All that was judged, by what, and what was not."""
    slowest = answer.trials[0].seconds
    measure = next(iter(answer.trials[0].figures))
    away = [trial.figures[measure].value if measure in trial.figures else math.inf for trial in answer.trials]
    front = best([(trial.seconds, distance) for trial, distance in zip(answer.trials, away, strict=True)])
    figures = list(dict.fromkeys(name for trial in answer.trials for name in trial.figures))
    names = list(dict.fromkeys(each.name for trial in answer.trials for each in trial.criteria))
    rows: list[list[Cell]] = []
    for trial, is_best in zip(answer.trials, front, strict=True):
        by_name = {each.name: each for each in trial.criteria}
        row: list[Cell] = [trial.candidate.name, _verdict(answer, trial), trial.count, trial.seconds]
        row += [slowest / trial.seconds, "yes" if is_best else "no"]
        row += [trial.figures.get(name) for name in figures]
        rows.append(row + [by_name[name].value if name in by_name else None for name in names])
    for name, seconds in answer.by_hand.items():
        blank: list[Cell] = [None] * (len(figures) + len(names))
        rows.append([name, "not judged", None, seconds, slowest / seconds, None, *blank])
    columns = ["", "gate", "samples", "s a sample", "times as fast", "Pareto", *figures, *names]
    note = (
        f"Beside {answer.reference.name} on the same seeds; {TIMED}. rms is the median over seeds, of grey levels "
        "whose range is 1. Where a criterion has an interval its end decides: 2.5 % lie beyond each of a kernel "
        "distance's and a D's, 5 % of the others', 1 % where a candidate was refused early. None that is marked as "
        f"Pareto's is beaten by another both in time and in {measure}."
    )
    if PAPER in answer.by_hand:
        note += f" {PAPER} is the paper's solver and steps in PyTorch, on the reference's weights."
    table = Table("Candidates", columns, rows, note)
    found = Section("Tuning", [conclusion(answer)], [table], warnings=list(real.warnings))
    judged = [(trial.candidate.name, trial) for trial in answer.trials]
    if answer.confirmed:
        judged.append((f"{answer.confirmed.candidate.name}, fresh seeds", answer.confirmed))
    told: list[list[Cell]] = [
        [name, each.name, each.verdict, each.value, each.limit, each.what]
        for name, trial in judged
        for each in trial.criteria
    ]
    told += [
        [each.candidate.name, "seed by seed", "not applicable", None, None, each.unpaired]
        for each in answer.trials
        if each.unpaired
    ]
    found.tables.append(Table("Criteria", ["", "criterion", "verdict", "value", "limit", ""], told))
    if answer.untried:
        found.tables.append(Table("Not tried", ["", ""], answer.why_untried()))
    found.tables.append(Table("What was used for what", ["", ""], [[each, what] for each, what in used.items()]))
    chosen = answer.winner if answer.verdict == "accepted" else None
    points = [
        Point(each.candidate.name, each.seconds, distance, each.verdict, is_best, each is chosen)
        for each, distance, is_best in zip(answer.trials, away, front, strict=True)
    ]
    found.pictures.append(plot(points, f"{measure} to {answer.reference.name}" if measure == "rms" else measure))
    for trial in answer.trials:
        pairs = trial.drawn
        tiles = [picture(*pair) for pair in zip(pairs.images[:8], pairs.masks[:8], strict=True)]
        found.pictures.append(Picture(f"{trial.candidate.name}: the first seeds", sheet(tiles, 8)))
    found.facts |= {"limits": asdict(limits), "real": real.described(), "verdict": answer.verdict, "used": used}
    found.facts |= {"trials": [trial.as_json() for trial in answer.trials], "evidence": answer.evidence}
    found.facts |= {"untried": answer.why_untried()}
    return found


def _verdict(answer: Answer, trial: Trial) -> str:
    if trial is answer.winner:
        return "chosen" if answer.verdict == "accepted" else f"accepted, then {answer.verdict}"
    if trial is answer.trials[0]:
        return "reference"
    return "refused early" if trial.was_given_up else str(trial.verdict)


def conclusion(answer: Answer) -> str:
    if answer.winner is None or answer.confirmed is None:
        return f"{answer.verdict}: no candidate was accepted beside {answer.reference.name}"
    name, trial = answer.winner.candidate.name, answer.confirmed
    times = answer.evidence["times_as_fast"]
    why = f" ({trial.why})" if trial.why else ""
    return (
        f"{answer.verdict}: {name} beside {answer.reference.name}, {times:.3g} times as fast, on {answer.winner.count} "
        f"seeds and on {trial.count} {'others, which had been asked before' if answer.earlier else 'fresh ones'}{why}"
    )
