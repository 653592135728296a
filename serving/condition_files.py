"""Masks from a file, to draw images under."""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

NAME = "mask"


class MaskFileError(Exception):
    """A file holds no masks; the message names it and what it must hold."""


def read_masks(file: Path) -> NDArray[np.uint8]:
    """The masks [N, 1, H, W] in a file: the array "mask" of an .npz, as pairs.npz has it, or an .npy.

    Either may also hold [N, H, W]. Whether classes and size are a model's, the model says.
    Raises MaskFileError.
    """
    try:
        held = np.load(file, allow_pickle=False)
        if not isinstance(held, np.ndarray):
            with held as arrays:
                if NAME not in arrays:
                    raise MaskFileError(f"{file} has no array {NAME!r}; it holds {', '.join(arrays) or 'nothing'}")
                held = arrays[NAME]
    except (ValueError, EOFError, OSError, BadZipFile) as error:
        raise MaskFileError(f"{file} is no .npz or .npy of masks: {error}") from None
    masks = held[:, None] if held.ndim == 3 else held
    if masks.dtype != np.uint8:
        raise MaskFileError(f"{file} holds {held.dtype} values; masks must be uint8")
    if masks.ndim != 4 or masks.shape[1] != 1 or not masks.size:
        raise MaskFileError(f"{file} holds an array of shape {list(held.shape)}; it must be [N, H, W] or [N, 1, H, W]")
    return masks
