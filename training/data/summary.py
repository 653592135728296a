"""What a data set is, in figures that are printed before training and kept with a run, and what is odd about it."""

from collections.abc import Mapping, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.classes import HEART, LESION
from training.data.dataset import LoadedPairs, Unpaired
from training.data.problems import some

PERCENTILES = (0.1, 1, 50, 99, 99.9)
BINS = 4096  # of grey levels from -1 to 1: percentiles are exact to a two-thousandth of the range
DARK, BRIGHT = -0.9, 0.9  # where 99.9 % of all pixels lie below or above, something is wrong
DIM = -0.75  # an image without brighter pixels uses less than an eighth of the range
COVERED = 0.5  # share of a mask that is lesion
ENCLOSED = 0.7  # share of the LV's edge that borders on MYO; with the classes in another order it is below a half
LV, MYO = HEART.index("LV"), HEART.index("MYO")


def summarise(dataset: Sized) -> dict[str, Any]:
    """The figures of a data set and its ``warnings``, as JSON holds them.

    Of pairs in memory: how many, what the reader decided, ``grey`` (lowest and highest level and percentiles, in
    [-1, 1]) and, where there are masks, ``empty_masks`` and ``classes`` (in how many masks each is, and its share of
    their pixels). Of images of two kinds, ``kinds``: the same of each. Of others, which are drawn when they are asked
    for: how many.
    """
    if isinstance(dataset, Unpaired):
        kinds = {name: summarise(kind) for name, kind in zip(dataset.names, (dataset.a, dataset.b), strict=True)}
        warnings = [f"{name}: {warning}" for name, kind in kinds.items() for warning in kind.pop("warnings")]
        return {"pairs": len(dataset), "kinds": kinds, "warnings": warnings}
    if not isinstance(dataset, LoadedPairs):
        return {"pairs": len(dataset), "classes": list(getattr(dataset, "labels", ())), "warnings": []}
    images = [item["image"].numpy() for item in dataset.items]
    grey = _grey(images)
    account = {"pairs": len(dataset), **dataset.reading, "grey": grey}
    warnings = [*dataset.warnings, *_odd_images(dataset, images, grey)]
    if dataset.labels:
        masks = [item["mask"].numpy()[0] for item in dataset.items]
        pixels = np.array([np.bincount(mask.ravel(), minlength=len(dataset.labels)) for mask in masks])
        account["empty_masks"] = int((pixels[:, 1:].sum(axis=1) == 0).sum())
        account["classes"] = {
            label: {"masks": int((count > 0).sum()), "share": _share(count, pixels.sum(axis=1))}
            for label, count in zip(dataset.labels, pixels.T, strict=True)
        }
        warnings += _odd_masks(dataset, masks, pixels)
    return {**account, "warnings": warnings}


def lines(summary: Mapping[str, Any]) -> list[str]:
    """A summary to read: a line for each kind of figure, then the warnings."""
    known = ("pairs", "grey", "empty_masks", "classes", "kinds", "warnings")
    text = [f"data: {summary['pairs']} pairs"]
    for name, kind in summary.get("kinds", {}).items():
        first, *more = lines({**kind, "warnings": []})
        text += [first.replace("data:", f"  {name}:").replace("pairs", "images"), *(f"  {line}" for line in more)]
    decided = {name.replace("_", " "): value for name, value in summary.items() if name not in known}
    if decided:
        text.append(f"  {_flat(decided)}")
    if "grey" in summary:
        text.append("  grey levels in [-1, 1]: " + _flat(summary["grey"]))
    if "empty_masks" in summary:
        classes = (
            f"{label} in {figures['masks']} masks ({100 * figures['share']:.2g} % of their pixels)"
            for label, figures in list(summary["classes"].items())[1:]
        )
        text.append(f"  masks: {', '.join(classes)}; {summary['empty_masks']} are empty")
    return [*text, *(f"  Warning: {warning}" for warning in summary["warnings"])]


def _flat(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_flat(each)}" for name, each in value.items()) or "none"
    if isinstance(value, list | tuple):
        return " x ".join("-".join(f"{end:g}" for end in dict.fromkeys(ends)) for ends in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _grey(images: list[NDArray[np.float32]]) -> dict[str, float]:
    counts = np.sum([np.histogram(image, BINS, (-1, 1))[0] for image in images], axis=0)
    reached = np.cumsum(counts) / counts.sum()
    levels = {f"{share:g} %": (np.searchsorted(reached, share / 100) + 0.5) / BINS * 2 - 1 for share in PERCENTILES}
    ends = {"lowest": min(image.min() for image in images), "highest": max(image.max() for image in images)}
    ordered = {"lowest": ends["lowest"], **levels, "highest": ends["highest"]}
    return {name: round(float(np.clip(level, *ends.values())), 4) for name, level in ordered.items()}


def _share(count: NDArray[np.int64], all_pixels: NDArray[np.int64]) -> float:
    """Of a class in the masks that have it."""
    there = count > 0
    return round(float(count[there].sum() / all_pixels[there].sum()), 6) if there.any() else 0.0


def _odd_images(dataset: LoadedPairs, images: list[NDArray[np.float32]], grey: Mapping[str, float]) -> list[str]:
    odd = []
    if grey["99.9 %"] < DARK:
        odd.append(
            f"nearly all is black: 99.9 % of all pixels lie below {grey['99.9 %']:g}, where white is 1; were the "
            "images divided by their white twice, or do they use a small part of their range?"
        )
    if grey["0.1 %"] > BRIGHT:
        odd.append(f"nearly all is white: 99.9 % of all pixels lie above {grey['0.1 %']:g}, where black is -1")
    if blank := [name for name, image in zip(dataset.names, images, strict=True) if image.min() == image.max()]:
        odd.append(f"{len(blank)} of {len(images)} images have one grey level alone: {some(blank)}")
    bright = [name for name, image in zip(dataset.names, images, strict=True) if image.max() >= DIM]
    dim = [name for name in dataset.names if name not in {*bright, *blank}]
    if dim and bright:
        by = f"white is as bright as it is for {some(bright)} alone" if len(bright) < len(dim) else some(dim)
        odd.append(f"{len(dim)} of {len(images)} images use less than an eighth of the grey range: {by}")
    return odd


def _odd_masks(dataset: LoadedPairs, masks: list[NDArray[np.uint8]], pixels: NDArray[np.int64]) -> list[str]:
    odd = []
    if not pixels[:, 1:].any():
        odd.append("all masks are empty")
    else:
        there = dict(zip(dataset.labels, pixels.any(axis=0), strict=True))
        odd += [f"no mask has {label}" for label in dataset.labels[1:] if not there[label]]
    share = 1 - pixels[:, 0] / pixels.sum(axis=1)
    covered = [dataset.names[index] for index in (share > COVERED).nonzero()[0]]
    if covered and dataset.labels == LESION:  # a heart may fill its picture
        odd.append(
            f"more than half is lesion in {len(covered)} of {len(masks)} masks, {100 * share.max():.3g} % at most; "
            f"are they inverted? {some(covered)}"
        )
    if dataset.labels == HEART:
        edge = np.sum([_edge_of_lv(mask) for mask in masks], axis=0)
        if edge[MYO] < ENCLOSED * edge.sum():
            odd.append(
                f"the LV does not lie within MYO: {100 * edge[MYO] / edge.sum():.2g} % of its edge borders on MYO; the "
                "order of the labels is probably another"
            )
    return odd


def _edge_of_lv(mask: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How many sides of pixels the LV shares with each other class, in a slice that has LV and MYO."""
    counts = np.zeros(len(HEART), np.int64)
    if not ((mask == LV).any() and (mask == MYO).any()):
        return counts
    for one, other in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])):
        for inside, outside in ((one, other), (other, one)):
            counts += np.bincount(outside[(inside == LV) & (outside != LV)], minlength=len(HEART))
    return counts
