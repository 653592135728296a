"""What every row draws under, where the model is one that draws under a mask or a picture."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Condition

SHADES = 4  # of a picture of discs


def conditions(condition: Condition, count: int, pictures: NDArray[np.float32] | None = None) -> NDArray[Any]:
    """[count, *shape]: the first of the pictures that were given, the same discs for every sample, or label 0."""
    if pictures is not None:
        return pictures[:count]
    if condition.is_label:
        return np.zeros((count, 1), np.int64)
    masks = discs(condition, count)
    if condition.classes is not None:
        return masks
    low, high = condition.limits
    return (low + masks.astype(np.float32) / (SHADES - 1) * (high - low)).astype(np.float32)


def discs(condition: Condition, count: int) -> NDArray[np.uint8]:
    """[count, *shape], the same for every sample: a disc of each class, or shade, on that of the next.

    With the classes of a heart: the left ventricle in the ring of its muscle, and the right one as a crescent beside.
    """
    height, width = condition.shape[-2:]
    row, column = np.ogrid[0.5:height, 0.5:width]
    classes = condition.classes or SHADES
    mask = np.zeros((count, *condition.shape), np.uint8)
    for number in reversed(range(1, classes)):
        radius = min(height, width) * (number + 1) / (4 * classes)
        centre = width * (0.5 - 0.1 * max(0, number - 2))
        mask[..., np.hypot(row - height / 2, column - centre) < radius] = number
    return mask
