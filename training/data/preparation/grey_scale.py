"""Which grey level is white, decided once for a folder and never image by image."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

BIT_DEPTHS = (8, 10, 12, 14, 16)
FULL = (2**8 - 1, 2**16 - 1)  # maxvals that say no more than the type does
STRAY = 4  # pixels of an image, or where that is more
STRAY_SHARE = 1e-5  # of them, that may be far brighter than all others
FAR = 2  # times the white of the others: so much brighter is far
FAR_IMAGE = 8  # the same, of an image as a whole
ODD_IMAGES = 0.05  # share of a folder's images that may be far brighter than the others


class Levels(NamedTuple):
    """Of an image: the type and ``maxval`` that its file has, its ``brightest`` pixel, and the brightest ``level`` that
    is left when a few stray pixels do not count.
    """

    dtype: np.dtype[Any]
    maxval: int | None
    brightest: float
    level: float


class Scale(NamedTuple):
    """``white`` of every image, the white of each kind of file by name, and the images that have brighter pixels."""

    white: list[int]
    kinds: dict[str, int]
    beyond: list[int]


def levels_of(pixels: NDArray[Any], maxval: int | None = None) -> Levels:
    """Of an image of any type."""
    strays = min(max(STRAY, int(pixels.size * STRAY_SHARE)), pixels.size - 1)
    level = np.partition(pixels, -1 - strays, axis=None)[-1 - strays]
    return Levels(pixels.dtype, maxval, float(pixels.max()), float(level))


def scale_of(images: Sequence[Levels]) -> Scale:
    """Floats have 1 as their white, 8-bit integers 255, and wider integers what ``white_of_wide`` finds for all.

    A PGM file names its white, its maxval. That is heeded where all of the folder of the same width name the same one;
    where they differ, their writer put each one's own brightest pixel there.
    """
    white, kinds, beyond = [1] * len(images), {}, []
    groups: dict[str, list[int]] = {"float": [], "8 bits": [], "more bits": []}
    for index, image in enumerate(images):
        is_8_bit = image.dtype == np.uint8
        groups["float" if image.dtype.kind == "f" else "8 bits" if is_8_bit else "more bits"].append(index)
    for kind, group in groups.items():
        maxvals = {images[index].maxval for index in group} - {None}
        agreed = next(iter(maxvals)) if len(maxvals) == 1 else None
        if agreed is not None and agreed not in FULL:
            kinds[f"PGM, {kind}"] = agreed
            for index in group:
                if images[index].maxval is not None:
                    white[index] = agreed
            group = [index for index in group if images[index].maxval is None]
        if not group:
            continue
        kinds[kind] = 1 if kind == "float" else 255 if kind == "8 bits" else white_of_wide([images[i] for i in group])
        for index in group:
            white[index] = kinds[kind]
        beyond += [index for index in group if images[index].brightest > kinds[kind]]
    return Scale(white, kinds, beyond)


def white_of_wide(images: Sequence[Levels]) -> int:
    """2**bits - 1, where bits is the least of 8, 10, 12, 14 and 16 that holds the brightest pixel of all images.

    12-bit data in 16-bit files is common. One defective pixel or a burnt-in mark must not darken a whole folder, so
    two things do not count: a few stray pixels of an image that are more than twice as bright as the white of all
    others, and up to one image in twenty that as a whole is more than eight times as bright.
    """
    levels = np.array([image.level for image in images])
    usual = 2 ** _bits(float(np.quantile(levels, 1 - ODD_IMAGES, method="higher")))
    bound = 2 ** _bits(max(level for level in levels if level < FAR_IMAGE * usual))
    brightest = max([bound - 1, *(image.brightest for image in images if image.brightest < FAR * bound)])
    return 2 ** _bits(brightest) - 1


def _bits(value: float) -> int:
    return next(depth for depth in BIT_DEPTHS if value < 2**depth)
