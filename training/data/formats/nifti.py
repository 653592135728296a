"""One NIfTI file as it is stored."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from training.data.problems import BadFileError

AXES = "x, y, slice, time"


def read_nifti(path: Path, frames: Mapping[str, int | None]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Voxels [x, y, slice] or, where frames are numbered, [x, y, slice, time], and the affine to mm."""
    if not path.is_file():
        raise BadFileError("is missing")
    try:
        file: Any = nib.load(path)
        voxels, affine = np.asanyarray(file.dataobj), file.affine
    except Exception as error:  # a decoder raises anything on a broken file
        reason = str(error).replace(str(path), path.name) or type(error).__name__
        raise BadFileError(f"cannot be read ({reason})") from error
    numbers = [frame for frame in frames.values() if frame is not None]
    axes = 4 if numbers else 3
    if voxels.ndim != axes or not voxels.size:
        raise BadFileError(f"has the shape {voxels.shape}; it must be ({AXES if numbers else AXES[:-6]})")
    for number in numbers:
        if not 0 <= number < voxels.shape[3]:
            raise BadFileError(f"has no frame {number}; there are {voxels.shape[3]}, counted from 0")
    if voxels.dtype.kind not in "buif":
        raise BadFileError(f"holds {voxels.dtype} values, not numbers")
    return voxels, affine
