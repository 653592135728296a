"""Samples as a folder of files: PNG, a contact sheet, pairs.npz, provenance.json and NIfTI."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np

from serving.sample_set import Samples
from serving.writers.nifti import write_nifti
from serving.writers.pictures import contact_sheet, drawings

PROVENANCE = "provenance.json"
SHEET = "sheet.png"
NIFTI = "nifti"


def check_destination(folder: Path, replace: bool = False) -> None:
    """Raises FileExistsError if folder holds something that write_samples may not replace."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / PROVENANCE).is_file():
        raise FileExistsError(f"{folder} exists and holds no samples: choose another folder")
    if not replace:
        raise FileExistsError(f"{folder} holds samples already: choose another folder, or replace them with --force")
    if others := sorted({path.name for path in folder.iterdir()} - _written_names(folder)):
        raise FileExistsError(f"{folder} holds {others[0]} beside samples, and would lose it: choose another folder")


def _written_names(folder: Path) -> set[str]:
    """What write_samples may have put into a folder of samples."""
    try:
        outputs = json.loads((folder / PROVENANCE).read_text())["outputs"]
        return {"pairs.npz", SHEET, PROVENANCE, "overlays", NIFTI, *(f"{output['name']}s" for output in outputs)}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def write_samples(samples: Samples, folder: Path, replace: bool = False, nifti: bool = False) -> list[str]:
    """Writes samples to a new folder, whole or not at all, and returns the names of what it holds.

    pairs.npz: every output [N, ...] as it came, and seed [N]. masks/, images/ and overlays/ (images with outlines): one
    8-bit PNG per sample, named by its seed. sheet.png: an overview. provenance.json: what made each sample, and what
    the outputs mean. nifti/, if asked for: see write_nifti. Raises FileExistsError as check_destination does.
    """
    folder = folder.resolve()
    check_destination(folder, replace)
    unfinished = folder.with_name(f".{folder.name}-{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        np.savez(unfinished / "pairs.npz", seed=np.array(samples.seeds, np.int64), **samples.arrays)
        for row, seed in enumerate(samples.seeds):
            for name, picture in drawings(samples, row).items():
                (unfinished / name).mkdir(exist_ok=True)
                picture.save(unfinished / name / f"{seed:06d}.png")
        if drawings(samples, 0):
            contact_sheet(samples).save(unfinished / SHEET)
        if nifti:
            write_nifti(samples, unfinished / NIFTI)
        record = {"outputs": [dataclasses.asdict(output) for output in samples.outputs], "samples": samples.provenance}
        (unfinished / PROVENANCE).write_text(json.dumps(record, indent=1) + "\n")
        _put_in_place(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir())


def _put_in_place(unfinished: Path, folder: Path) -> None:
    replaced = unfinished.with_name(f"{unfinished.name}-replaced")
    if folder.exists():
        folder.rename(replaced)
    unfinished.rename(folder)
    shutil.rmtree(replaced, ignore_errors=True)
