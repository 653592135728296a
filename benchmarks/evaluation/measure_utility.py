"""Utility: what segmentation gains by samples."""

from collections.abc import Sequence

from benchmarks.evaluation.cache import Cache
from benchmarks.evaluation.curve import curve
from benchmarks.evaluation.pairs import EvaluationError, Pairs, share_names
from benchmarks.evaluation.report import Cell, Section, Table
from benchmarks.evaluation.segmentation import DISTANCES, METRICS, Recipe, steps_of
from benchmarks.evaluation.sides import Sides, warnings_of
from benchmarks.evaluation.similarity import partners
from benchmarks.evaluation.utility import (
    AUGMENTED,
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

ADDED = "samples beside the real pairs, times as many"
LEAK = (
    "the real pairs were halved here, and nothing is known of what the generator was trained on: if pictures that are "
    "tested on were among it, samples carry them into training, and their rows are too good. Name what it was trained "
    "on with --train, and others as REAL"
)


def utility(
    sides: Sides,
    elsewhere: Sequence[tuple[Pairs | None, Pairs]],
    recipe: Recipe,
    seeds: int,
    seed: int,
    cache: Cache,
) -> Section:
    """What the page has of it; elsewhere: of other data sets, what to train on, if anything, and what to test on.

    Raises EvaluationError if a side has no masks.
    """
    if sides.without_masks is not None:
        raise EvaluationError(f"{sides.without_masks}: a segmenter learns nothing by pictures alone")
    section = Section("Utility", warnings=sides.warnings())
    section.warnings += [line for both in elsewhere for each in both if each is not None for line in warnings_of(each)]
    tests = [sides.held_out, *(test for _, test in elsewhere)]
    rows = list(trainings(sides.train, sides.synthetic, RATIOS, seed))
    rows += [Training(f"real, {test.name}", own, len(own), 0) for own, test in elsewhere if own is not None]
    if not sides.as_fit:
        section.warnings.append(LEAK)
    if len(same := partners(sides.held_out, sides.synthetic)[0]):
        section.warnings.append(
            f"{len(same)} pictures that are tested on have the mask of a sample: segmenters learnt these masks, and "
            "the rows of samples may be too good. Draw samples under masks of the pairs that were trained on"
        )
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
        f"for every row, so that more data is not more training. {seeds} seeds each."
    )
    learnt = [sides.train, *(own for own, _ in elsewhere if own is not None)]
    if unsure := [f"{each.name} and {test.name}" for each in learnt for test in tests if not share_names(each, test)]:
        section.warnings.append(
            "whether a patient is both trained on and tested on is not known, only that no picture is: patients are "
            f"not known, or named by other rules, in {'; '.join(unsure)}"
        )
    else:
        section.text.append("Patients are either trained on or tested on.")
    found = [
        [predictions(row, tests, sides.classes, recipe, steps, seed + number, cache) for number in range(seeds)]
        for row in rows
    ]
    names = sides.labels or tuple(f"class {k}" for k in range(sides.classes))
    for place, test in enumerate(tests):
        by_row = [scored([each[place] for each in of_seeds], test, sides.classes, seed) for of_seeds in found]
        for index, name in enumerate(names[1:]):
            of_class = [classes[index] for classes in by_row]
            section.tables += _tables(test, name, rows, of_class, seeds, seed)
            dice = {
                AUGMENTED[row.name]: each.figures["Dice"]
                for row, each in zip(rows, of_class, strict=True)
                if row.name in AUGMENTED
            }
            section.pictures.append(curve(f"Dice of {name}, tested on {test.name}", dice, ADDED))
    section.facts |= {
        "seed": seed,
        "seeds": seeds,
        "steps": steps,
        "recipe": recipe.described(),
        "rows": [described(row) for row in rows],
        **sides.facts(),
        "elsewhere": [each.described() for both in elsewhere for each in both if each is not None],
    }
    return section


def _tables(
    test: Pairs, name: str, rows: Sequence[Training], found: Sequence[Scored], seeds: int, seed: int
) -> list[Table]:
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
                None if row.name == REAL else gained(each, baseline, seed),
                counts["missed"],
                counts["invented"],
                counts["rightly absent"],
            ]
        )
    first = found[0].counts
    unit = "mm" if test.in_mm else "pixels"
    metrics = [f"{metric} ({unit})" if metric in DISTANCES else metric for metric in METRICS]
    columns = ["trained on", "real", "synthetic", *metrics, "Dice gained", "missed", "invented", "rightly absent"]
    note = (
        "Figures are of slices, averaged over each patient's, then over patients and seeds; intervals are over the "
        f"{test.patient_count} patients. HD95 and ASD are in {unit}{_pixel(test)}. Of "
        f"{first['pictures']} pictures, all seeds together, {first['with it']} have the {name}. Where it is missed, "
        "or found and not there, overlaps count 0 and distances the picture's diagonal; where it is rightly not "
        f"found, there is no figure. Dice gained is of the pictures in which this row or {REAL!r} has a figure: "
        "whoever rightly finds nothing where the other invents something has 1. Counts are of pictures, and have no "
        "interval."
    )
    title = f"{name}, tested on {test.name}"
    spread: list[list[Cell]] = [
        [row.name, *(each.spread[metric] for metric in METRICS)] for row, each in zip(rows, found, strict=True)
    ]
    whole = Table(title, columns, cells, note)
    if seeds < 2:
        return [whole]
    return [
        whole,
        Table(
            f"{title}: deviation of the {seeds} seeds' means",
            ["trained on", *metrics],
            spread,
            "What the intervals above do not hold: another training. Of so few seeds a deviation has no interval.",
        ),
    ]


def _pixel(test: Pairs) -> str:
    if not test.in_mm:
        return f" of {test.size} x {test.size}, as the size of a pixel in mm is not known"
    assert test.pixels_mm is not None
    low, high = (" x ".join(f"{side:.4g}" for side in sides) for sides in test.pixels_mm)
    return f", of pixels of {low} mm{'' if low == high else f' to {high} mm'} by the files, {test.size} x {test.size}"
