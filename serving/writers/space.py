"""What samples take on disk and in memory, worked out before any is drawn."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.filesize import decimal

BLOCK = 4096  # bytes that a file takes at least
FACTS = 2048  # bytes of a sample's provenance, at most, as text or in memory
WORTH_SAYING = 10**9
MEMINFO = Path("/proc/meminfo")


class SpaceError(Exception):
    """There is no room for the samples; the message says how much they take and how much there is."""


@dataclass(frozen=True)
class Space:
    """Bytes that samples take at most: pictures and NIfTI files are compressed."""

    disk: int
    memory: int

    def __str__(self) -> str:
        return f"up to {decimal(self.disk)} on disk and {decimal(self.memory)} of memory"


def space_for(shapes: Mapping[str, tuple[np.dtype, tuple[int, ...]]], count: int, nifti: bool = False) -> Space:
    """What so many samples take, as write_samples writes them; shapes: the arrays of one."""
    sizes = [kind.itemsize * math.prod(shape) for kind, shape in shapes.values()]
    pictures = [math.prod(shape) for _, shape in shapes.values() if len(shape) == 3 and shape[0] == 1]
    overlay = 3 * max(pictures) if len(pictures) > 1 else 0
    files = len(pictures) + bool(overlay)
    disk = sum(sizes) + sum(pictures) + overlay + files * BLOCK + FACTS
    if nifti:
        disk += sum(sizes) + 2 * len(pictures) * BLOCK
    return Space(count * disk, count * (2 * sum(sizes) + FACTS))  # in memory batches are joined, and there twice


def check_space(folder: Path, space: Space) -> None:
    """Raises SpaceError if a new folder, or the memory that is free, has no room for the samples."""
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.is_dir())
    for kind, needed, free in (
        (f"on disk at {there}", space.disk, shutil.disk_usage(there).free),
        ("of memory", space.memory, _free_memory()),
    ):
        if free is not None and needed > free:
            raise SpaceError(
                f"the samples take {space}, and {decimal(free)} are free {kind}: draw fewer at a time, each part with "
                "the --seed after the last"
            )


def _free_memory() -> int | None:
    """Bytes that can be had without swapping, or None where nobody says."""
    try:
        lines = MEMINFO.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
