"""Samples as a folder of files: PNG, a contact sheet, pairs.npz, provenance.json, and any layout."""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serving.folders import Busy, check_place, recover, replacing
from serving.sample_set import Samples, bundles_of
from serving.writers.layout import Layout, LayoutError, text_of
from serving.writers.layouts import LAYOUTS, part_name
from serving.writers.npz import GrowingNpz, NameClashError, check_name
from serving.writers.pictures import contact_sheet, drawings
from serving.writers.png import Png

PROVENANCE = "provenance.json"
SHEET = "sheet.png"
PAIRS = "pairs.npz"
OTHERS = (PAIRS, SHEET, PROVENANCE, "overlays", *LAYOUTS)
PNG = Png()
ANEW = "the model was loaded anew meanwhile; ask again"


def check_destination(folder: Path, replace: bool = False) -> None:
    """Raises OSError if write_samples cannot put samples there, FileExistsError if it may not."""
    try:
        folder = folder.resolve()
        if folder.is_dir() and os.path.ismount(folder):
            raise FileExistsError(f"{folder} is a mount point, and cannot be replaced: choose a folder in it")
        _try(folder)
        recover(folder)
        _check_is_free(folder, replace)
    except Busy as error:
        raise OSError(str(error)) from None
    except ValueError as error:  # a NUL, or what the file system's encoding lacks
        raise OSError(f"{str(folder)!r} cannot be a folder: {error}") from None


def _check_is_free(folder: Path, replace: bool) -> None:
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / PROVENANCE).is_file():
        raise FileExistsError(f"{folder} exists and holds no samples: choose another folder")
    if not replace:
        raise FileExistsError(f"{folder} holds samples already: choose another folder, or replace them with --force")
    if others := sorted({path.name for path in folder.iterdir()} - _written_names(folder)):
        raise FileExistsError(f"{folder} holds {others[0]} beside samples, and would lose it: choose another folder")


def _try(folder: Path) -> None:
    try:
        check_place(folder)
    except OSError as error:
        raise OSError(f"{folder} cannot be written: {error.strerror or error}") from None


def _written_names(folder: Path) -> set[str]:
    """What write_samples may have put into a folder of samples."""
    try:
        outputs = json.loads((folder / PROVENANCE).read_text())["outputs"]
        return {*OTHERS, *(f"{output['name']}s" for output in outputs)}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def write_samples(
    samples: Samples, folder: Path, replace: bool = False, layouts: Sequence[Layout] = (), notes: Sequence[str] = ()
) -> list[str]:
    """Writes samples to a new folder, whole or not at all, and returns the names of what it holds; see `filling`."""
    with filling(folder, replace, layouts, notes) as add:
        add(samples)
    return names_in(folder)


@contextmanager
def filling(
    folder: Path, replace: bool = False, layouts: Sequence[Layout] = (), notes: Sequence[str] = ()
) -> Iterator[Callable[[Samples], None]]:
    """What adds samples to a new folder, part by part; the folder is there when the context ends well, or not at all.

    pairs.npz: every output [N, ...] as it came, with OUTPUT_labels, the names of its classes, OUTPUT_range, the values
    that are black and white in a picture, and OUTPUT_spacing, in mm, where it has them; and seed [N]. masks/, images/
    and overlays/ (images with outlines): one 8-bit PNG per sample, named by its seed, and where a seed comes again also
    by how often it has, as 000007_2. sheet.png: an overview. provenance.json: what made each sample, its outputs of one
    number (as a PSNR), its files' name, what the outputs mean, and notes. Of each layout a folder of its name. What was
    added is on disk, and no more in memory than the first part. Raises OSError as check_destination does,
    NameClashError and LayoutError.
    """
    folder = folder.resolve()
    check_destination(folder, replace)
    try:
        # Not lasting: they are thousands of files, and can be drawn again.
        with replacing(folder, lasting=False) as (unfinished,):
            try:
                with GrowingNpz(unfinished / PAIRS) as pairs:
                    filled = _Filled(unfinished, pairs, layouts)
                    yield filled.add
                    filled.finish(notes)
            except OSError as error:  # which may not say where
                raise OSError(f"{folder} cannot be written: {error.strerror or error}") from error
            _check_is_free(folder, replace)
    except Busy as error:
        raise OSError(str(error)) from None


def names_in(folder: Path) -> list[str]:
    return sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())


class _Filled:
    """A folder of samples that more are added to."""

    def __init__(self, folder: Path, pairs: GrowingNpz, layouts: Sequence[Layout]) -> None:
        self._folder, self._pairs, self._layouts = folder, pairs, layouts
        self._first: Samples | None = None
        self._parts = 0
        self._names: list[str] = []
        self._taken: set[str] = set()
        self._provenance: list[dict[str, Any]] = []
        self._numbers: list[dict[str, dict[str, float]]] = []

    def add(self, samples: Samples) -> None:
        for output in samples.outputs:
            check_name(output.name, *OTHERS)
        if twice := self._taken & {*samples.names}:
            raise NameClashError(f"samples of {min(twice)} are there already")
        if self._first is not None and (samples.outputs, samples.given) != (self._first.outputs, self._first.given):
            raise LayoutError(
                f"from {samples.names[0]} on samples have other outputs, classes, ranges or spacings than before: "
                f"{ANEW}"
            )
        bundles = {bundles_of(facts) for facts in samples.provenance}
        if len(bundles | ({bundles_of(self._provenance[0])} if self._provenance else set())) > 1:
            raise LayoutError(f"{samples.names[0]} and those with it were drawn by another bundle: {ANEW}")
        if self._first is None:
            self._first = samples
            for layout in self._layouts:
                layout.check_outputs(samples.outputs, samples.given)
                (self._folder / layout.name).mkdir()
        self._pairs.add(samples)
        PNG.write(samples, self._folder, "")
        for layout in self._layouts:
            layout.write(samples, self._folder / layout.name, part_name(self._parts))
        self._parts += 1
        self._names += samples.names
        self._taken |= {*samples.names}
        self._provenance += samples.provenance
        self._numbers += _numbers(samples)

    def finish(self, notes: Sequence[str]) -> None:
        assert self._first is not None
        if drawings(self._first, 0):
            contact_sheet(self._first).save(self._folder / SHEET)
        outputs, given, model = self._first.outputs, self._first.given, str(self._provenance[0]["model"])
        for layout in self._layouts:
            layout.describe(self._folder / layout.name, model, self._names, len(self._names), outputs, given)
        record = {
            "outputs": [dataclasses.asdict(output) for output in outputs],
            **({"given": list(given)} if given else {}),
            **({"notes": list(notes)} if notes else {}),
            "files": self._names,
            "samples": [{**facts, **numbers} for facts, numbers in zip(self._provenance, self._numbers, strict=True)],
        }
        (self._folder / PROVENANCE).write_text(text_of(record))


def _numbers(samples: Samples) -> list[dict[str, dict[str, float]]]:
    """For each sample its outputs that are one number, by name, or nothing where it has none."""
    singles = {o.name: samples.arrays[o.name].reshape(-1) for o in samples.outputs if math.prod(o.shape) == 1}
    rows = [{name: values[row].item() for name, values in singles.items()} for row in range(len(samples))]
    return [{"numbers": row} if row else {} for row in rows]
