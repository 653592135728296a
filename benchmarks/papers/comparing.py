"""What both papers' tables have in common: distances to real pictures, and what a segmenter learns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluation import features as of
from benchmarks.evaluation.cache import Cache
from benchmarks.evaluation.distances import frechet_between, kernel_distance
from benchmarks.evaluation.features import Extractor, noise_like
from benchmarks.evaluation.measure_quality import segmenter_features
from benchmarks.evaluation.pairs import Pairs, drawn_by_patient, of_same_patients
from benchmarks.evaluation.segmentation import METRICS, RECIPES, Recipe, Segmenter, steps_of
from benchmarks.evaluation.similarity import Lpips
from benchmarks.evaluation.statistics import Interval
from benchmarks.evaluation.utility import (
    Scored,
    Training,
    gained,
    known_mean,
    over_patients,
    predictions,
    scored,
    spread_of,
)
from benchmarks.papers.amounts import Amounts

FLOOR, CEILING, SHUFFLED = "real, other patients", "noise", "masks shuffled"
Figure = dict[str, float | None]


@dataclass(frozen=True)
class Judge:
    """Measures by the same seed, segmenter and networks. files: networks to compare by, name and path; vgg16: weights
    for LPIPS."""

    amounts: Amounts
    cache: Cache
    seed: int = 0
    files: Sequence[tuple[str, Path]] = ()
    vgg16: Path | None = None

    @property
    def recipe(self) -> Recipe:
        recipe = RECIPES[self.amounts.preset]
        return replace(recipe, epochs=self.amounts.epochs or recipe.epochs)

    @cached_property
    def lpips(self) -> Lpips | None:
        return None if self.vgg16 is None else Lpips(self.vgg16)

    def extractors(self, reference: Pairs, classes: int) -> list[Extractor]:
        found = (
            [segmenter_features(Segmenter(reference, self.recipe, classes, self.seed, self.cache))]
            if reference.has_masks
            else [of.six_numbers()]
        )
        found += [of.radiomics()] if self.amounts.radiomics and of.has_radiomics() else []
        return found + self.networks(reference.size)

    def networks(self, size: int) -> list[Extractor]:
        """The user's, tried on pictures of this size."""
        return [of.of_network(name, file, size) for name, file in self.files]

    def distances(
        self, reference: Pairs, other: Pairs, sides: Mapping[str, Pairs], classes: int
    ) -> dict[str, dict[str, Any]]:
        """Of each side, of other real patients and of noise: "pictures", and by the name of a distance a figure."""
        count = min(len(reference), len(other), *map(len, sides.values()))
        reference, other = (drawn_by_patient(each, count, self.seed) for each in (reference, other))
        sides = {name: drawn_by_patient(each, count, self.seed) for name, each in sides.items()}
        sides |= {FLOOR: other, CEILING: noise_like(reference, self.seed)}
        rows: dict[str, dict[str, Any]] = {name: {"pictures": count} for name in sides}
        for extractor in self.extractors(reference, classes):
            real, others = (reference, other), list(sides.values())
            of_reference, _, *of_sides = extractor.on_one_scale(real, others, self.cache)
            for (name, pairs), features in zip(sides.items(), of_sides, strict=True):
                whose = reference.groups, pairs.groups
                same = of_same_patients(reference, pairs)
                kernel = kernel_distance(of_reference, features, *whose, self.seed, same=same)
                frechet = frechet_between(of_reference, features, *whose, self.seed)
                rows[name] |= {extractor.kernel_name(): kernel.as_json(), extractor.frechet_name(): frechet.as_json()}
        return rows

    def utility(
        self, rows: Sequence[Training], tests: Sequence[Pairs], classes: int
    ) -> dict[str, dict[str, dict[str, Any]]]:
        """By row and test set: "classes", the figures of each but the background, means over patients and seeds, and
        "mean", those of each patient's classes together; all with "spread", the deviation of the seeds' means.

        The first row is what the others' Dice is compared with. All are trained for as many steps as it would be.
        """
        steps = steps_of(self.recipe, len(rows[0].pairs))
        found: dict[str, dict[str, list[Scored]]] = {}
        for row in rows:
            by_seed = [
                predictions(row, tests, classes, self.recipe, steps, self.seed + number, self.cache)
                for number in range(self.amounts.seeds)
            ]
            found[row.name] = {
                test.name: scored([each[place] for each in by_seed], test, classes, self.seed)
                for place, test in enumerate(tests)
            }
        first = found[rows[0].name]
        return {
            name: {
                test: {
                    "classes": [
                        _told(each, None if name == rows[0].name else gained(each, base, self.seed))
                        for each, base in zip(of_classes, first[test], strict=True)
                    ],
                    "mean": {metric: _over_classes(of_classes, metric, self.seed) for metric in METRICS},
                }
                for test, of_classes in by_test.items()
            }
            for name, by_test in found.items()
        }


def _over_classes(classes: Sequence[Scored], metric: str, seed: int) -> Figure:
    of_classes = np.stack([each.by_patient[metric] for each in classes])  # [classes, seeds, patients]
    of_seeds, of_patients = known_mean(of_classes), known_mean(of_classes.swapaxes(0, 1))
    return _with_spread(over_patients(known_mean(of_patients), seed), spread_of(of_seeds))


def _with_spread(figure: Interval, spread: float) -> Figure:
    return {**figure.as_json(), "spread": None if np.isnan(spread) else spread}


def _told(found: Scored, gain: Interval | None) -> dict[str, Figure]:
    figures = {metric: _with_spread(value, found.spread[metric]) for metric, value in found.figures.items()}
    return figures if gain is None else {**figures, "Dice gained": gain.as_json()}
