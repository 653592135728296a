"""What a way to lay samples out as files has to do."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from serving.bundle import Output
from serving.sample_set import Samples

Shapes = Mapping[str, tuple[np.dtype, tuple[int, ...]]]
BLOCK = 4096  # bytes that a file takes at least


class LayoutError(Exception):
    """Samples cannot be laid out so; the message says what is missing, or of what kind they must be."""


class Layout:
    """One way; the files of a sample depend on the sample alone, those of a part on its samples alone.

    set_files: those that `describe` writes.
    """

    name = ""
    set_files: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises LayoutError if a package that it needs is missing."""

    def check_outputs(self, outputs: Sequence[Output], given: Collection[str] = ()) -> None:
        """Raises LayoutError if such outputs, of which those that are given were not drawn, cannot be laid out so."""

    def options(self) -> dict[str, Any]:
        """What was chosen about it and changes its files."""
        return {}

    def bytes_a_sample(self, shapes: Shapes) -> int:
        """What the files of one sample take at most."""
        raise NotImplementedError

    def write(self, samples: Samples, folder: Path, part: str) -> None:
        """Writes the files of some samples below a folder that is there; part: what a file of all of them is called."""
        raise NotImplementedError

    def describe(
        self,
        folder: Path,
        model: str,
        names: Iterable[str],
        count: int,
        outputs: Sequence[Output],
        given: Collection[str] = (),
    ) -> None:
        """Writes what belongs to all samples together; names: of all, as Samples has them; given: as Samples'."""


def is_picture(output: Output) -> bool:
    """Whether it is [1, H, W]: a mask or a picture."""
    return len(output.shape) == 3 and output.shape[0] == 1


def is_mask(output: Output) -> bool:
    return is_picture(output) and output.dtype == "uint8"


def text_of(fields: Mapping[str, Any]) -> str:
    """JSON as the files have it."""
    return json.dumps(fields, indent=1) + "\n"
