"""Masks to draw images under, and files of them; for pictures see ``picture_files``."""

import zlib
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import numpy as np
from numpy.typing import NDArray

NAME = "mask"
LARGEST = 2**30  # bytes of arrays that a file may unpack to
# What the readers of damaged files raise, and of archives that are locked or packed by another method.
UNREADABLE = (
    ValueError, SyntaxError, EOFError, OSError, MemoryError, RuntimeError, BadZipFile, TokenError, zlib.error,
)  # fmt: skip


class MaskFileError(Exception):
    """A file holds no masks; the message names it and what it must hold."""


@dataclass(frozen=True, eq=False)
class Masks:
    """Masks uint8 [N, 1, H, W] of class indices, and what is known of them.

    labels: the names of the classes from 0 up; spacing: how far rows, and columns, are apart in mm. Without labels
    nobody can tell whether the classes are those of a model, and only their range is checked.
    """

    values: NDArray[np.uint8]
    labels: tuple[str, ...] = ()
    spacing: tuple[float, float] | None = None

    def rows(self, first: int, end: int) -> "Masks":
        return Masks(self.values[first:end], self.labels, self.spacing)


def read_masks(file: Path) -> Masks:
    """The masks in a file: the array "mask" of an .npz, as pairs.npz has it with its labels and spacing, or an .npy.

    Either may also hold [N, H, W]. Whether classes and size are a model's, the model says.
    Raises MaskFileError.
    """
    try:
        check_unpacked(file)
        held = np.load(file, allow_pickle=False)
        if isinstance(held, np.ndarray):
            return Masks(_checked(file, held))
        with held as arrays:
            if NAME not in arrays:
                raise MaskFileError(f"{file} has no array {NAME!r}; it holds {', '.join(arrays) or 'nothing'}")
            labels, spacing = arrays.get(f"{NAME}_labels"), arrays.get(f"{NAME}_spacing")
            return Masks(_checked(file, arrays[NAME]), _labels(file, labels), _spacing(file, spacing))
    except UNREADABLE as error:
        raise MaskFileError(f"{file} is no .npz or .npy of masks: {error}") from None


def check_unpacked(file: Path, largest: int = LARGEST) -> None:
    """Raises ValueError for an archive that is larger when it is unpacked: a few MB of zeros would take all memory."""
    if not is_zipfile(file):
        return
    with ZipFile(file) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > largest:
        raise ValueError(f"{file.name} unpacks to {size / 2**20:.0f} MiB; at most {largest >> 20} are read")


def _checked(file: Path, held: NDArray[Any]) -> NDArray[np.uint8]:
    masks = held[:, None] if held.ndim == 3 else held
    if masks.dtype != np.uint8:
        raise MaskFileError(f"{file} holds {held.dtype} values; masks must be uint8")
    if masks.ndim != 4 or masks.shape[1] != 1 or not masks.size:
        raise MaskFileError(f"{file} holds an array of shape {list(held.shape)}; it must be [N, H, W] or [N, 1, H, W]")
    return masks


def _labels(file: Path, names: NDArray[Any] | None) -> tuple[str, ...]:
    if names is None:
        return ()
    if names.dtype.kind != "U" or names.ndim != 1:
        held = f"{names.dtype} {list(names.shape)}"
        raise MaskFileError(f"{file} holds {held} as {NAME}_labels; it must be strings, one a class")
    return tuple(names.tolist())


def _spacing(file: Path, sides: NDArray[Any] | None) -> tuple[float, float] | None:
    if sides is None:
        return None
    if sides.dtype.kind != "f" or sides.shape != (2,):
        held = f"{sides.dtype} {list(sides.shape)}"
        raise MaskFileError(f"{file} holds {held} as {NAME}_spacing; it must be two floats, in mm")
    between_rows, between_columns = sides.tolist()
    return between_rows, between_columns
