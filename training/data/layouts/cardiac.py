"""Cardiac MRI with masks of its structures: ACDC and M&Ms as pairs."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

from training.data.classes import HEART
from training.data.dataset import LoadedPairs
from training.data.layouts import acdc, mnms
from training.data.layouts.cached_slices import cache_folder, prepared_slices
from training.data.layouts.recording import Recording
from training.data.preparation.resize import fit_classes, fit_image
from training.data.problems import DataError, Problems, progress

log = logging.getLogger(__name__)


def load_cardiac(
    folder: Path,
    size: int,
    split: str = "train",
    skip_bad: bool = False,
    validation_fraction: float = 0.2,
    seed: int = 0,
) -> LoadedPairs:
    """The slices of an ACDC or M&Ms folder that hold structures, at end-diastole and end-systole.

    ``training.data.preparation.short_axis`` prepares them: 160 mm around the heart, whatever the size, rows along the
    files' y axis and columns along their x. That takes seconds for every stack, so what comes of it is kept in the
    user's cache.
    Masks hold 0 background, 1 LV, 2 MYO and 3 RV whatever their files do.

    Args:
        folder: holds ACDC's ``patientNNN/``, or folders of these, or M&Ms' folders and its CSV.
        size: rows and columns of an item.
        split: "train", "validation" or "all". A patient in a folder ``Testing`` is in "all" alone. Those in a folder
            ``Validation`` are the validation patients; where there is none, they are drawn.
        skip_bad: leave out, and log, files that cannot be used.
        validation_fraction: how likely a patient is drawn for validation, whichever others are there.
        seed: of that draw.

    Raises:
        DataError: a file of the split is missing or cannot be used (all are listed), or no slice is left.
    """
    problems = Problems(folder)
    layout = acdc if acdc.find_patients(folder) else mnms
    recordings = layout.find_recordings(folder, problems)
    parts = assign(recordings, folder, validation_fraction, seed)
    chosen = {
        next(iter(recording.frames)): recording
        for recording, part in zip(recordings, parts, strict=True)
        if split in ("all", part)
    }
    log.info("%s: prepared slices are kept in %s", folder, cache_folder())
    names, images, masks, patients = [], [], [], set()
    for name in progress(list(chosen), folder):
        slices = prepared_slices(chosen[name], problems)
        if slices is None:
            continue
        patients.add(chosen[name].patient)
        for slice_name, image, mask in zip(*slices, strict=True):
            fitted = fit_classes(mask, size, len(HEART))
            if fitted.any():
                names.append(str(slice_name))
                images.append(fit_image(image, size))
                masks.append(fitted)
    problems.settle(skip_bad)
    if not names:
        raise DataError(f"{folder}: no slice of the {split} split can be used")
    log.info("%s: the %s split has %d slices of %d patients", folder, split, len(names), len(patients))
    return LoadedPairs(names, images, masks, HEART)


def assign(recordings: Sequence[Recording], folder: Path, validation_fraction: float, seed: int) -> list[str]:
    """The part of every recording, "train", "validation" or "testing": as published, or by the patient's number."""
    folders = [{part.lower() for part in recording.image.relative_to(folder).parts[:-1]} for recording in recordings]
    if any("validation" in names for names in folders):
        validation_fraction = 0
    return [
        "testing"
        if "testing" in names
        else "validation"
        if "validation" in names or _draw(recording.patient, seed) < validation_fraction
        else "train"
        for recording, names in zip(recordings, folders, strict=True)
    ]


def _draw(patient: str, seed: int) -> float:
    """A number in [0, 1) that depends on nothing else."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{patient}".encode()).digest()[:6], "big") / 2**48
