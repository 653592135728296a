"""One grey image file as it is stored: PNG, PGM, TIFF or NPY."""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from training.data.problems import BadFileError

SUFFIXES = (".npy", ".pgm", ".png", ".tif", ".tiff")
GREY_MODES = ("1", "L", "I", "I;16", "I;16B", "F")


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
