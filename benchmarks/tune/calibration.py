"""How often the gate errs, counted on phantoms: the reference again must pass, and what was made worse must not."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage, stats

from benchmarks.evaluation.cache import Cache
from benchmarks.evaluation.features import Extractor
from benchmarks.evaluation.pairs import Floats, Pairs
from benchmarks.evaluation.segmentation import RECIPES, Segmenter
from benchmarks.evaluation.statistics import Interval
from benchmarks.tune import gate
from benchmarks.tune.comparison import Comparison
from benchmarks.tune.gate import Criterion, Limits, Verdict
from benchmarks.tune.reader import reader_of
from training.data.classes import LESION
from training.data.phantom import phantom_pair

ROUNDING, NOISE, BLUR = 1e-3, 0.1, 1.5  # of a range of 1; the last in pixels


def _grain(images: Floats) -> NDArray[np.float64]:
    """Means, spreads and how rough pictures are: enough to tell a blur from noise, and takes no time."""
    steps = [np.diff(images, axis=axis) for axis in (1, 2)]
    rough = [figure for step in steps for figure in (np.abs(step).mean((1, 2)), step.std((1, 2)))]
    return np.stack([images.mean((1, 2)), images.std((1, 2)), *rough], axis=1).astype(np.float64)


GRAIN = Extractor("grain", "means, spreads and first differences", _grain)


@dataclass(frozen=True)
class Planted:
    """A candidate of known worth.

    is_worse: than the limits allow. is_paired: whether its seeds are the reference's samples. make(reference, others,
    random): others are phantoms of other seeds. by: the criterion whose verdicts are counted, where it is worse by just
    what that one must not let pass, as the others may refuse it too; "": all of them together.
    """

    name: str
    is_worse: bool
    is_paired: bool
    make: Callable[[Pairs, Pairs, Generator], Pairs]
    by: str = ""

    def verdict(self, criteria: Sequence[Criterion]) -> Verdict:
        return gate.together([each for each in criteria if self.by in ("", each.name)])


def _with_images(pairs: Pairs, images: NDArray[Any]) -> Pairs:
    return replace(pairs, images=images.clip(0, 1).astype(np.float32))


def _rounded(pairs: Pairs, _: Pairs, random: Generator) -> Pairs:
    return _with_images(pairs, pairs.images + ROUNDING * random.standard_normal(pairs.images.shape))


def _noisy(pairs: Pairs, _: Pairs, random: Generator) -> Pairs:
    return _with_images(pairs, pairs.images + NOISE * random.standard_normal(pairs.images.shape))


def _blurred(pairs: Pairs, *_: object) -> Pairs:
    return _with_images(pairs, ndimage.gaussian_filter(pairs.images, (0, BLUR, BLUR)))


def _shuffled(pairs: Pairs, _: Pairs, random: Generator) -> Pairs:
    return replace(pairs, masks=pairs.masks[random.permutation(len(pairs))])


def _others_at_the_limit(pairs: Pairs, others: Pairs, random: Generator) -> Pairs:
    """Each sample is another with the probability that is just too much."""
    swapped = (random.random(len(pairs)) < Limits().bad_rate)[:, None, None]
    both = ((getattr(others, what), getattr(pairs, what)) for what in ("images", "masks"))
    images, masks = (np.where(swapped, other, own) for other, own in both)
    return replace(pairs, images=images, masks=masks)


def _faulty_at_the_limit(_: Pairs, others: Pairs, random: Generator) -> Pairs:
    """Each mask lacks its mass with the probability that is just too much."""
    masks = others.masks.copy()
    masks[random.random(len(others)) < Limits().faults] = 0
    return replace(others, masks=masks)


def _strangers_at_the_limit(_: Pairs, others: Pairs, random: Generator) -> Pairs:
    """Each picture is another mask's with the probability that is just too much."""
    swapped = (random.random(len(others)) < Limits().lost)[:, None, None]
    return replace(others, images=np.where(swapped, np.roll(others.images, 1, axis=0), others.images))


PLANTED = (
    Planted("the reference again", False, True, lambda pairs, *_: pairs),
    Planted("the reference, rounded", False, True, _rounded),
    Planted("as good, other seeds", False, False, lambda _, others, __: others),
    Planted("one in 20 is another", True, True, _others_at_the_limit, "seed by seed"),
    Planted("one in 20 more without a mass, other seeds", True, False, _faulty_at_the_limit, "pairs that cannot be"),
    Planted("one in 20 of another mask, other seeds", True, False, _strangers_at_the_limit, "pictures follow masks"),
    Planted("noise", True, True, _noisy),
    Planted("blur, not seed by seed", True, False, _blurred),
    Planted("masks shuffled, not seed by seed", True, False, _shuffled),
)


@dataclass(frozen=True)
class Rate:
    planted: Planted
    verdicts: Mapping[Verdict, int]

    @property
    def accepted(self) -> Interval:
        """The share, with the exact limits of Clopper and Pearson, 95 % each."""
        count = sum(self.verdicts.values())
        hits = self.verdicts.get("accepted", 0)
        found = stats.binomtest(hits, count).proportion_ci(1 - 2 * gate.CHANCE, "exact")
        return Interval(hits / count, float(found.low), float(found.high))


def calibrated(
    trials: int, count: int, size: int, seed: int, planted: Sequence[Planted] = PLANTED
) -> Iterator[list[Rate]]:
    """After each trial, how all before it ended. Each has real pairs, a reference and others of its own seeds."""
    ended: list[Counter[Verdict]] = [Counter() for _ in planted]
    learnt = phantoms(np.random.default_rng([seed, trials]), count, size)
    reader = reader_of(Segmenter(learnt, RECIPES["small"], len(LESION), seed))
    for trial in range(trials):
        random = np.random.default_rng([seed, trial])
        real, reference, others = (phantoms(random, count, size) for _ in range(3))
        with TemporaryDirectory() as folder:
            comparison = Comparison(real, [GRAIN], reader, Limits(), Cache(Path(folder)), trial)
            known = comparison.known(reference)
            for each, verdicts in zip(planted, ended, strict=True):
                made = each.make(reference, others, random)
                verdicts[each.verdict(comparison.criteria(known, made, each.is_paired)[0])] += 1
        yield [Rate(*both) for both in zip(planted, ended, strict=True)]


def phantoms(random: Generator, count: int, size: int) -> Pairs:
    """Of seeds that are drawn."""
    seeds = random.integers(2**32, size=count)
    pairs = [phantom_pair(int(seed), size) for seed in seeds]
    images = np.stack([image[0] / 2 + 0.5 for image, _ in pairs]).astype(np.float32)
    names = tuple(f"phantom {row} ({seed})" for row, seed in enumerate(seeds))
    masks = np.stack([mask[0] for _, mask in pairs])
    return Pairs("phantoms", images, masks, LESION, names, names, True, {"layout": "phantoms"})
