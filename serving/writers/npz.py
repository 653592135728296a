"""Samples as arrays in .npz files."""

import re
import shutil
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Output
from serving.sample_set import Samples
from serving.writers.layout import Layout, Shapes

SEED = "seed"
PLAIN = re.compile(r"\w+", re.ASCII)  # a name that is one on every file system
Arrays = Mapping[str, NDArray[Any]]


class NameClashError(Exception):
    """Two arrays or folders would have the same name, or one has a name that no file can have."""


class Npz(Layout):
    """PART.npz: every output [N, ...] as it came, and what `constants` has; see `write_samples`."""

    name = "npz"

    def bytes_a_sample(self, shapes: Shapes) -> int:
        return bytes_of_arrays(shapes)

    def write(self, samples: Samples, folder: Path, part: str) -> None:
        with GrowingNpz(folder / f"{part}.npz") as file:
            file.add(samples)


class GrowingNpz:
    """An .npz that samples are added to, however many; its arrays wait in files beside it, one after the other.

    A context that writes it when it is left without an error. The same samples give the same bytes.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._waiting: dict[str, IO[bytes]] = {}
        self._rows = 0
        self._one: Arrays = {}
        self._constants: Arrays = {}
        self._stack = ExitStack()

    def __enter__(self) -> "GrowingNpz":
        return self

    def add(self, samples: Samples) -> None:
        """Raises NameClashError."""
        arrays, constants = rows_of(samples), constants_of(samples)
        if twice := sorted(arrays.keys() & constants.keys()):
            raise NameClashError(f"two arrays are called {twice[0]!r}, and the file would hold one of them")
        if not self._rows:
            self._one, self._constants = {name: values[:0] for name, values in arrays.items()}, constants
            for name in arrays:
                waiting = self._file.with_name(f".{self._file.name}.{name}")
                self._waiting[name] = self._stack.enter_context(waiting.open("w+b"))
                self._stack.callback(waiting.unlink, missing_ok=True)
        for name, values in arrays.items():
            self._waiting[name].write(np.ascontiguousarray(values, self._one[name].dtype).data)
        self._rows += len(samples)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            if kind is None:
                self._write()

    def _write(self) -> None:
        # As np.savez does, which leaves the file to the garbage collector if the disk is full, and that complains.
        with zipfile.ZipFile(self._file, "w") as whole:
            for name, waiting in self._waiting.items():
                described = np.lib.format.header_data_from_array_1_0(self._one[name])
                described["shape"] = (self._rows, *self._one[name].shape[1:])
                with whole.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array_header_1_0(file, described)
                    waiting.seek(0)
                    shutil.copyfileobj(waiting, file, 1 << 20)
                waiting.truncate(0)  # it is there twice else
            for name, values in self._constants.items():
                with whole.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, values, allow_pickle=False)


def rows_of(samples: Samples) -> Arrays:
    """Arrays with a row for each sample: the seeds, and every output; raises NameClashError."""
    if SEED in samples.arrays:
        raise NameClashError(f"two arrays are called {SEED!r}, and the file would hold one of them")
    for name in samples.arrays:
        check_name(name)
    return {SEED: np.array(samples.seeds, np.int64), **samples.arrays}


def constants_of(samples: Samples) -> Arrays:
    """OUTPUT_labels, OUTPUT_range and OUTPUT_spacing, of those that have them; see `sample_folder.filling`."""
    constants: dict[str, NDArray[Any]] = {}
    for output in samples.outputs:
        if output.labels:
            constants[f"{output.name}_labels"] = np.array(output.labels)
        if _has_range(output):
            constants[f"{output.name}_range"] = np.array([output.low, output.high], np.float64)
        if output.spacing:
            constants[f"{output.name}_spacing"] = np.array(output.spacing, np.float64)
    return constants


def _has_range(output: Output) -> bool:
    return output.dtype != "uint8" and len(output.shape) == 3 and output.low < output.high


def check_name(name: str, *others: str) -> None:
    """Raises NameClashError if no file can be called so, or if one of the others is."""
    if not PLAIN.fullmatch(name) or f"{name}s" in others:
        raise NameClashError(f"an output is called {name!r}, and no folder of samples can have it")


def bytes_of_arrays(shapes: Shapes) -> int:
    """What the arrays of one sample take."""
    return sum(kind.itemsize * int(np.prod(shape)) for kind, shape in shapes.values())
