"""Folders of pairs in every layout that is read, and samples that are drawn for the purpose."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.pairs import EvaluationError, Pairs
from serving.drawn_set import INDEX, SetError, common
from serving.sample_set import Samples
from serving.writers.nnunet import DATASET, IMAGES, LABELS
from serving.writers.sample_folder import PAIRS, PROVENANCE
from training.data import DataError, open_dataset
from training.data.classes import LESION
from training.data.formats.grey_image import read_grey
from training.data.formats.nifti import read_nifti
from training.data.layouts.mini_mias import patient_of
from training.data.preparation.resize import fit_classes, fit_image
from training.data.problems import BadFileError, some

NIFTI = ".nii.gz"
MOMENT = re.compile(r"_(?:frame\d+|ED|ES)(?:_slice\d+)?$|_slice\d+$")  # what a patient's name ends before
PERCENTILES = (1, 99)  # of a volume in units of its own, which become 0 and 1
ONE_PATIENT_EACH = "nothing is known of its patients, so each pair counts as one: intervals are too narrow if it is not"


def read_pairs(
    source: str,
    size: int | None = None,
    split: str = "all",
    labels: tuple[str, ...] = (),
    patient: str | None = None,
    name: str | None = None,
    skip_bad: bool = False,
) -> Pairs:
    """Pairs of a folder that `serving sample` or `draw` wrote (npz), of a raw data set of nnU-Net, of NIfTI files, or
    of what `fit` reads: images/ and masks/, mini-MIAS, ACDC, M&Ms, "phantom:COUNT".

    Args:
        source: the folder.
        size: rows and columns that pictures get, by padding to a square and averaging areas; None: as they are.
        split: "train", "validation" or "all", for what `fit` splits by patient; the others have "all" alone.
        labels: the classes of the phantoms, and the order of those of nnU-Net.
        patient: an expression that finds the patient in a pair's name: its first group, or all that it matches.
        name: what tables call them; by default the source.
        skip_bad: leave out, and log, files that cannot be used, where `fit` could.

    Raises:
        EvaluationError: there are no such pairs, or they cannot be read.
    """
    folder = Path(source)
    try:
        if (folder / PAIRS).is_file():
            found = _sampled(folder, [folder / PAIRS], _provenance_of_samples(folder))
        elif (folder / INDEX).is_file():
            found = _sampled(folder, sorted(folder.glob("part-*.npz")), _provenance_of_set(folder))
        elif (folder / DATASET).is_file():
            found = _nnunet(folder, labels)
        elif cases := _nifti_cases(folder):
            found = _nifti(folder, cases)
        else:
            return _renamed(_learnt(source, size or 128, split, labels, skip_bad), name, patient)
    except (BadFileError, OSError, KeyError, ValueError, BadZipFile) as error:
        raise EvaluationError(f"{source} holds no pairs that can be read: {error}") from error
    if split != "all":
        raise EvaluationError(f"{source} has no split of its own: name the pairs that were trained on with --train")
    return _renamed(_fitted(found, size), name, patient)


def has_split(source: str) -> bool:
    """Whether `fit` splits it by patient: mini-MIAS, ACDC, M&Ms and phantoms."""
    folder = Path(source)
    own = (PAIRS, INDEX, DATASET, "images")
    return not (folder.is_dir() and (any((folder / there).exists() for there in own) or _nifti_cases(folder)))


def of_samples(samples: Samples, name: str) -> Pairs:
    """What a client drew."""
    labels = next((output.labels for output in samples.outputs if output.name == "mask"), ())
    facts = {"layout": "drawn", "drawn_by": _common(samples.provenance)}
    return _of_arrays(name, samples.arrays, labels, tuple(samples.names), facts)


def _renamed(pairs: Pairs, name: str | None, patient: str | None) -> Pairs:
    knows, patients, warnings = pairs.knows_patients, pairs.patients, pairs.warnings
    if patient is not None:
        found = [re.search(patient, each) for each in pairs.names]
        if None in found:
            missed = [each for each, match in zip(pairs.names, found, strict=True) if match is None]
            raise EvaluationError(f"--patient {patient!r} finds nothing in {len(missed)} names: {some(missed)}")
        knows, patients = True, tuple(match[1 if match.re.groups else 0] for match in found if match)
        warnings = tuple(line for line in warnings if line != ONE_PATIENT_EACH)
    return replace(pairs, name=name or pairs.name, patients=patients, knows_patients=knows, warnings=warnings)


# --- what medgen drew ---


def _sampled(folder: Path, files: Sequence[Path], facts: dict[str, Any]) -> Pairs:
    if not files:
        raise EvaluationError(f"{folder} is a set of samples without part-*.npz: draw it with --layout npz")
    parts = []
    for file in files:
        with np.load(file) as arrays:
            parts.append(dict(arrays))
    labels = tuple(parts[0]["mask_labels"].tolist()) if "mask_labels" in parts[0] else ()
    seeds = np.concatenate([part.get("seed", np.arange(len(part["mask"]))) for part in parts])
    arrays = {each: np.concatenate([part[each] for part in parts]) for each in ("image", "mask")}
    names = tuple(f"seed {seed} ({row})" for row, seed in enumerate(seeds))
    facts = {"layout": "samples", "seeds": [int(seeds.min()), int(seeds.max())], **facts}
    pairs = _of_arrays(str(folder), arrays, labels, names, facts)
    if not labels:
        warning = f"{folder} does not name the classes of its masks: only their range was checked"
        return replace(pairs, warnings=(warning,))
    return pairs


def _of_arrays(
    name: str,
    arrays: Mapping[str, NDArray[Any]],
    labels: tuple[str, ...],
    names: tuple[str, ...],
    facts: dict[str, Any],
) -> Pairs:
    for needed in ("image", "mask"):
        if needed not in arrays:
            raise EvaluationError(f"{name} has no {needed}; it has {', '.join(arrays)}: pairs of both are compared")
    image, mask = arrays["image"], arrays["mask"]
    if image.shape != mask.shape or image.ndim != 4 or image.shape[1] != 1 or mask.dtype != np.uint8:
        shapes = f"{image.dtype} images {list(image.shape)} and {mask.dtype} masks {list(mask.shape)}"
        raise EvaluationError(f"{name} has {shapes}; they must be [N, 1, S, S], and masks uint8")
    if not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
        raise EvaluationError(f"{name} has images from {image.min():g} to {image.max():g}; they must be from 0 to 1")
    return Pairs(name, image[:, 0].astype(np.float32), mask[:, 0], labels, names, names, True, facts)


def _provenance_of_samples(folder: Path) -> dict[str, Any]:
    try:
        return {"drawn_by": _common(json.loads((folder / PROVENANCE).read_text())["samples"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"drawn_by": None}


def _provenance_of_set(folder: Path) -> dict[str, Any]:
    return {"drawn_by": json.loads((folder / INDEX).read_text()).get("drawn_by")}


def _common(provenance: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What made all samples, or None where that is not the same for all."""
    try:
        return common(provenance)
    except SetError:
        return None


# --- files of others ---


def _learnt(source: str, size: int, split: str, labels: tuple[str, ...], skip_bad: bool) -> Pairs:
    try:
        dataset = open_dataset(source, size, split, skip_bad, labels or LESION)
    except DataError as error:
        raise EvaluationError(str(error)) from error
    items = [dataset[row] for row in range(len(dataset))]
    images = np.stack([item["image"].numpy()[0] for item in items]) / 2 + 0.5
    masks = np.stack([item["mask"].numpy()[0] for item in items])
    reading = dict(getattr(dataset, "reading", {}))
    layout = reading.get("layout", "phantoms")
    names = tuple(getattr(dataset, "names", [f"{split} phantom {row}" for row in range(len(items))]))
    knows = layout != "pairs"
    if layout == "mini-MIAS":
        patients = tuple(f"patient {patient_of(each) + 1}" for each in names)
    else:
        patients = tuple(MOMENT.sub("", each) for each in names) if knows else names
    warnings = [*getattr(dataset, "warnings", ()), *([] if knows else [ONE_PATIENT_EACH])]
    facts = {"layout": layout, "split": split, **reading}
    return Pairs(
        source, images.astype(np.float32), masks, dataset.labels, names, patients, knows, facts, tuple(warnings)
    )


def _nnunet(folder: Path, wanted: tuple[str, ...]) -> Pairs:
    described = json.loads((folder / DATASET).read_text())
    given = {str(label): int(number) for label, number in described["labels"].items() if not isinstance(number, list)}
    labels = tuple(sorted(given, key=given.__getitem__))
    order = wanted if wanted and {*wanted} == {*labels} else labels
    known = np.zeros(max(given.values()) + 1, np.int64) - 1
    for label, number in given.items():
        known[number] = order.index(label)
    ending = described["file_ending"]
    cases = sorted(file.name.removesuffix(ending) for file in (folder / LABELS).glob(f"*{ending}"))
    if not cases:
        raise EvaluationError(f"{folder / LABELS} holds no *{ending}, which its {DATASET} says are the labels")
    files = {case: (folder / IMAGES / f"{case}_0000{ending}", folder / LABELS / f"{case}{ending}") for case in cases}
    read = {case: _read_case(*both) for case, both in files.items()}
    drawn = all(case.startswith("synthetic_") for case in cases)
    return _of_slices(str(folder), read, order, {"layout": "nnU-Net", "labels_in_file": given}, known, drawn)


def _nifti_cases(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Images and masks that belong together: CASE_image and CASE_mask, or images/CASE and masks/CASE."""
    beside = {
        file.name.removesuffix(f"_mask{NIFTI}"): (file.with_name(file.name.replace("_mask.", "_image.")), file)
        for file in sorted(folder.glob(f"*_mask{NIFTI}"))
    }
    apart = {
        file.name.removesuffix(NIFTI): (folder / "images" / file.name, file)
        for file in sorted((folder / "masks").glob(f"*{NIFTI}"))
    }
    return beside or apart


def _nifti(folder: Path, cases: Mapping[str, tuple[Path, Path]]) -> Pairs:
    masks = [mask.with_name(mask.name.removesuffix(NIFTI) + ".json") for _, mask in cases.values()]
    sidecars = [json.loads(file.read_text()) for file in masks if file.is_file()]
    labels = tuple(sidecars[0].get("labels", {}).values()) if sidecars else ()
    drawn = len(sidecars) == len(cases) and all("provenance" in each for each in sidecars)
    drawn_by = {"drawn_by": _common([each["provenance"] for each in sidecars])} if drawn else {}
    read = {case: _read_case(*both) for case, both in cases.items()}
    return _of_slices(str(folder), read, labels, {"layout": "NIfTI", **drawn_by}, None, drawn)


def _read_case(image: Path, mask: Path) -> tuple[NDArray[Any], NDArray[Any], tuple[float, ...]]:
    """Slices [Z, rows, columns] of both, and the sides of a pixel in mm."""
    if not image.name.endswith((NIFTI, ".nii")):
        grey, classes = read_grey(image).pixels, read_grey(mask).pixels
        _check_shapes(image, grey.shape, classes.shape)
        white = 1.0 if grey.dtype.kind == "f" else float(np.iinfo(grey.dtype).max)
        return (grey / white)[None], classes[None], ()
    volume, labelled = read_nifti(image), read_nifti(mask)
    _check_shapes(image, volume.voxels.shape, labelled.voxels.shape)
    if not np.allclose(volume.affine, labelled.affine, atol=1e-3):
        raise EvaluationError(f"{mask} lies elsewhere than its image: their affines differ")
    if volume.voxels.ndim != 3:
        raise EvaluationError(f"{image} has the shape {volume.voxels.shape}; it must be (x, y, slice)")
    spacing = tuple(np.linalg.norm(volume.affine[:3, :2], axis=0).round(4).tolist())
    return volume.voxels.T, labelled.voxels.T, spacing


def _check_shapes(image: Path, one: tuple[int, ...], other: tuple[int, ...]) -> None:
    if one != other:
        raise EvaluationError(f"{image} has the shape {one}, and its mask {other}")


def _of_slices(
    name: str,
    read: Mapping[str, tuple[NDArray[Any], NDArray[Any], tuple[float, ...]]],
    labels: tuple[str, ...],
    facts: dict[str, Any],
    known: NDArray[np.int64] | None,
    drawn: bool,
) -> Pairs:
    """Of volumes, the slices that show a structure, as training takes them; of single slices, all."""
    images, masks, names, patients, scaled, left_out = [], [], [], [], 0, 0
    for case, (grey, classes, _) in read.items():
        if not np.isin(classes, np.arange(256)).all() or (known is not None and classes.max() >= len(known)):
            raise EvaluationError(
                f"{name}: the mask of {case} holds {np.unique(classes)[:9].tolist()}, not class indices"
            )
        grey = grey.astype(np.float32)
        if grey.min() < 0 or grey.max() > 1:
            low, high = np.percentile(grey, PERCENTILES)
            grey, scaled = ((grey - low) / max(high - low, 1e-6)).clip(0, 1), scaled + 1
        indices = classes.astype(np.int64) if known is None else known[classes.astype(np.int64)]
        if (indices < 0).any():
            raise EvaluationError(f"{name}: the mask of {case} holds a value that its labels do not name")
        for level, (image, mask) in enumerate(zip(grey, indices.astype(np.uint8), strict=True)):
            if len(grey) > 1 and not mask.any():
                left_out += 1
                continue
            images.append(image)
            masks.append(mask)
            names.append(case if len(grey) == 1 else f"{case}_slice{level:02d}")
            patients.append(MOMENT.sub("", case))
    spacings = sorted({spacing for *_, spacing in read.values()})
    facts |= {"spacings_mm": [list(each) for each in spacings[:9]], "slices_without_a_structure": left_out}
    facts |= {"volumes_scaled_by_percentiles": scaled}
    knows = drawn or len({*patients}) < len(names)
    warnings = [] if knows else [ONE_PATIENT_EACH]
    if len(spacings) > 1:
        warnings.append(
            f"{name} has pixels of {len(spacings)} sizes in mm; they are compared pixel by pixel all the same"
        )
    side = max(max(image.shape) for image in images)
    if any(image.shape != (side, side) for image in images):
        count = int(max(mask.max() for mask in masks)) + 1
        images = [fit_image(image, side) for image in images]
        masks = [fit_classes(mask, side, max(count, len(labels))) for mask in masks]
    return Pairs(
        name, np.stack(images), np.stack(masks), labels, tuple(names), tuple(patients), knows, facts, tuple(warnings)
    )


def _fitted(pairs: Pairs, size: int | None) -> Pairs:
    """In squares of this size or, without one, of the longer side."""
    size = size or max(pairs.images.shape[1:])
    if pairs.images.shape[1:] == (size, size):
        return pairs
    count = max(len(pairs.labels), int(pairs.masks.max()) + 1)
    images = np.stack([fit_image(image, size) for image in pairs.images])
    masks = np.stack([fit_classes(mask, size, count) for mask in pairs.masks])
    return replace(
        pairs, images=images, masks=masks, facts={**pairs.facts, "resized_from": list(pairs.images.shape[1:])}
    )
