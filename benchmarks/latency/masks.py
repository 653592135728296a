"""The mask under which every row draws, where the model is an image model alone."""

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Condition


def discs(condition: Condition, count: int) -> NDArray[np.uint8]:
    """[count, *shape], the same for every sample: a disc of each class on that of the next.

    With the classes of a heart: the left ventricle in the ring of its muscle, and the right one as a crescent beside.
    """
    height, width = condition.shape[-2:]
    row, column = np.ogrid[0.5:height, 0.5:width]
    mask = np.zeros((count, *condition.shape), np.uint8)
    for number in reversed(range(1, condition.classes)):
        radius = min(height, width) * (number + 1) / (4 * condition.classes)
        centre = width * (0.5 - 0.1 * max(0, number - 2))
        mask[..., np.hypot(row - height / 2, column - centre) < radius] = number
    return mask
