"""What is wrong with a pair, by the classes of its mask."""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality import anatomy, lesions
from training.data.classes import HEART, LESION

# Of an image float32 [H, W] in [0, 1] and its mask uint8 [H, W]. Real hearts have few faults; of breasts only phantoms.
FAULTS: Mapping[tuple[str, ...], Callable[[NDArray[np.float32], NDArray[np.uint8]], list[str]]] = {
    HEART: lambda _, mask: anatomy.faults(mask),
    LESION: lesions.faults,
}
# Of a mask without its image. A lesion's place is judged by the breast, which the image alone shows.
FAULTS_OF_MASKS: Mapping[tuple[str, ...], Callable[[NDArray[np.uint8]], list[str]]] = {HEART: anatomy.faults}
