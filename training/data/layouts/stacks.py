"""Short-axis stacks and their masks, read from files and checked against each other."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.data.formats.nifti import read_nifti
from training.data.layouts.recording import Recording
from training.data.preparation.resize import Floats
from training.data.preparation.short_axis import Stack
from training.data.problems import BadFileError, Problems

MATCHING = 1e-3  # mm, and the cosines of axes at right angles


def read_stacks(recording: Recording, problems: Problems) -> dict[str, Stack] | None:
    """The stack of every frame, by its name, or None and what is wrong with either file added to ``problems``."""
    images = mask = None
    with problems.of(recording.image):
        image, affine = read_nifti(recording.image, recording.frames)
        _check_orientation(image, affine)
        images = {name: _grey_levels(_moment(image, frame)) for name, frame in recording.frames.items()}
    with problems.of(recording.mask):
        mask, mask_affine = read_nifti(recording.mask, recording.frames)
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
