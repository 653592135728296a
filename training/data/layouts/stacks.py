"""Short-axis stacks and their masks, read from files and checked against each other."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.data.classes import HEART
from training.data.formats.nifti import Volume, read_nifti
from training.data.layouts.recording import Recording
from training.data.preparation.orientation import axis_codes, canonical, half_turned, is_nominal
from training.data.preparation.resize import Floats
from training.data.preparation.short_axis import Stack
from training.data.problems import BadFileError, Problems

MATCHING = 1e-3  # mm, and the cosines of axes at right angles
PIXELS = (0.1, 10.0)  # mm; no cardiac MRI is finer or coarser
AXES = "x, y, slice, time"
LV, RV = HEART.index("LV"), HEART.index("RV")


class Stacks(NamedTuple):
    """``by_frame``: the stack of every frame by its name. ``axes``: where the file's axes run to, such as "LPS".

    ``turned``: "" or, where the RV lies on the wrong side of the LV by the file's axes, "by half" if the axes are
    nominal and the stacks therefore turned, "not" if the axes are true and nothing was done.
    """

    by_frame: dict[str, Stack]
    axes: str
    turned: str


def read_stacks(recording: Recording, problems: Problems) -> Stacks | None:
    """The stacks of a recording in ``orientation.canonical``, or None and what is wrong added to ``problems``.

    Axes along those of the body are nominal, as no short axis is; only how two files lie to each other is taken from
    them. Of the two ways to look at such a stack that are left, the one with the RV to the left of the LV is right.
    """
    image = images = mask = None
    with problems.of(recording.image):
        stored = _read(recording.image, recording.frames)
        image = canonical(stored)
        images = {name: _grey_levels(_moment(image.voxels, frame)) for name, frame in recording.frames.items()}
    with problems.of(recording.mask):
        mask = canonical(_read(recording.mask, recording.frames))
    if image is None or images is None or mask is None:
        return None
    with problems.of(recording.mask):
        if mask.voxels.shape != image.voxels.shape:
            raise BadFileError(f"has the shape {mask.voxels.shape}, but its image {image.voxels.shape}")
        if not np.allclose(mask.affine, image.affine, atol=MATCHING):
            raise BadFileError("lies elsewhere than its image: their affines differ")
        known = np.array(recording.labels, np.uint8)
        labels = {
            name: known[_labels(_moment(mask.voxels, frame), len(known))] for name, frame in recording.frames.items()
        }
        turned = ""
        if _rv_is_to_the_right(list(labels.values())):
            turned = "by half" if is_nominal(image.affine) else "not"
        if turned == "by half":
            images, labels = ({name: half_turned(each) for name, each in both.items()} for both in (images, labels))
        spacing = tuple(np.linalg.norm(image.affine[:3, :3], axis=0).tolist())
        by_frame = {name: Stack(images[name], labels[name], spacing) for name in recording.frames}
        return Stacks(by_frame, axis_codes(stored.affine), turned)
    return None


def _read(path: Path, frames: Mapping[str, int | None]) -> Volume:
    """Voxels of three axes or, where frames are numbered, of four."""
    volume = read_nifti(path)
    voxels = volume.voxels
    numbers = [frame for frame in frames.values() if frame is not None]
    axes = 4 if numbers else 3
    if voxels.ndim != axes or not voxels.size:
        raise BadFileError(f"has the shape {voxels.shape}; it must be ({AXES if numbers else AXES[:-6]})")
    for number in numbers:
        if not 0 <= number < voxels.shape[3]:
            raise BadFileError(f"has no frame {number}; there are {voxels.shape[3]}, counted from 0")
    _check_axes(volume)
    return volume


def _moment(voxels: NDArray[Any], frame: int | None) -> NDArray[Any]:
    return voxels if frame is None else voxels[..., frame]


def _check_axes(volume: Volume) -> None:
    axes = volume.affine[:3, :3]
    spacing = np.linalg.norm(axes, axis=0)
    if not np.isfinite(volume.affine).all() or not spacing.all():
        raise BadFileError(f"has the affine {volume.affine[:3].round(3).tolist()}, which is none")
    cosines = (axes / spacing).T @ (axes / spacing)
    if np.abs(cosines - np.eye(3)).max() > MATCHING:
        raise BadFileError("has axes that are not at right angles")
    x, y, slices = volume.voxels.shape[:3]
    sides = " x ".join(f"{side:.4g}" for side in spacing)
    if not 2 <= slices < min(x, y) or spacing[2] <= spacing[:2].max():
        raise BadFileError(
            f"has {x} x {y} x {slices} voxels of {sides} mm; "
            "its axes must be x, y, slice, and slices be 2 or more, fewer and further apart than pixels"
        )
    if spacing[:2].min() < PIXELS[0] or spacing[:2].max() > PIXELS[1]:
        raise BadFileError(f"has voxels of {sides} mm; pixels must have {PIXELS[0]:g} to {PIXELS[1]:g} mm")


def _rv_is_to_the_right(labels: list[NDArray[np.uint8]]) -> bool:
    """Whether the RV lies where columns [column, row, slice] are greater than those of the LV."""
    lv, rv = (sum((each == structure).sum(axis=(1, 2)) for each in labels) for structure in (LV, RV))
    columns = np.arange(len(labels[0]))
    return bool(np.any(lv) and np.any(rv) and np.average(columns, weights=rv) > np.average(columns, weights=lv))


def _grey_levels(voxels: NDArray[Any]) -> Floats:
    grey = voxels.astype(np.float32)
    if not np.isfinite(grey).all():
        raise BadFileError("holds NaN or infinity")
    lowest, highest = grey.min(), grey.max()
    if lowest == highest:
        raise BadFileError(f"is empty: every voxel is {lowest:g}")
    rest = grey[grey > lowest].min()
    if lowest < 0 and rest - lowest > highest - rest:
        raise BadFileError(
            f"holds {lowest:g} far below all else ({rest:g} to {highest:g}); what is no signal must be 0"
        )
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
