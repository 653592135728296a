"""Whether a mask of the heart, 1 LV, 2 MYO, 3 RV, can be one: an LV within a ring of MYO, and an RV beside it."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from training.data.classes import HEART

LV, MYO, RV = (HEART.index(name) for name in ("LV", "MYO", "RV"))
SIDES = ndimage.generate_binary_structure(2, 1)
SIDES_AND_CORNERS = ndimage.generate_binary_structure(2, 2)


def faults(mask: NDArray[np.uint8]) -> list[str]:
    """What is wrong with a mask [H, W] of class indices; nothing if it is a heart.

    An RV may be missing, as it is near the apex. Pixels that touch at a corner belong together; holes do not.
    """
    return list(_faults(mask))


def _faults(mask: NDArray[np.uint8]) -> Iterator[str]:
    for name, index in {"LV": LV, "MYO": MYO}.items():
        if (count := _pieces(mask == index)) != 1:
            yield f"{name} in {count} pieces"
    if (count := _pieces(mask == RV)) > 1:
        yield f"RV in {count} pieces"
    around = ndimage.binary_dilation(mask == LV, SIDES) & (mask != LV)
    if (mask[around] != MYO).any() or _touches_the_edge(mask == LV):
        yield "LV not within MYO"
    if _has_holes(mask == LV):
        yield "LV with a hole"
    if _has_holes((mask == LV) | (mask == MYO)):
        yield "MYO with a hole beside the LV"
    if _has_holes(mask == RV):
        yield "RV around something"
    beside = ndimage.binary_dilation(mask == RV, SIDES_AND_CORNERS)
    if (mask == RV).any() and not (mask[beside] == MYO).any():
        yield "RV apart from MYO"


def _pieces(region: NDArray[np.bool_]) -> int:
    _, count = ndimage.label(region, SIDES_AND_CORNERS)
    return int(count)


def _has_holes(region: NDArray[np.bool_]) -> bool:
    return bool((ndimage.binary_fill_holes(region) != region).any())


def _touches_the_edge(region: NDArray[np.bool_]) -> bool:
    return bool(region[[0, -1]].any() or region[:, [0, -1]].any())
