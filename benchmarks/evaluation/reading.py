"""Folders of pairs, or of pictures alone, in every layout that is read, and samples drawn for the purpose."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.pairs import EvaluationError, Pairs
from serving.drawn_set import INDEX, RECORDS, SetError, common
from serving.sample_set import Samples
from serving.writers.nnunet import DATASET, IMAGES, LABELS
from serving.writers.sample_folder import PAIRS, PROVENANCE
from training.data import DataError, open_dataset
from training.data.classes import FIELD_OF_VIEW, HEART, LESION
from training.data.dataset import LoadedPairs
from training.data.formats.grey_image import SUFFIXES, read_grey
from training.data.formats.nifti import read_nifti
from training.data.layouts.mini_mias import patient_of
from training.data.layouts.picture_folder import beyond_white
from training.data.listing import digest
from training.data.preparation.grey_scale import BIT_DEPTHS, levels_of, scale_of
from training.data.preparation.resize import fit_classes, fit_image
from training.data.problems import BadFileError, some

Read = TypeVar("Read")

NIFTI = ".nii.gz"
MASK, SEED = "mask", "seed"  # arrays of samples
CUT_OUT = 128  # rows and columns of what has no size of its own
MOMENT = re.compile(r"_(?:frame\d+|ED|ES)(?:_slice\d+)?$|_slice\d+$")  # what a patient's name ends before
PERCENTILES = (1, 99)  # of a volume in units of its own, which become 0 and 1
UNNAMED = "does not name the classes of its masks: only their range was checked"
MASKS_OF_WHOM = "its files do not say whether its masks were given: if so, their shapes are none of the model's"
A_PATIENT_A_VOLUME = "each volume is taken for a patient of its own, by its name (--patient finds another in it)"
ONE_PATIENT_EACH = "nothing is known of its patients, so each pair counts as one: intervals are too narrow if it is not"
OF_PATIENTS = (A_PATIENT_A_VOLUME, ONE_PATIENT_EACH)


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
    of what `fit` reads: images/ and masks/ or images/ alone, mini-MIAS, ACDC, M&Ms, "phantom:COUNT".

    Args:
        source: the folder.
        size: rows and columns that pictures get, by padding to a square and averaging areas; None: as they are or, of
            what `fit` cuts out, 128.
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
            return _renamed(_learnt(source, size or _side_of(folder), split, labels, skip_bad), name, patient)
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
    drawn = {each: values for each, values in samples.arrays.items() if each not in samples.given or each == MASK}
    picture = _picture(name, drawn)
    outputs = {output.name: output for output in samples.outputs}
    labels = outputs[MASK].labels if MASK in outputs else ()
    facts = {"layout": "drawn", **_drawn_by(samples.provenance)}
    return _of_arrays(name, drawn, labels, tuple(samples.names), facts, outputs[picture].spacing)


def _renamed(pairs: Pairs, name: str | None, patient: str | None) -> Pairs:
    knows, patients, warnings = pairs.knows_patients, pairs.patients, pairs.warnings
    if patient is not None:
        try:
            found = [re.search(patient, each) for each in pairs.names]
        except re.error as error:
            raise EvaluationError(f"--patient {patient!r} is no expression: {error}") from error
        if None in found:
            missed = [each for each, match in zip(pairs.names, found, strict=True) if match is None]
            raise EvaluationError(f"--patient {patient!r} finds nothing in {len(missed)} names: {some(missed)}")
        knows, patients = True, tuple(match[1 if match.re.groups else 0] for match in found if match)
        warnings = tuple(line for line in warnings if line not in OF_PATIENTS)
    return replace(pairs, name=name or pairs.name, patients=patients, knows_patients=knows, warnings=warnings)


# --- what medgen drew ---


def _sampled(folder: Path, files: Sequence[Path], facts: dict[str, Any]) -> Pairs:
    if not files:
        raise EvaluationError(f"{folder} is a set of samples without part-*.npz: draw it with --layout npz")
    parts = []
    for file in files:
        with np.load(file) as arrays:
            parts.append(dict(arrays))
    held, labels, spacing = meaning = _meaning(parts[0])
    if strange := [file.name for file, part in zip(files, parts, strict=True) if _meaning(part) != meaning]:
        raise EvaluationError(
            f"{some(strange)} of {folder} hold other arrays, classes or spacings than {files[0].name}"
        )
    arrays = {each: np.concatenate([part[each] for part in parts]) for each in held}
    if SEED in arrays:
        seeds = arrays[SEED]
        names = tuple(f"seed {seed} ({row})" for row, seed in enumerate(seeds))
        facts = {"seeds": [int(seeds.min()), int(seeds.max())], **facts}
    else:  # no samples: arrays that somebody made of pictures
        names = tuple(f"row {row}" for row in range(len(arrays[_picture(str(folder), arrays)])))
    first = next((each for each in held if each != SEED), None)  # what was given stands before what was drawn
    given = {"given_masks": True} if facts.get("given_conditions") and first == MASK else {}
    pairs = _of_arrays(str(folder), arrays, labels, names, {"layout": "samples", **facts, **given}, spacing)
    warnings = [*pairs.warnings]
    if pairs.has_masks and not labels:
        warnings.append(f"{folder} {UNNAMED}")
    if SEED not in arrays:
        warnings.append(ONE_PATIENT_EACH)
    return replace(pairs, warnings=tuple(warnings), knows_patients=SEED in arrays)


def _meaning(part: Mapping[str, NDArray[Any]]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[float, ...] | None]:
    """Which arrays a file of samples has, the classes of its masks, and the sides of a pixel in mm."""
    held = tuple(each for each, values in part.items() if values.ndim == 4 or each == SEED)
    labels = tuple(map(str, part["mask_labels"].tolist())) if "mask_labels" in part else ()
    spacing = [part[f"{each}_spacing"].tolist() for each in held if f"{each}_spacing" in part]
    return held, labels, tuple(spacing[-1]) if spacing else None


def _picture(name: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    """The last picture is what was drawn: those before it were given, as to an inversion, or are on the way to it."""
    pictures = _pictures(arrays)
    if not pictures:
        raise EvaluationError(f"{name} has no image; it has {', '.join(arrays)}")
    return pictures[-1]


def _pictures(arrays: Mapping[str, NDArray[Any]]) -> list[str]:
    return [each for each, values in arrays.items() if values.ndim == 4 and values.dtype.kind == "f"]


def _of_arrays(
    name: str,
    arrays: Mapping[str, NDArray[Any]],
    labels: tuple[str, ...],
    names: tuple[str, ...],
    facts: dict[str, Any],
    spacing: tuple[float, ...] | None,
) -> Pairs:
    picture, pictures = _picture(name, arrays), _pictures(arrays)
    image = arrays[picture]
    mask = arrays.get(MASK, np.zeros(image.shape, np.uint8))
    if image.shape != mask.shape or image.ndim != 4 or image.shape[1] != 1 or mask.dtype != np.uint8:
        shapes = f"{image.dtype} images {list(image.shape)} and {mask.dtype} masks {list(mask.shape)}"
        raise EvaluationError(f"{name} has {shapes}; they must be [N, 1, S, S], and masks uint8")
    if not np.isfinite(image).all() or image.min() < 0 or image.max() > 1:
        raise EvaluationError(f"{name} has images from {image.min():g} to {image.max():g}; they must be from 0 to 1")
    warnings = [f"{name}: of {', '.join(pictures)}, {picture} is compared"] if pictures != ["image"] else []
    sides = None if spacing is None else np.tile(np.array(spacing, np.float64), (len(image), 1))
    found = image[:, 0].astype(np.float32), mask[:, 0]
    facts = {**facts, "picture": picture}
    return Pairs(name, *found, labels, names, names, True, facts, tuple(warnings), sides, MASK in arrays)


def _provenance_of_samples(folder: Path) -> dict[str, Any]:
    try:
        samples = json.loads((folder / PROVENANCE).read_text())["samples"]
        return _drawn_by(samples) | _given_conditions(any(map(_was_given, samples)))
    except (OSError, ValueError, KeyError, TypeError):
        return {"drawn_by": None}


def _provenance_of_set(folder: Path) -> dict[str, Any]:
    index = json.loads((folder / INDEX).read_text())
    records = (json.loads(file.read_text()) for file in sorted((folder / RECORDS).glob("*.json"))[:1])
    given = _given_conditions(any(_was_given(each) for record in records for each in record["samples"]))
    drawn_by = index.get("drawn_by")
    return {"drawn_by": None, **given} if drawn_by is None else {**_drawn_by([drawn_by]), "drawn_by": drawn_by, **given}


def _was_given(provenance: Mapping[str, Any]) -> bool:
    """Whether a client gave a mask or a picture: later stages of a chain are given what those before them drew."""
    first = next(iter(provenance.get("stages", ())), provenance)
    return "condition_sha256" in first and "label" not in first


def _given_conditions(given: bool) -> dict[str, Any]:
    return {"given_conditions": True} if given else {}


def _drawn_by(provenance: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What made all samples, and what the models say that drew any of them."""
    stages = [stage for each in provenance for stage in (each, *each.get("stages", ()))]
    notices = list(dict.fromkeys(line for stage in stages for line in stage.get("notices", ())))
    unfinished = sorted({str(stage["unfinished"]) for stage in stages if stage.get("unfinished")})
    return {"drawn_by": _common(provenance), "notices": notices, **({"unfinished": unfinished} if unfinished else {})}


def _common(provenance: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What made all samples, or None where that is not the same for all."""
    try:
        return common(provenance)
    except SetError:
        return None


# --- files of others ---


def _side_of(folder: Path) -> int:
    """The longer side of a folder's first picture."""
    files = [file for file in sorted((folder / "images").glob("*")) if file.suffix.lower() in SUFFIXES]
    return max(read_grey(files[0]).pixels.shape) if files else CUT_OUT


def _learnt(source: str, size: int, split: str, labels: tuple[str, ...], skip_bad: bool) -> Pairs:
    try:
        dataset = open_dataset(source, size, split, skip_bad, labels or LESION, masks=False)
    except DataError as error:
        raise EvaluationError(str(error)) from error
    items = [dataset[row] for row in range(len(dataset))]
    images = np.stack([item["image"].numpy()[0] for item in items]) / 2 + 0.5
    has_masks = all("mask" in item for item in items)
    masks = np.stack([item["mask"].numpy()[0] for item in items]) if has_masks else np.zeros(images.shape, np.uint8)
    reading = dict(getattr(dataset, "reading", {}))
    layout = reading.get("layout", "phantoms")
    names = tuple(getattr(dataset, "names", [f"{split} phantom {row}" for row in range(len(items))]))
    knows = layout not in ("pairs", "images")
    if layout == "mini-MIAS":
        patients = tuple(f"patient {patient_of(each) + 1}" for each in names)
    else:
        patients = tuple(MOMENT.sub("", each) for each in names) if knows else names
    warnings = [*getattr(dataset, "warnings", ()), *([] if knows else [ONE_PATIENT_EACH])]
    files = dataset.files if isinstance(dataset, LoadedPairs) else {"phantoms": [dataset.count, dataset.seed]}
    facts = {"layout": layout, "split": split, **reading, "files_sha256": digest(files)}
    # Hearts are cut out alike of every file, and phantoms drawn so; of breasts each is as large as its crop.
    spacing = np.full((len(items), 2), FIELD_OF_VIEW / size) if dataset.labels == HEART else None
    found = images.astype(np.float32), masks
    return Pairs(source, *found, dataset.labels, names, patients, knows, facts, tuple(warnings), spacing, has_masks)


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
    drawn = all(case.startswith("synthetic_") for case in cases)
    facts: dict[str, Any] = {"layout": "nnU-Net", "labels_in_file": given}
    warnings = [f"{folder}: {MASKS_OF_WHOM}"] if drawn else []
    channels = described.get("channel_names", {})
    if len(channels) > 1:
        first = channels.get("0", next(iter(channels.values())))
        warnings.append(f"{folder} has {len(channels)} channels; {first!r}, the first, is compared alone")
    if ending in (NIFTI, ".nii"):
        read = _volumes(files)
    else:
        read, whites, cut_off = _pictures_of(files, drawn)
        if not drawn:
            facts, warnings = {**facts, "white": whites}, cut_off
    pairs = _of_slices(str(folder), read, order, facts, known, drawn)
    return replace(pairs, warnings=(*pairs.warnings, *warnings))


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
    images = [*folder.glob(f"*_image{NIFTI}")] if beside else [*(folder / "images").glob(f"*{NIFTI}")]
    paired = {image.name for image, _ in (beside or apart).values()}
    if (beside or apart) and (alone := sorted({image.name for image in images} - paired)):
        raise EvaluationError(f"{folder}: {len(alone)} images have no mask: {some(alone)}")
    return beside or apart


def _nifti(folder: Path, cases: Mapping[str, tuple[Path, Path]]) -> Pairs:
    masks = [mask.with_name(mask.name.removesuffix(NIFTI) + ".json") for _, mask in cases.values()]
    sidecars = [_sidecar(file) for file in masks if file.is_file()]
    named = {tuple(each.get("labels", {}).items()) for each in sidecars}
    if len(named) > 1:
        raise EvaluationError(f"the sidecars of {folder} name different classes: {some([str(dict(x)) for x in named])}")
    labels = tuple(label for _, label in sorted(next(iter(named), ()), key=lambda item: int(item[0])))
    drawn = len(sidecars) == len(cases) and all("provenance" in each for each in sidecars)
    made = [each["provenance"] for each in sidecars] if drawn else []
    given = {"given_conditions": True, "given_masks": True} if any(map(_was_given, made)) else {}
    drawn_by = {**_drawn_by(made), **given} if drawn else {}
    read = _volumes(cases)
    if any(isinstance(each.get("spacing"), str) for each in sidecars):  # 1 mm stands for what is not known
        read = {case: (grey, classes, None) for case, (grey, classes, _) in read.items()}
    return _of_slices(str(folder), read, labels, {"layout": "NIfTI", **drawn_by}, None, drawn)


Sides = tuple[float, ...] | None
Cases = dict[str, tuple[NDArray[Any], NDArray[Any], Sides]]  # as ``_volume`` gives each


def _pictures_of(files: Mapping[str, tuple[Path, Path]], drawn: bool) -> tuple[Cases, dict[str, int], list[str]]:
    """Pictures, the white of each kind of file, and a warning where some are brighter, and cut off.

    Integers have one white for all, as `fit` finds it; of medgen's own samples it is the highest of their type. Floats
    are in units of their own, and so are all integers of a type that holds less than 0 or more than 65,535 in any.
    """
    greys = {case: _named(read_grey, image) for case, (image, _) in files.items()}
    for case, grey in greys.items():
        if grey.pixels.dtype.kind == "b":
            raise EvaluationError(f"{files[case][0]} is 1 bit deep, which no grey image is")
    own_units = {grey.pixels.dtype for grey in greys.values() if _leaves_16_bits(grey.pixels)}
    levels = {
        case: levels_of(grey.pixels, grey.maxval) for case, grey in greys.items() if grey.pixels.dtype not in own_units
    }
    scale = scale_of([*levels.values()])
    white = dict(zip(levels, scale.white, strict=True))
    found: Cases = {}
    for case, (image, mask) in files.items():
        pixels, classes = greys[case].pixels, _named(read_grey, mask).pixels
        _check_shapes(image, pixels.shape, classes.shape)
        if case in white:
            pixels = np.minimum(pixels / (np.iinfo(pixels.dtype).max if drawn else white[case]), 1)
        found[case] = pixels[None], classes[None], None
    return found, scale.kinds, beyond_white([*levels], scale)


def _leaves_16_bits(pixels: NDArray[Any]) -> bool:
    return pixels.dtype.kind == "f" or bool(pixels.min() < 0 or pixels.max() >= 2 ** BIT_DEPTHS[-1])


def _named(read: Callable[[Path], Read], path: Path) -> Read:
    try:
        return read(path)
    except BadFileError as error:
        raise EvaluationError(f"{path} {error}") from error


def _sidecar(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise EvaluationError(f"{path} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise EvaluationError(f"{path} holds {type(found).__name__}; it must be an object")
    return found


def _volumes(files: Mapping[str, tuple[Path, Path]]) -> Cases:
    return {case: _volume(*both) for case, both in files.items()}


def _volume(image: Path, mask: Path) -> tuple[NDArray[Any], NDArray[Any], Sides]:
    """Slices [Z, rows, columns] of both, and the mm between rows and between columns, if they are known."""
    volume, labelled = (_named(read_nifti, path) for path in (image, mask))
    _check_shapes(image, volume.voxels.shape, labelled.voxels.shape)
    if not np.allclose(volume.affine, labelled.affine, atol=1e-3):
        raise EvaluationError(f"{mask} lies elsewhere than its image: their affines differ")
    if volume.voxels.ndim != 3:
        raise EvaluationError(f"{image} has the shape {volume.voxels.shape}; it must be (x, y, slice)")
    spacing = tuple(np.linalg.norm(volume.affine[:3, :2], axis=0).round(4).tolist()[::-1])  # rows are along y
    return volume.voxels.T, labelled.voxels.T, spacing


def _check_shapes(image: Path, one: tuple[int, ...], other: tuple[int, ...]) -> None:
    if one != other:
        raise EvaluationError(f"{image} has the shape {one}, and its mask {other}")


def _of_slices(
    name: str,
    read: Mapping[str, tuple[NDArray[Any], NDArray[Any], Sides]],
    labels: tuple[str, ...],
    facts: dict[str, Any],
    known: NDArray[np.int64] | None,
    drawn: bool,
) -> Pairs:
    """Of volumes, the slices that show a structure, as training takes them; of single slices, all."""
    images, masks, names, patients, sides, scaled, left_out = [], [], [], [], [], 0, 0
    for case, (grey, classes, spacing) in read.items():
        if not np.isin(classes, np.arange(256)).all() or (known is not None and classes.max() >= len(known)):
            raise EvaluationError(
                f"{name}: the mask of {case} holds {np.unique(classes)[:9].tolist()}, not class indices"
            )
        grey = grey.astype(np.float32)
        if strange := int((~np.isfinite(grey)).sum()):
            raise EvaluationError(f"{name}: the image of {case} has {strange} grey values that are no finite numbers")
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
            sides.append(spacing or (np.nan, np.nan))
    spacings = sorted({spacing or () for *_, spacing in read.values()})
    facts |= {"spacings_mm": [list(each) for each in spacings[:9]], "slices_without_a_structure": left_out}
    facts |= {"volumes_scaled_by_percentiles": scaled}
    knows = drawn or len({*patients}) < len(names)
    warnings = [] if drawn else [A_PATIENT_A_VOLUME if knows else ONE_PATIENT_EACH]
    if not labels:
        warnings.append(f"{name} {UNNAMED}")
    if not images:
        raise EvaluationError(f"{name}: no slice shows a structure")
    if len(spacings) > 1:
        warnings.append(
            f"{name} has pixels of {len(spacings)} sizes in mm; they are compared pixel by pixel all the same"
        )
    side = max(max(image.shape) for image in images)
    spacing_of = np.array(sides) * [[max(image.shape) / side] for image in images]
    if any(image.shape != (side, side) for image in images):
        count = int(max(mask.max() for mask in masks)) + 1
        images = [fit_image(image, side) for image in images]
        masks = [fit_classes(mask, side, max(count, len(labels))) for mask in masks]
    found = np.stack(images), np.stack(masks)
    return Pairs(name, *found, labels, tuple(names), tuple(patients), knows, facts, tuple(warnings), spacing_of)


def _fitted(pairs: Pairs, size: int | None) -> Pairs:
    """In squares of this size or, without one, of the longer side."""
    size = size or max(pairs.images.shape[1:])
    if pairs.images.shape[1:] == (size, size):
        return pairs
    count = max(len(pairs.labels), int(pairs.masks.max()) + 1)
    images = np.stack([fit_image(image, size) for image in pairs.images])
    masks = np.stack([fit_classes(mask, size, count) for mask in pairs.masks])
    facts = {**pairs.facts, "resized_from": list(pairs.images.shape[1:])}
    spacing = None if pairs.spacing is None else pairs.spacing * (max(pairs.images.shape[1:]) / size)
    return replace(pairs, images=images, masks=masks, facts=facts, spacing=spacing)
