"""Whether a pair can be a phantom of ``training.data.phantom``: one mass in the breast, seen where the mask is."""

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, signal

Array = NDArray[np.float32]

TOUCHING = ndimage.generate_binary_structure(2, 2)
AIR = 0.06  # what is darker is no tissue; of a size of which the skin has a pixel
OUTSIDE = 0.1  # of a lesion: how much of it may lie on what looks like air

# All below is in sides of the picture. A phantom's mass has a radius of 0.07 to 0.13, its haze and spicules about 0.05.
RADII = (0.07, 0.086, 0.102, 0.117)
MARGIN = 0.016  # on either side of a circle, that is not looked at: masses are no circles
RING = 0.04  # how wide what lies around is looked at
BESIDE = 0.0625  # from the lesion on: what is further away is no part of it
SECTORS = 8

# In grey levels of 0 to 1. Of 5,000 phantoms' masses the faintest stood out by 0.053, of what lay beside them the most
# prominent by 0.226; three masses of four stand out by more than that.
SEEN = 0.05
ANOTHER = 0.23


def faults(image: Array, mask: NDArray[np.uint8]) -> list[str]:
    """What is wrong with a picture [H, W] in [0, 1] and its mask [H, W] of 0 and 1; nothing if a phantom could be so.

    Pixels that touch at a corner belong together. A second mass in the picture alone is found in three cases of four.
    """
    return list(_faults(image, mask > 0))


def _faults(image: Array, lesion: NDArray[np.bool_]) -> Iterator[str]:
    _, count = ndimage.label(lesion, TOUCHING)
    if count != 1:
        yield f"{count or 'no'} lesion{'s' * (count > 1)}"
    breast = _largest(ndimage.binary_fill_holes(image > AIR))
    if (lesion & ~breast).sum() > OUTSIDE * lesion.sum():
        yield "lesion outside the breast"
    standing_out = prominence(image)
    if count and standing_out[lesion].max() < SEEN:
        yield "lesion not in the image"
    beside = ndimage.distance_transform_edt(~lesion) > BESIDE * image.shape[0]
    if standing_out[beside].max(initial=0.0) > ANOTHER:
        yield "mass without a mask"


def prominence(image: Array) -> Array:
    """How much brighter a disc around each pixel of [H, W] is than what lies around it, of the best of ``RADII``.

    Around are ``SECTORS`` pieces of a ring, of which the second brightest counts: ducts and glands are bright beside
    a few of them, and a mass may have bright tissue on one side.
    """
    best = np.full(image.shape, -1.0, np.float32)
    for disc, *sectors in _kernels(image.shape[0]):
        padded = np.pad(image, len(disc) // 2, mode="edge")
        within = signal.fftconvolve(padded, disc, "valid")
        around = np.sort([signal.fftconvolve(padded, sector, "valid") for sector in sectors], axis=0)
        best = np.maximum(best, within - around[-2])
    return best


@cache
def _kernels(size: int) -> tuple[tuple[Array, ...], ...]:
    """Of each radius the disc and the sectors, each of which sums to 1."""
    reach = int(np.ceil((max(RADII) + MARGIN + RING) * size))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    distance, angle = np.hypot(y, x) / size, np.arctan2(y, x)

    def of(radius: float) -> Iterator[Array]:
        yield distance <= radius - MARGIN
        ring = (distance > radius + MARGIN) & (distance <= radius + MARGIN + RING)
        for sector in range(SECTORS):
            away = np.angle(np.exp(1j * (angle - 2 * np.pi * sector / SECTORS)))
            yield ring & (np.abs(away) <= np.pi / SECTORS)

    return tuple(tuple((kernel / kernel.sum()).astype(np.float32)[::-1, ::-1] for kernel in of(r)) for r in RADII)


def _largest(region: NDArray[np.bool_]) -> NDArray[np.bool_]:
    pieces, count = ndimage.label(region, TOUCHING)
    return region if count < 2 else pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
