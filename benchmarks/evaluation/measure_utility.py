"""Utility: what segmentation gains by samples."""

from collections.abc import Sequence

from benchmarks.evaluation.cache import Cache
from benchmarks.evaluation.pairs import Pairs
from benchmarks.evaluation.report import Cell, Section, Table
from benchmarks.evaluation.segmentation import METRICS, Recipe, steps_of
from benchmarks.evaluation.sides import Sides
from benchmarks.evaluation.utility import (
    RATIOS,
    REAL,
    Scored,
    Training,
    described,
    gained,
    predictions,
    scored,
    trainings,
)


def utility(
    sides: Sides,
    elsewhere: Sequence[tuple[Pairs | None, Pairs]],
    recipe: Recipe,
    seeds: int,
    seed: int,
    cache: Cache,
) -> Section:
    """What the page has of it; elsewhere: of other data sets, what to train on, if anything, and what to test on."""
    section = Section("Utility", warnings=sides.warnings())
    tests = [sides.held_out, *(test for _, test in elsewhere)]
    rows = list(trainings(sides.train, sides.synthetic, RATIOS, seed))
    rows += [Training(f"real, {own.name}", own, len(own), 0) for own, _ in elsewhere if own is not None]
    missing = [f"{ratio:g}" for ratio in RATIOS if round(ratio * len(sides.train)) > len(sides.synthetic)]
    if missing:
        section.warnings.append(
            f"{len(sides.synthetic)} samples are too few for mixtures of {', '.join(missing)} times the "
            f"{len(sides.train)} "
            "real pairs, which are left out: a sample that comes twice is no other one"
        )
    if len(sides.synthetic) < len(sides.train):
        section.warnings.append(
            f"{len(sides.synthetic)} samples stand beside {len(sides.train)} real pairs in the row of synthetic ones "
            "alone"
        )
    if seeds < 3:
        section.warnings.append(f"{seeds} seeds of training are few to know its spread by: three or more are wanted")
    steps = steps_of(recipe, len(sides.train))
    section.text.append(
        f"DynUNet, {recipe.epochs} epochs of {len(sides.train)} pairs in batches of {recipe.batch}: {steps} steps "
        f"for every row, so that more data is not more training. {seeds} seeds each. Patients are either trained on "
        "or tested on."
    )
    found = [
        [predictions(row, tests, sides.classes, recipe, steps, seed + number, cache) for number in range(seeds)]
        for row in rows
    ]
    names = sides.labels or tuple(f"class {k}" for k in range(sides.classes))
    for place, test in enumerate(tests):
        by_row = [scored([each[place] for each in of_seeds], test, sides.classes, seed) for of_seeds in found]
        for index, name in enumerate(names[1:]):
            section.tables.append(_table(test, name, rows, [classes[index] for classes in by_row], seed))
    section.facts |= {
        "seed": seed,
        "seeds": seeds,
        "steps": steps,
        "recipe": recipe.described(),
        "rows": [described(row) for row in rows],
        **sides.facts(),
        "elsewhere": [test.described() for _, test in elsewhere],
    }
    return section


def _table(test: Pairs, name: str, rows: Sequence[Training], found: Sequence[Scored], seed: int) -> Table:
    baseline = next(each for row, each in zip(rows, found, strict=True) if row.name == REAL)
    cells: list[list[Cell]] = []
    for row, each in zip(rows, found, strict=True):
        counts = each.counts
        cells.append(
            [
                row.name,
                row.real,
                row.synthetic,
                *(each.figures[metric] for metric in METRICS),
                each.spread["Dice"],
                None if row.name == REAL else gained(each, baseline, seed),
                counts["missed"],
                counts["invented"],
                counts["rightly absent"],
            ]
        )
    first = found[0].counts
    columns = ["trained on", "real", "synthetic", *METRICS]
    columns += ["Dice: seeds' deviation", "Dice gained", "missed", "invented", "rightly absent"]
    note = (
        "Figures are of slices, averaged over each patient's, then over patients and seeds; intervals are over the "
        f"{test.patient_count} patients. HD95 and ASD are in pixels of {test.size} x {test.size}. Of "
        f"{first['pictures']} pictures, all seeds together, {first['with it']} have the {name}. Where it is missed, "
        "or found and not there, overlaps count 0 and distances the picture's diagonal; where it is rightly not "
        "found, there is no figure."
    )
    return Table(f"{name}, tested on {test.name}", columns, cells, note)
