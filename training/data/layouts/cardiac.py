"""Cardiac MRI with masks of its structures: ACDC and M&Ms as pairs."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from training.data.classes import HEART
from training.data.dataset import LoadedPairs
from training.data.layouts import acdc, mnms
from training.data.layouts.cached_slices import Slices, prepared_slices
from training.data.layouts.recording import Recording, prefixes
from training.data.listing import list_files
from training.data.preparation.resize import fit_classes, fit_image
from training.data.problems import DataError, Problems, progress, some
from training.data.spooled import Spooled


def load_cardiac(
    folder: Path,
    size: int,
    split: str = "train",
    skip_bad: bool = False,
    validation_fraction: float = 0.2,
    seed: int = 0,
) -> LoadedPairs:
    """The slices of an ACDC or M&Ms folder that hold structures, at end-diastole and end-systole.

    ``training.data.preparation`` does that: all are seen from the same side, 160 mm around the heart, whatever the
    size. That takes seconds for every stack, so what comes of it is kept in the
    user's cache.
    Of patients of the same name in several folders, the names of slices begin with the folder; they are on one side of
    a split, since they may be the same. Masks hold 0 background, 1 LV, 2 MYO and 3 RV whatever their files do.

    Args:
        folder: holds ACDC's ``patientNNN/``, or folders of these, or M&Ms' folders and its CSV.
        size: rows and columns of an item.
        split: "train", "validation" or "all". A patient in a folder ``Testing`` is in "all" alone. Those in a folder
            ``Validation`` are the validation patients; where there is none, they are drawn.
        skip_bad: leave out, and log, files that cannot be used.
        validation_fraction: how likely a patient is drawn for validation, whichever others are there.
        seed: of that draw.

    Raises:
        DataError: a file of the split is missing or cannot be used (all are listed), patients of one name are in
            several parts, or no slice is left.
    """
    problems = Problems(folder)
    layout = acdc if acdc.find_patients(folder) else mnms
    recordings = layout.find_recordings(folder, problems)
    parts = assign(recordings, folder, validation_fraction, seed)
    if split != "all":
        check_parts(recordings, parts, folder)
    chosen = {
        recording.image.relative_to(folder).as_posix(): (prefix, recording)
        for prefix, recording, part in zip(prefixes(recordings, folder), recordings, parts, strict=True)
        if split in ("all", part)
    }
    names, used = [], {}
    images, masks = Spooled[np.float32](), Spooled[np.uint8]()
    for name in progress(list(chosen), folder):
        prefix, recording = chosen[name]
        slices = prepared_slices(recording, problems)
        if slices is None:
            continue
        used[name] = slices._replace(images=slices.images[:0], masks=slices.masks[:0])
        for slice_name, image, mask in zip(slices.names, slices.images, slices.masks, strict=True):
            fitted = fit_classes(mask, size, len(HEART))
            if fitted.any():
                names.append(f"{prefix}{slice_name}")
                images.append(fit_image(image, size))
                masks.append(fitted)
    problems.settle(skip_bad)
    if not names:
        raise DataError(f"{folder}: no slice of the {split} split can be used")
    files = {path for name in used for path in (chosen[name][1].image, chosen[name][1].mask)}
    reading = {
        "layout": layout.NAME,
        "split": split,
        "patients": len({(prefix, recording.patient) for prefix, recording in (chosen[name] for name in used)}),
        **_geometry(list(used.values())),
        "left_out": problems.left_out,
    }
    tables = filter(None, [mnms.find_table(folder)]) if layout is mnms else []
    return LoadedPairs(names, images, masks, HEART, reading, _warnings(used), list_files(folder, {*files, *tables}))


def _geometry(used: Sequence[Slices]) -> dict[str, Any]:
    """How the recordings lay in their files."""
    spacing = np.array([slices.spacing for slices in used]).round(4)
    return {
        "recordings": len(used),
        "axes": dict(Counter(str(slices.axes) for slices in used)),
        "turned_by_half": sum(str(slices.turned) == "by half" for slices in used),
        "spacing_mm": [[float(low), float(high)] for low, high in zip(spacing.min(0), spacing.max(0), strict=True)],
        "with_values_below_0": sum(bool(slices.below_zero) for slices in used),
    }


def _warnings(used: Mapping[str, Slices]) -> list[str]:
    odd = [name for name, slices in used.items() if str(slices.turned) == "not"]
    if not odd:
        return []
    return [f"by their axes the RV lies to the patient's left of the LV in {len(odd)} files: {some(odd)}"]


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


def check_parts(recordings: Sequence[Recording], parts: Sequence[str], folder: Path) -> None:
    """Raises DataError if patients of one name are in several parts: they may be one, and nobody may be in two."""
    of_patient: dict[str, set[str]] = {}
    for recording, part in zip(recordings, parts, strict=True):
        of_patient.setdefault(recording.patient, set()).add(part)
    if torn := sorted(patient for patient, those in of_patient.items() if len(those) > 1):
        raise DataError(
            f"{folder}: {len(torn)} patients are in more than one of train, validation and testing: {some(torn)}; if "
            "they are others of the same name, rename them"
        )


def _draw(patient: str, seed: int) -> float:
    """A number in [0, 1) that depends on nothing else."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{patient}".encode()).digest()[:6], "big") / 2**48
