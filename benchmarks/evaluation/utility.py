"""What samples are worth as training data: DynUNet trained on real pairs, on synthetic ones, and on both.

Every row takes the same number of steps, so that more data is not more training. Beside the rows of the paper stands
one whose synthetic masks were dealt to other pictures: what is lost if mask and picture do not belong together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.cache import Arrays, Cache
from benchmarks.evaluation.pairs import Masks, Pairs, together
from benchmarks.evaluation.segmentation import Found, Recipe, scores, segmented, trained
from benchmarks.evaluation.statistics import Groups, Interval, mean_of

RATIOS = (0.5, 1.0, 1.5, 2.0)
REAL, ALONE, SHUFFLED = "real", "synthetic", "synthetic, masks shuffled"
MIXED = "real + {:g}x"
AUGMENTED = {REAL: 0.0, **{MIXED.format(ratio): ratio for ratio in RATIOS}}  # how many times as many samples a row adds


@dataclass(frozen=True)
class Training:
    """What a row is trained on."""

    name: str
    pairs: Pairs
    real: int
    synthetic: int


def trainings(real: Pairs, synthetic: Pairs, ratios: Sequence[float], seed: int) -> Iterator[Training]:
    """Real alone, synthetic alone (as many), real and ``ratio`` times as many synthetic, and the shuffled ones.

    Ratios that there are not enough samples for are left out: a sample that comes twice is no other one.
    """
    order = np.random.default_rng(seed).permutation(len(synthetic))
    as_many = min(len(real), len(synthetic))
    yield Training(REAL, real, len(real), 0)
    yield Training(ALONE, synthetic.at(order[:as_many]), 0, as_many)
    for ratio in ratios:
        count = round(ratio * len(real))
        if 0 < count <= len(synthetic):
            yield Training(MIXED.format(ratio), together(real, synthetic.at(order[:count])), len(real), count)
    yield Training(SHUFFLED, shuffled(synthetic.at(order[:as_many])), 0, as_many)


def shuffled(pairs: Pairs) -> Pairs:
    """Every picture with the mask of the next, of another patient or sample."""
    rows = np.argsort(pairs.groups, kind="stable")
    moved = np.empty_like(rows)
    moved[rows] = np.roll(rows, len(rows) // 2)
    from dataclasses import replace

    return replace(pairs, masks=pairs.masks[moved])


def predictions(
    training: Training,
    tests: Sequence[Pairs],
    classes: int,
    recipe: Recipe,
    steps: int,
    seed: int,
    cache: Cache,
) -> list[Masks]:
    """What a segmenter so trained finds in each test set; kept, so that a run that was cut short goes on."""
    made_of = {
        "trained_on": training.pairs.digest,
        "tested_on": [test.digest for test in tests],
        "recipe": recipe.described(),
        "classes": classes,
        "steps": steps,
        "seed": seed,
    }
    kept = cache.arrays("segmented", made_of, partial(_predicted, training, tests, classes, recipe, steps, seed))
    return [kept[str(number)] for number in range(len(tests))]


def _predicted(
    training: Training, tests: Sequence[Pairs], classes: int, recipe: Recipe, steps: int, seed: int
) -> Arrays:
    network = trained(training.pairs, classes, recipe, steps, seed, f"{training.name}, seed {seed}")
    return {str(number): segmented(network, test.images) for number, test in enumerate(tests)}


@dataclass(frozen=True)
class Scored:
    """Of one class in one test set, over all seeds.

    figures: by metric, the mean over patients and seeds, with a bootstrap over patients. spread: the deviation of
    the seeds' means; NaN of one seed. counts: pictures, of all seeds together. by_patient: by metric, means [seeds,
    patients], NaN of a patient with nothing. dice: [seeds, pictures], NaN where a seed rightly finds nothing. groups:
    the patients of the pictures.
    """

    figures: Mapping[str, Interval]
    spread: Mapping[str, float]
    counts: Mapping[str, int]
    by_patient: Mapping[str, NDArray[np.float64]]
    dice: NDArray[np.float64]
    groups: Groups


def scored(predicted: Sequence[Masks], test: Pairs, classes: int, seed: int = 0) -> list[Scored]:
    """Of each class but the background, for what segmenters of several seeds found in a test set.

    Distances are in mm if the test set's pixels are known, else in pixels.
    """
    by_seed = [scores(masks, test.masks, classes, test.spacing if test.in_mm else None) for masks in predicted]
    return [_of_class([found[k] for found in by_seed], test, seed) for k in range(classes - 1)]


def _of_class(by_seed: Sequence[Found], test: Pairs, seed: int) -> Scored:
    by_patient = {
        metric: np.stack([_by_patient(found.figures[metric], test.groups) for found in by_seed])
        for metric in by_seed[0].figures
    }
    figures = {metric: over_patients(known_mean(means), seed) for metric, means in by_patient.items()}
    spread = {metric: spread_of(means) for metric, means in by_patient.items()}
    counts = {
        "pictures": sum(len(found.there) for found in by_seed),
        "with it": sum(int(found.there.sum()) for found in by_seed),
        "missed": sum(int(found.missed.sum()) for found in by_seed),
        "invented": sum(int(found.invented.sum()) for found in by_seed),
        "rightly absent": sum(int((~found.there & ~found.found).sum()) for found in by_seed),
    }
    dice = np.stack([found.figures["Dice"] for found in by_seed])
    return Scored(figures, spread, counts, by_patient, dice, test.groups)


def _by_patient(values: NDArray[np.float64], groups: Groups) -> NDArray[np.float64]:
    """The mean of what each patient has that is not NaN; NaN of a patient with nothing."""
    there = np.isfinite(values)
    sums = np.bincount(groups[there], values[there], groups.max() + 1)
    counts = np.bincount(groups[there], minlength=groups.max() + 1)
    return np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)


def known_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Over the first axis, of what is not NaN; NaN where nothing is."""
    there = np.isfinite(values)
    sums = np.where(there, values, 0).sum(0)
    return np.divide(sums, there.sum(0), out=np.full(values.shape[1:], np.nan), where=there.any(0))


def over_patients(values: NDArray[np.float64], seed: int = 0) -> Interval:
    """The mean of a figure of each patient [patients], with a bootstrap over these."""
    return mean_of(values, np.arange(len(values)), seed)


def spread_of(values: NDArray[np.float64]) -> float:
    """The deviation of the seeds' means, of figures [seeds, patients]; NaN of one seed."""
    means = known_mean(values.T)
    return float(means.std(ddof=1)) if len(means) > 1 else float("nan")


def gained(row: Scored, baseline: Scored, seed: int = 0) -> Interval:
    """How much Dice rose, patient by patient, in the pictures in which a seed of either has a figure.

    Whoever rightly finds nothing where another invents something has 1: else what is invented would be compared with
    nothing, and drop out.
    """
    compared = (np.isfinite(row.dice) | np.isfinite(baseline.dice)).any(0)
    after, before = (np.nan_to_num(each.dice, nan=1.0).mean(0) for each in (row, baseline))
    return over_patients(_by_patient(np.where(compared, after - before, np.nan), row.groups), seed)


def described(training: Training) -> dict[str, Any]:
    return {
        "row": training.name,
        "real": training.real,
        "synthetic": training.synthetic,
        "sha256": training.pairs.digest,
    }
