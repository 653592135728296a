"""Preparation of cardiac MRI: a short-axis stack becomes aligned slices around the heart.

The steps are those of Edirisooriya et al., "Balancing Fidelity, Utility, and Privacy in Synthetic Cardiac MRI
Generation", section IV.B.
"""

from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk  # noqa: N813
from numpy.typing import NDArray

from training.data.classes import FIELD_OF_VIEW
from training.data.preparation.resize import Floats
from training.data.problems import BadFileError

PIXEL = 1.25  # mm
SIDE = round(FIELD_OF_VIEW / PIXEL)  # pixels: 128
PERCENTILES = (1, 99)
SHRINK = (4, 4, 1)  # the bias field is smooth: it is estimated on fewer pixels
LEAST = 2 * max(SHRINK)  # rows and columns that the bias field can be estimated on
SETTINGS = (2, PIXEL, SIDE, PERCENTILES, SHRINK, sitk.Version.VersionString())  # first: count up when code changes


class Stack(NamedTuple):
    """One moment: ``image`` float32 and ``labels`` uint8, both [x, y, slice], and the ``spacing`` of those in mm."""

    image: Floats
    labels: NDArray[np.uint8]
    spacing: tuple[float, ...]


class Heart(NamedTuple):
    """``images`` float32 [N, 128, 128] in [-1, 1], ``masks`` uint8 [N, 128, 128], ``levels`` [N]: their slices."""

    images: Floats
    masks: NDArray[np.uint8]
    levels: NDArray[np.int64]


def prepare(stack: Stack) -> Heart:
    """The slices that hold structures, rows along y and columns along x, 1.25 mm a pixel.

    A stack with values below 0 is raised by its lowest value, since fields multiply. The bias field is removed (N4,
    Tustison et al. 2010), then every slice is cut out around the middle of its own
    structures, as breathing moves slices apart: images by cubic B-splines, labels by the nearest. What lies beyond the
    slice is 0. The 1st to 99th percentile of what is cut out becomes [-1, 1].

    Raises:
        BadFileError: slices have fewer than 8 rows or columns, a slice's structures are wider than the 160 mm that are
            cut out, or its image is blank.
    """
    spacing = stack.spacing[:2]
    levels = stack.labels.any(axis=(0, 1)).nonzero()[0]
    corrected = _without_bias_field(stack)
    images, masks = [], []
    for level in levels:
        labels = stack.labels[..., level]
        origin = _corner(labels, spacing, level)
        image = _cut_out(corrected[..., level], spacing, origin, sitk.sitkBSpline)
        darkest, brightest = np.percentile(image, PERCENTILES)
        if brightest <= darkest:
            raise BadFileError(f"marks structures in slice {level}, where its image is blank")
        images.append((2 * (image - darkest) / (brightest - darkest) - 1).clip(-1, 1).astype(np.float32))
        masks.append(_cut_out(labels, spacing, origin, sitk.sitkNearestNeighbor))
    return Heart(np.stack(images), np.stack(masks), levels)


def _corner(labels: NDArray[np.uint8], spacing: tuple[float, ...], level: int) -> tuple[float, ...]:
    """x and y in mm of the cut-out's first pixel, from the first of labels [x, y]."""
    corner = []
    for axis, pixel in enumerate(spacing):
        inside = labels.any(axis=1 - axis).nonzero()[0] * pixel
        extent = inside[-1] - inside[0] + pixel
        if extent > SIDE * PIXEL:
            raise BadFileError(
                f"marks structures over {extent:.0f} mm of slice {level}; {SIDE * PIXEL:.0f} mm are cut out"
            )
        corner.append((inside[0] + inside[-1]) / 2 - (SIDE - 1) / 2 * PIXEL)
    return tuple(corner)


def _without_bias_field(stack: Stack) -> Floats:
    x, y, _ = stack.image.shape
    if min(x, y) < LEAST:
        raise BadFileError(f"has slices of {x} x {y} pixels; {LEAST} are needed each way")
    grey = stack.image - min(stack.image.min(), np.float32(0))
    image = sitk.GetImageFromArray(grey.T)
    image.SetSpacing(stack.spacing)
    tissue = sitk.OtsuThreshold(image, 0, 1)
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.Execute(sitk.Shrink(image, SHRINK), sitk.Shrink(tissue, SHRINK))
    return grey / np.exp(sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(image)).T)


def _cut_out(
    pixels: NDArray[Any], spacing: tuple[float, ...], origin: tuple[float, ...], interpolator: int
) -> NDArray[Any]:
    """Pixels [x, y] as [rows, columns] of the cut-out."""
    image = sitk.GetImageFromArray(pixels.T)
    image.SetSpacing(spacing)
    size, pixel = (SIDE, SIDE), (PIXEL, PIXEL)
    return sitk.GetArrayFromImage(
        sitk.Resample(image, size, sitk.Transform(), interpolator, origin, pixel, image.GetDirection())
    )
