"""What masks look like: the cardiac paper's Table III, and lesions of mammograms."""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, stats

from benchmarks.evaluation.pairs import Pairs
from benchmarks.evaluation.statistics import Array, Compared, Groups, Interval, compare, holm, ks_interval

ANY_SIDE = np.ones((3, 3), bool)
TABLE_III = ("pixels %", "area", "roundness", "eccentricity", "solidity")
RING = 4  # pixels around a lesion that it is compared with
TISSUE = 0.04  # of white; what is darker is no breast


def features_of(pairs: Pairs) -> dict[str, Array]:
    """By "STRUCTURE: FEATURE", a figure of each pair [N]; NaN of a structure that its mask lacks.

    pixels %: all pixels of the class, of the picture's. Of the largest component alone: area (pixels), roundness
    4 pi area / perimeter^2, eccentricity, solidity. Of all components: count, and as a share of the picture's side the
    row and column of the centre. Where there are two classes, a lesion's contrast too: how much brighter its tissue is
    than that within 4 pixels of it, in deviations of the latter, and the share of it that lies on black film.
    """
    names = pairs.labels or tuple(f"class {k}" for k in range(int(pairs.masks.max()) + 1))
    rows: dict[str, list[float]] = {}
    for image, mask in zip(pairs.images, pairs.masks, strict=True):
        for index, name in enumerate(names[1:], 1):
            found = _of_structure(mask == index)
            if len(names) == 2:
                found |= _on_picture(image, mask == index)
            for feature, value in found.items():
                rows.setdefault(f"{name}: {feature}", []).append(value)
    return {name: np.array(values) for name, values in rows.items()}


def _of_structure(inside: NDArray[np.bool_]) -> dict[str, float]:
    from skimage.measure import regionprops

    if not inside.any():
        features = (*TABLE_III, "components", "row", "column")
        return {feature: 0.0 if feature == "components" else np.nan for feature in features}
    labels, count = ndimage.label(inside, ANY_SIDE)
    sizes = np.bincount(labels.ravel())[1:]
    (region,) = regionprops((labels == 1 + sizes.argmax()).astype(np.uint8))
    row, column = (np.argwhere(inside).mean(0) + 0.5) / inside.shape
    perimeter = region.perimeter_crofton  # whose discs are round from two pixels up
    return {
        "pixels %": 100 * float(inside.mean()),
        "area": float(region.area),
        "roundness": 4 * np.pi * region.area / perimeter**2 if perimeter > 0 else np.nan,
        "eccentricity": float(region.eccentricity),
        "solidity": float(region.solidity) if region.area > 2 else 1.0,
        "components": float(count),
        "row": float(row),
        "column": float(column),
    }


def _on_picture(image: NDArray[np.float32], inside: NDArray[np.bool_]) -> dict[str, float]:
    if not inside.any():
        return {"contrast": np.nan, "off the breast %": np.nan}
    tissue = image > TISSUE
    ring, lesion = ndimage.binary_dilation(inside, ANY_SIDE, RING) & ~inside & tissue, inside & tissue
    spread = float(image[ring].std()) if ring.sum() > 1 and lesion.any() else 0.0
    contrast = (float(image[lesion].mean()) - float(image[ring].mean())) / spread if spread > 0 else np.nan
    return {"contrast": contrast, "off the breast %": 100 * float((~tissue[inside]).mean())}


def absent(pairs: Pairs) -> Mapping[str, int]:
    """How many masks lack each structure."""
    return {name: int(where.sum()) for name, where in lacking(pairs).items()}


def lacking(pairs: Pairs) -> Mapping[str, NDArray[np.bool_]]:
    """Which masks [N] lack each structure."""
    names = pairs.labels or tuple(f"class {k}" for k in range(int(pairs.masks.max()) + 1))
    return {name: ~(pairs.masks == index).any((1, 2)) for index, name in enumerate(names[1:], 1)}


def gaps(
    one: Mapping[str, Array], other: Mapping[str, Array], groups: Groups, others: Groups
) -> Iterator[tuple[str, Interval]]:
    """Kolmogorov and Smirnov's D of each feature that two masks of each side have, with ``ks_interval``."""
    for name in one:
        there, also = np.isfinite(one[name]), np.isfinite(other.get(name, np.zeros(0)))
        if min(there.sum(), also.sum()) >= 2:
            d = stats.ks_2samp(one[name][there], other[name][also]).statistic
            yield name, ks_interval(float(d), groups[there], others[also])


def compared_features(
    one: Mapping[str, Array], other: Mapping[str, Array], groups: Groups, seed: int = 0, others: Groups | None = None
) -> Iterator[tuple[str, Compared, float]]:
    """Each feature's comparison, of what ``features_of`` gave, and its p after Holm's correction for all of them.

    groups, others: the patients of the sides; None: each of the other side is its own.
    """
    both = {name: compare(one[name], other[name], groups, seed, others=others) for name in one if name in other}
    found = {name: each for name, each in both.items() if each is not None}
    adjusted = holm([each.p for each in found.values()])
    yield from zip(found, found.values(), adjusted, strict=True)
