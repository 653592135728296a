"""Pictures to draw under, and files of them: PNG, PGM, NPZ and NPY, brought to a model's range."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.bundle import Condition
from serving.condition_files import UNREADABLE, check_unpacked
from serving.pgm import read_pgm

SUFFIXES = (".png", ".pgm")
ARRAYS = (".npz", ".npy")
HEADER = b"\x89PNG\r\n\x1a\n"
GREY = 0  # of PNG's colour types
DEPTHS = (8, 16)
DIM = 0.25  # share of white; what is below it in all of a file may have been scaled by another white
ORIENTATION = 274  # Exif's tag
MOST_PIXELS = 2**26


class PictureFileError(Exception):
    """A file holds no picture that a model can take; the message names it and says why."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures float32 [N, C, H, W] in a model's own range; names: what each was read from."""

    values: NDArray[np.float32]
    names: tuple[str, ...] = ()

    def rows(self, first: int, end: int) -> "Pictures":
        return Pictures(self.values[first:end], self.names[first:end])


@dataclass(frozen=True, eq=False)
class _Stored:
    """Pictures [N, ...] as a file has them, black and white as numbers, or None where nobody says; kind: in words."""

    file: Path
    values: NDArray[Any]
    kind: str
    ends: tuple[float, float] | None


def read_pictures(paths: Sequence[Path], condition: Condition) -> tuple[Pictures, list[str]]:
    """The pictures of files, or of the PNG and PGM files of folders by their names, and in words how they were scaled.

    PNG: grey, 8 or 16 bits. PGM: its maxval is white. NPZ: the array that the condition is called after, [N, H, W] or
    [N, C, H, W], and NAME_range, the values of black and white, as pairs.npz has them; NPY: such an array. Integers
    without a range are 8 or 16 bits; floats without one are taken as they are. Nothing is resized.
    Raises PictureFileError.
    """
    found = [stored for path in paths for stored in _stored(path, condition)]
    pictures, names = [], []
    said: dict[str, list[str]] = {}
    for stored in found:
        pictures.append(_in_range(stored, condition))
        rows = len(pictures[-1])
        names += [stored.file.name] if rows == 1 else [f"{stored.file.name}[{row}]" for row in range(rows)]
        said.setdefault(_scaling(stored, condition), []).append(stored.file.name)
    notes = [f"{_listed(files)}: {scaling}" for scaling, files in said.items()]
    return Pictures(np.concatenate(pictures), tuple(names)), notes


def _stored(path: Path, condition: Condition) -> Iterator[_Stored]:
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
        if others := [file.name for file in files if file.suffix.lower() not in SUFFIXES]:
            raise PictureFileError(f"{path} holds {others[0]}, which is neither a .png nor a .pgm")
        if not files:
            raise PictureFileError(f"{path} holds no pictures")
    for file in files:
        suffix = file.suffix.lower()
        reader = {".png": _read_png, ".pgm": _read_pgm}.get(suffix)
        if reader is None and suffix not in ARRAYS:
            raise PictureFileError(f"{file} is none of {', '.join((*SUFFIXES, *ARRAYS))}")
        try:
            yield reader(file) if reader else _read_arrays(file, condition.name)
        except PictureFileError:
            raise
        except UNREADABLE as error:
            raise PictureFileError(f"{file} cannot be read: {error}") from None


def _read_png(file: Path) -> _Stored:
    with file.open("rb") as stream:
        start = stream.read(26)
    if start[:8] != HEADER or len(start) < 26:
        raise PictureFileError(f"{file} is no PNG")
    width, height = (int.from_bytes(start[at : at + 4], "big") for at in (16, 20))
    if width * height > MOST_PIXELS:
        raise PictureFileError(f"{file} has {width} x {height} pixels; at most {MOST_PIXELS} are read")
    depth, colours = start[24], start[25]
    if colours != GREY or depth not in DEPTHS:
        raise PictureFileError(
            f"{file} is a PNG of {depth} bits and colour type {colours}; it must be grey, of 8 or 16 bits"
        )
    with Image.open(file, formats=("PNG",)) as image:
        if (frames := getattr(image, "n_frames", 1)) != 1:
            raise PictureFileError(f"{file} holds {frames} pictures, not one")
        if "transparency" in image.info:
            raise PictureFileError(f"{file} has a transparent grey, which cannot be honoured")
        if (turned := image.getexif().get(ORIENTATION, 1)) != 1:
            raise PictureFileError(f"{file} asks to be turned (Exif orientation {turned}), which cannot be honoured")
        across, down = image.info.get("aspect", image.info.get("dpi", (1, 1)))
        if abs(across - down) > 0.01 * down:
            raise PictureFileError(f"{file} has {across:g} x {down:g} pixels to the same length; they must be square")
        values = np.array(image)
    if values.dtype != (np.uint8 if depth == 8 else np.uint16):
        raise PictureFileError(f"{file} was read as {values.dtype}, and not as {depth} bits; a newer Pillow does it")
    return _Stored(file, values[None], f"{depth}-bit", (0, 2**depth - 1))


def _read_pgm(file: Path) -> _Stored:
    values, white = read_pgm(file)
    return _Stored(file, values[None], f"{white.bit_length()}-bit", (0, white))


def _read_arrays(file: Path, name: str) -> _Stored:
    check_unpacked(file)
    held = np.load(file, allow_pickle=False)
    ends = None
    if not isinstance(held, np.ndarray):
        with held as arrays:
            if name not in arrays:
                raise PictureFileError(f"{file} has no array {name!r}; it holds {', '.join(arrays) or 'nothing'}")
            values, told = arrays[name], arrays.get(f"{name}_range")
        if told is not None:
            if told.shape != (2,) or told.dtype.kind not in "iuf" or not told[0] < told[1]:
                raise PictureFileError(
                    f"{file} has {told.tolist()} as {name}_range; it must be the values of black and white"
                )
            ends = float(told[0]), float(told[1])
    else:
        values = held
    if values.dtype not in (np.uint8, np.uint16, np.float32, np.float64):
        raise PictureFileError(f"{file} holds {values.dtype} values; pictures are uint8, uint16, float32 or float64")
    if values.ndim not in (3, 4) or not values.size:
        raise PictureFileError(
            f"{file} holds an array of shape {list(values.shape)}; it must be [N, H, W] or [N, C, H, W]"
        )
    if ends is None and values.dtype.kind == "u":
        ends = 0, np.iinfo(values.dtype).max
    kind = f"{8 * values.dtype.itemsize}-bit" if values.dtype.kind == "u" else str(values.dtype)
    return _Stored(file, values, kind, ends)


def _in_range(stored: _Stored, condition: Condition) -> NDArray[np.float32]:
    values, (low, high) = stored.values, condition.limits
    if values.ndim == 3:
        values = values[:, None]
    if values.shape[1:] != condition.shape:
        here, needed = (" x ".join(map(str, shape)) for shape in (values.shape[1:], condition.shape))
        raise PictureFileError(
            f"{stored.file} is {here}, and {condition.name} must be {needed}: nothing is resized here"
        )
    black, white = stored.ends or (low, high)
    wrong = ~((values >= black) & (values <= white))  # a NaN is neither
    if wrong.any():
        where = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        raise PictureFileError(
            f"{stored.file}: row {where[0]} holds {values[where]}; allowed are values from {black:g} to {white:g}"
        )
    if stored.ends is None:
        return values.astype(np.float32)
    share = (values.astype(np.float64) - black) / (white - black)
    return np.clip(low + share * (high - low), low, high).astype(np.float32)


def _scaling(stored: _Stored, condition: Condition) -> str:
    low, high = condition.limits
    if stored.ends is None:
        return f"{stored.kind}, which does not say what is black and white, taken as it is, within {low:g}..{high:g}"
    black, white = stored.ends
    said = f"{stored.kind}, {black:g}..{white:g} to {low:g}..{high:g}"
    brightest = float(stored.values.max())
    if brightest - black < DIM * (white - black):
        said += f", though none is above {brightest:g}: if that is white, a PGM or an .npz can say so"
    return said


def _listed(files: Sequence[str]) -> str:
    return files[0] if len(files) == 1 else f"{len(files)} files from {files[0]} to {files[-1]}"
