"""One grey image file: PNG, PGM, TIFF or NPY as it is stored, DICOM as it is shown."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps

from serving.pgm import PgmError, is_pgm, read_pgm
from training.data.problems import BadFileError

SUFFIXES = (".dcm", ".dicom", ".npy", ".pgm", ".png", ".tif", ".tiff")
GREY_MODES = ("1", "L", "I", "I;16", "I;16B", "F")
ORIENTATION, X_RESOLUTION, Y_RESOLUTION = 274, 282, 283  # TIFF's tags
SQUARE = 0.01  # how far the sides of a pixel may be apart, as a share


class GreyImage(NamedTuple):
    """``pixels`` [rows, columns] as a viewer shows them, in the type that the file holds: bool, an integer or a float.

    ``maxval`` is the white that a PGM names. ``turned`` says that the file asked to be mirrored or turned, by an
    orientation in its Exif or TIFF tags, and is. ``spacing``: the side of a pixel in mm, where a file says it.
    ``decided``: in words, what a DICOM file asked for.
    """

    pixels: NDArray[Any]
    maxval: int | None = None
    turned: bool = False
    spacing: float | None = None
    decided: tuple[str, ...] = ()


def read_grey(path: Path) -> GreyImage:
    """Read one grey image.

    Raises:
        BadFileError: the file cannot be read, has colours, an alpha channel, several pictures, pixels that are not
            square, or NaN.
    """
    try:
        image = READERS[path.suffix.lower()](path)
    except BadFileError:
        raise
    except Exception as error:  # a decoder raises anything on a broken file
        reason = str(error).replace(str(path), path.name) or type(error).__name__
        raise BadFileError(f"cannot be read ({reason})") from error
    pixels = image.pixels
    if pixels.ndim != 2 or not pixels.size:
        raise BadFileError(f"has the shape {pixels.shape}; a grey image has (rows, columns)")
    if pixels.dtype.kind not in "buif":
        raise BadFileError(f"holds {pixels.dtype} values, not grey levels")
    if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
        raise BadFileError("holds NaN or infinity")
    return image


def _read_png_or_pgm(path: Path) -> GreyImage:
    with path.open("rb") as file:
        if is_pgm(file.read(2)):
            try:
                return GreyImage(*read_pgm(path))
            except PgmError as error:
                raise BadFileError(str(error)) from None
    return _read_with_pillow(path, ("PNG", "PPM"))


def _read_with_pillow(path: Path, formats: tuple[str, ...]) -> GreyImage:
    with Image.open(path, formats=formats) as image:
        if image.mode not in GREY_MODES:
            raise BadFileError(f"is {image.mode}, not grey")
        if (count := getattr(image, "n_frames", 1)) != 1:
            raise BadFileError(f"holds {count} pictures, not one")
        check_square(*image.info.get("aspect", image.info.get("dpi", (1, 1))))
        turned = image.getexif().get(ORIENTATION, 1) != 1
        return GreyImage(np.array(ImageOps.exif_transpose(image)), turned=turned)


def _read_tiff(path: Path) -> GreyImage:
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages.first
        if len(tiff.pages) != 1 or page.subifds:
            raise BadFileError(f"holds {len(tiff.pages) + len(page.subifds or ())} pages, not one")
        photometric = tifffile.PHOTOMETRIC(page.photometric)
        if photometric != tifffile.PHOTOMETRIC.MINISBLACK:
            raise BadFileError(f"is {photometric.name}, not grey with black as zero")
        if any(math.prod(series.shape) != math.prod(page.shape) for series in tiff.series):  # ImageJ's stacks
            raise BadFileError(f"holds several pictures ({tiff.series[0].shape}), not one")
        sides = (page.tags.valueof(tag, (1, 1)) for tag in (X_RESOLUTION, Y_RESOLUTION))
        check_square(*(dots / (per or 1) for dots, per in sides))
        orientation = page.tags.valueof(ORIENTATION, 1)
        try:
            return GreyImage(_oriented(page.asarray(), orientation), turned=orientation != 1)
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            compression = tifffile.COMPRESSION(page.compression).name
    try:  # Pillow has some codecs that tifffile leaves to another package
        return _read_with_pillow(path, ("TIFF",))._replace(turned=orientation != 1)
    except (BadFileError, OSError) as error:
        raise BadFileError(f"is compressed by {compression}; to read it, pip install imagecodecs") from error


def _oriented(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Pixels [H, W] as TIFF's orientation tag (TIFF 6.0, section 8) wants them shown."""
    if not 1 <= orientation <= 8:
        raise BadFileError(f"has the orientation {orientation}; there are 1 to 8")
    if orientation > 4:
        pixels = pixels.T
    rows_backwards, columns_backwards = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return pixels[:: -1 if rows_backwards else 1, :: -1 if columns_backwards else 1]


def check_square(x: float, y: float) -> None:
    if x > 0 and y > 0 and abs(x / y - 1) > SQUARE:
        raise BadFileError(f"has {x:g} x {y:g} pixels to the same length; pixels must be square")


def _read_dicom(path: Path) -> GreyImage:
    from training.data.formats.dicom import read_dicom

    return read_dicom(path)


def _read_npy(path: Path) -> GreyImage:
    with path.open("rb") as file:
        pixels = np.load(file, allow_pickle=False)
        if not isinstance(pixels, np.ndarray) or file.read(1):
            raise BadFileError("is no NPY file with one array")
    return GreyImage(pixels)


READERS = {
    ".dcm": _read_dicom,
    ".dicom": _read_dicom,
    ".npy": _read_npy,
    ".pgm": _read_png_or_pgm,
    ".png": _read_png_or_pgm,
    ".tif": _read_tiff,
    ".tiff": _read_tiff,
}
