"""Samples as a folder of files: PNG, a contact sheet, pairs.npz, provenance.json and NIfTI."""

import dataclasses
import json
import math
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Output
from serving.folders import Busy, check_place, recover, replacing
from serving.sample_set import Samples
from serving.writers.nifti import write_nifti
from serving.writers.pictures import contact_sheet, drawings

PROVENANCE = "provenance.json"
SHEET = "sheet.png"
NIFTI = "nifti"
OTHERS = ("pairs.npz", SHEET, PROVENANCE, "overlays", NIFTI)
PLAIN = re.compile(r"\w+", re.ASCII)  # a name that is one on every file system


class NameClashError(Exception):
    """Two arrays or folders would have the same name, or one has a name that no file can have."""


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
    samples: Samples, folder: Path, replace: bool = False, nifti: bool = False, notes: Sequence[str] = ()
) -> list[str]:
    """Writes samples to a new folder, whole or not at all, and returns the names of what it holds.

    pairs.npz: every output [N, ...] as it came, with OUTPUT_labels, the names of its classes, OUTPUT_range, the values
    that are black and white in a picture, and OUTPUT_spacing, in mm, where it has them; and seed [N]. masks/, images/
    and overlays/ (images with outlines): one 8-bit PNG per sample, named by its seed, and where a seed comes again also
    by how often it has, as 000007_2. sheet.png: an overview. provenance.json: what made each sample, its outputs of one
    number (as a PSNR), its files' name, what the outputs mean, and notes. nifti/, if asked for: see write_nifti. Raises
    OSError as check_destination does, and NameClashError.
    """
    folder = folder.resolve()
    check_destination(folder, replace)
    arrays = _arrays(samples)
    try:
        # Not lasting: they are thousands of files, and can be drawn again.
        with replacing(folder, lasting=False) as (unfinished,):
            try:
                _fill(unfinished, samples, arrays, nifti, notes)
            except OSError as error:  # which may not say where
                raise OSError(f"{folder} cannot be written: {error.strerror or error}") from error
            _check_is_free(folder, replace)
    except Busy as error:
        raise OSError(str(error)) from None
    return sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())


def _fill(
    folder: Path, samples: Samples, arrays: Mapping[str, NDArray[Any]], nifti: bool, notes: Sequence[str]
) -> None:
    # As np.savez does, which leaves the file to the garbage collector if the disk is full, and that complains.
    with zipfile.ZipFile(folder / "pairs.npz", "w") as pairs:
        for name, values in arrays.items():
            with pairs.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, values, allow_pickle=False)
    for row, name in enumerate(samples.names):
        for kind, picture in drawings(samples, row).items():
            (folder / kind).mkdir(exist_ok=True)
            picture.save(folder / kind / f"{name}.png")
    if drawings(samples, 0):
        contact_sheet(samples).save(folder / SHEET)
    if nifti:
        write_nifti(samples, folder / NIFTI)
    record = {
        "outputs": [dataclasses.asdict(output) for output in samples.outputs],
        **({"notes": list(notes)} if notes else {}),
        "files": samples.names,
        "samples": [{**facts, **numbers} for facts, numbers in zip(samples.provenance, _numbers(samples), strict=True)],
    }
    (folder / PROVENANCE).write_text(json.dumps(record, indent=1) + "\n")


def _is_picture(output: Output) -> bool:
    return output.dtype != "uint8" and len(output.shape) == 3 and output.low < output.high


def _numbers(samples: Samples) -> list[dict[str, dict[str, float]]]:
    """For each sample its outputs that are one number, by name, or nothing where it has none."""
    singles = {o.name: samples.arrays[o.name].reshape(-1) for o in samples.outputs if math.prod(o.shape) == 1}
    rows = [{name: values[row].item() for name, values in singles.items()} for row in range(len(samples))]
    return [{"numbers": row} if row else {} for row in rows]


def _arrays(samples: Samples) -> dict[str, NDArray[Any]]:
    """What pairs.npz holds."""
    arrays: list[tuple[str, NDArray[Any]]] = [("seed", np.array(samples.seeds, np.int64)), *samples.arrays.items()]
    for output in samples.outputs:
        if not PLAIN.fullmatch(output.name) or f"{output.name}s" in OTHERS:
            raise NameClashError(f"an output is called {output.name!r}, and no folder of samples can have it")
        if output.labels:
            arrays.append((f"{output.name}_labels", np.array(output.labels)))
        if _is_picture(output):
            arrays.append((f"{output.name}_range", np.array([output.low, output.high], np.float64)))
        if output.spacing:
            arrays.append((f"{output.name}_spacing", np.array(output.spacing, np.float64)))
    named = dict(arrays)
    if len(named) < len(arrays):
        names = [name for name, _ in arrays]
        twice = next(name for name in names if names.count(name) > 1)
        raise NameClashError(f"two arrays are called {twice!r}, and pairs.npz would hold one of them")
    return named
