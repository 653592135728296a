"""Short-axis stacks and their masks, read from NIfTI files and checked against each other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from training.data.images import BadFileError, Floats
from training.data.loaded import Problems
from training.data.recordings import Recording

AXES = "x, y, slice, time"
MATCHING = 1e-3  # mm, and the cosines of axes at right angles


class Stack(NamedTuple):
    """One moment: ``image`` float32 and ``labels`` uint8, both [x, y, slice], and the ``spacing`` of those in mm."""

    image: Floats
    labels: NDArray[np.uint8]
    spacing: tuple[float, ...]


def read_stacks(recording: Recording, problems: Problems) -> dict[str, Stack] | None:
    """The stack of every frame, by its name, or None and what is wrong with either file added to ``problems``."""
    images = mask = None
    with problems.of(recording.image):
        image, affine = _read(recording.image, recording.frames)
        _check_orientation(image, affine)
        images = {name: _grey_levels(_moment(image, frame)) for name, frame in recording.frames.items()}
    with problems.of(recording.mask):
        mask, mask_affine = _read(recording.mask, recording.frames)
    if images is None or mask is None:
        return None
    with problems.of(recording.mask):
        if mask.shape != image.shape:
            raise BadFileError(f"has the shape {mask.shape}, but its image {image.shape}")
        if not np.allclose(mask_affine, affine, atol=MATCHING):
            raise BadFileError("lies elsewhere than its image: their affines differ")
        known = np.array(recording.labels, np.uint8)
        labels = {name: known[_labels(_moment(mask, frame), len(known))] for name, frame in recording.frames.items()}
        spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())
        return {name: Stack(images[name], labels[name], spacing) for name in recording.frames}
    return None


def _read(path: Path, frames: Mapping[str, int | None]) -> tuple[NDArray[Any], NDArray[np.float64]]:
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


def _moment(voxels: NDArray[Any], frame: int | None) -> NDArray[Any]:
    return voxels if frame is None else voxels[..., frame]


def _check_orientation(voxels: NDArray[Any], affine: NDArray[np.float64]) -> None:
    axes = affine[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    if not np.isfinite(affine).all() or not spacing.all():
        raise BadFileError(f"has the affine {affine[:3].round(3).tolist()}, which is none")
    cosines = (axes / spacing).T @ (axes / spacing)
    if np.abs(cosines - np.eye(3)).max() > MATCHING:
        raise BadFileError("has axes that are not at right angles")
    x, y, slices = voxels.shape[:3]
    if not 2 <= slices < min(x, y) or spacing[2] <= spacing[:2].max():
        raise BadFileError(
            f"has {x} x {y} x {slices} voxels of {' x '.join(f'{side:.4g}' for side in spacing)} mm; "
            "its axes must be x, y, slice, and slices be 2 or more, fewer and further apart than pixels"
        )


def _grey_levels(voxels: NDArray[Any]) -> Floats:
    grey = voxels.astype(np.float32)
    if not np.isfinite(grey).all():
        raise BadFileError("holds NaN or infinity")
    if grey.min() == grey.max():
        raise BadFileError(f"is empty: every voxel is {grey.min():g}")
    return grey


def _labels(voxels: NDArray[Any], count: int) -> NDArray[np.uint8]:
    values = np.unique(voxels)
    if not np.isin(values, range(count)).all():
        raise BadFileError(
            f"holds the labels {', '.join(f'{value:g}' for value in values)}; 0 to {count - 1} are known"
        )
    if not voxels.any():
        raise BadFileError("is empty: no structure is marked")
    return voxels.astype(np.uint8)
