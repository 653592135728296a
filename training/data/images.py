"""One grey image file as it is stored, and how it becomes a square of the training size."""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

SUFFIXES = (".npy", ".pgm", ".png", ".tif", ".tiff")
GREY_MODES = ("1", "L", "I", "I;16", "I;16B", "F")


class BadFileError(Exception):
    """Why one file cannot be used."""


def read_grey(path: Path) -> NDArray[Any]:
    """The pixels [H, W] of a grey image, in the type that the file holds: bool, an integer or a float.

    A PGM is stretched from its own maxval to 0..255, or to 0..65535 where maxval is above 255.

    Raises:
        BadFileError: the file cannot be read, has colours, an alpha channel, several pages or NaN.
    """
    try:
        pixels = READERS[path.suffix.lower()](path)
    except BadFileError:
        raise
    except Exception as error:  # a decoder raises anything on a broken file
        reason = str(error).replace(str(path), path.name) or type(error).__name__
        raise BadFileError(f"cannot be read ({reason})") from error
    if pixels.ndim != 2 or not pixels.size:
        raise BadFileError(f"has the shape {pixels.shape}; a grey image has (rows, columns)")
    if pixels.dtype.kind not in "buif":
        raise BadFileError(f"holds {pixels.dtype} values, not grey levels")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise BadFileError("holds NaN or infinity")
    return pixels


def _read_with_pillow(path: Path) -> NDArray[Any]:
    with Image.open(path, formats=("PNG", "PPM")) as image:
        if image.mode not in GREY_MODES:
            raise BadFileError(f"is {image.mode}, not grey")
        return np.array(image)


def _read_tiff(path: Path) -> NDArray[Any]:
    with tifffile.TiffFile(path) as tiff:
        if len(tiff.pages) != 1:
            raise BadFileError(f"holds {len(tiff.pages)} pages, not one")
        page = tiff.pages.first
        photometric = tifffile.PHOTOMETRIC(page.photometric)
        if photometric != tifffile.PHOTOMETRIC.MINISBLACK:
            raise BadFileError(f"is {photometric.name}, not grey with black as zero")
        return page.asarray()


def _read_npy(path: Path) -> NDArray[Any]:
    pixels = np.load(path, allow_pickle=False)
    if not isinstance(pixels, np.ndarray):
        raise BadFileError("is no NPY file with one array")
    return pixels


READERS = {
    ".npy": _read_npy,
    ".pgm": _read_with_pillow,
    ".png": _read_with_pillow,
    ".tif": _read_tiff,
    ".tiff": _read_tiff,
}


def fit_image(image: Floats, size: int) -> Floats:
    """An image [H, W] as [size, size]: padded to a square with zeros, then area-averaged, or enlarged bilinearly."""
    square = _centred_in_square(image)
    if size > len(square):
        return np.array(Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR))
    weights = _overlaps(len(square), size)
    return weights @ square @ weights.T


def fit_mask(mask: Bools, size: int) -> tuple[NDArray[np.uint8], int]:
    """A mask [H, W] as [size, size] of 0 and 1, laid out like ``fit_image``, and how many lesions it is too coarse for.

    A pixel is set where at least half its area is lesion. A connected lesion that would leave no pixel keeps the one
    under its centre, and is counted.
    """
    square = _centred_in_square(mask)
    weights = _overlaps(len(square), size)
    fitted = weights @ square.astype(np.float32) @ weights.T >= 0.5

    labels, count = ndimage.label(square, structure=np.ones((3, 3)))
    rows, columns = np.nonzero(square)
    scale = size / len(square)
    shown = fitted[((rows + 0.5) * scale).astype(int), ((columns + 0.5) * scale).astype(int)]
    lost = np.setdiff1d(np.arange(1, count + 1), labels[rows[shown], columns[shown]])
    for row, column in ndimage.center_of_mass(square, labels, lost):
        fitted[int((row + 0.5) * scale), int((column + 0.5) * scale)] = True
    return fitted.astype(np.uint8), len(lost)


def fit_classes(classes: NDArray[np.uint8], size: int, count: int) -> NDArray[np.uint8]:
    """Class indices below ``count`` [H, W] as [size, size], laid out like ``fit_image``.

    A pixel gets the class with the greatest share of its area; of equal shares the highest, never the background 0.
    """
    square = _centred_in_square(classes)
    weights = _overlaps(len(square), size)
    shares = [weights @ (square == index).astype(np.float32) @ weights.T for index in reversed(range(count))]
    return (count - 1 - np.argmax(shares, axis=0)).astype(np.uint8)


def _centred_in_square(pixels: NDArray[Any]) -> NDArray[Any]:
    side = max(pixels.shape)
    missing = [side - extent for extent in pixels.shape]
    return np.pad(pixels, [(gap // 2, gap - gap // 2) for gap in missing])


def _overlaps(pixels: int, size: int) -> Floats:
    """Weights [size, pixels]: the share of each of `size` equal intervals that every pixel covers."""
    edges = np.arange(size + 1) * (pixels / size)
    first = np.arange(pixels)
    covered = np.minimum(edges[1:, None], first + 1) - np.maximum(edges[:-1, None], first)
    return (covered.clip(min=0) * (size / pixels)).astype(np.float32)
