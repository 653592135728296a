"""What samples take on disk and in memory, worked out before any is drawn."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.filesize import decimal

from serving.writers.layout import Layout, Shapes
from serving.writers.npz import bytes_of_arrays
from serving.writers.png import Png

PART = 256  # samples that are drawn and written together
FACTS = 2048  # bytes of a sample's provenance, at most, as text or in memory
WORTH_SAYING = 10**9
MEMINFO = Path("/proc/meminfo")


class SpaceError(Exception):
    """There is no room for the samples; the message says how much they take and how much there is."""


@dataclass(frozen=True)
class Space:
    """Bytes that samples take at most: many files are compressed."""

    disk: int
    memory: int

    def __str__(self) -> str:
        return f"up to {decimal(self.disk)} on disk and {decimal(self.memory)} of memory"


def space_for(shapes: Shapes, count: int, layouts: Sequence[Layout] = ()) -> Space:
    """What so many samples take, as write_samples writes them; shapes: the arrays of one."""
    arrays = bytes_of_arrays(shapes)
    largest = max(bytes_of_arrays({name: shape}) for name, shape in shapes.items())  # is there twice for a while
    disk = arrays + largest + Png().bytes_a_sample(shapes) + FACTS
    disk += sum(layout.bytes_a_sample(shapes) for layout in layouts)
    return Space(count * disk, count * FACTS + memory_for(shapes, min(count, PART)))


def space_for_parts(shapes: Shapes, count: int, part: int, layout: Layout) -> Space:
    """What so many samples take as parts of a set."""
    rows = min(count, part)
    return Space(count * (layout.bytes_a_sample(shapes) + FACTS), rows * FACTS + memory_for(shapes, rows))


def memory_for(shapes: Shapes, count: int) -> int:
    """What the arrays of so many samples take in memory, where batches are joined, and there twice."""
    return count * 2 * bytes_of_arrays(shapes)


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
