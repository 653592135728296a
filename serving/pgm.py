"""One PGM file (netpbm's grey map, P2 or P5) as it is stored; its samples are not stretched to its maxval."""

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HEADER = re.compile(rb"P([25])" + 3 * rb"(?:\s|#[^\n]*\n)+(\d+)" + rb"\s")
HIGHEST = 2**16 - 1


class PgmError(ValueError):
    """A file is whole, and yet no one picture of what its header says."""


def is_pgm(start: bytes) -> bool:
    """Whether the first bytes of a file say that it is one."""
    return start[:2] in (b"P2", b"P5")


def read_pgm(path: Path) -> tuple[NDArray[np.uint8] | NDArray[np.uint16], int]:
    """The samples [rows, columns], uint8 for a maxval up to 255 and else uint16, and the maxval.

    Raises:
        PgmError: it holds more than one picture, or samples above its maxval.
        ValueError: it is broken.
    """
    content = path.read_bytes()
    header = HEADER.match(content)
    if header is None:
        raise ValueError("its header is no PGM's")
    kind, columns, rows, maxval = (int(number) for number in header.groups())
    if not 1 <= maxval <= HIGHEST:
        raise ValueError(f"its maxval is {maxval}; 1 to {HIGHEST} is allowed")
    stored = np.dtype(">u1" if maxval < 256 else ">u2")
    count, raster = rows * columns, content[header.end() :]
    if kind == 5:
        held, rest = len(raster) // stored.itemsize, raster[count * stored.itemsize :].strip()
        samples = np.frombuffer(raster, stored, min(count, held)).astype(stored.newbyteorder("="))
    else:
        numbers = re.sub(rb"#[^\n]*", b"", raster).split()
        held, rest = len(numbers), b" ".join(numbers[count:])
        if strange := next((number for number in numbers[:count] if not re.fullmatch(rb"\d{1,9}", number)), None):
            raise ValueError(f"{strange[:20].decode('ascii', 'replace')!r} is no sample; they are 0 to {maxval}")
        samples = np.array(numbers[:count], np.int64)
    if held < count:
        raise ValueError(f"image file is truncated: {held} of {count} pixels are there")
    if rest:
        raise PgmError(f"goes on after its {columns} x {rows} pixels; it must hold one picture")
    if count and samples.max() > maxval:
        raise PgmError(f"holds {samples.max()}, above its own maxval {maxval}")
    return samples.astype(stored.newbyteorder("=")).reshape(rows, columns), maxval
