"""Samples as a raw data set of nnU-Net, version 2."""

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from serving.bundle import Output, read_json
from serving.sample_set import Samples
from serving.writers.layout import BLOCK, Layout, LayoutError, Shapes, is_mask, is_picture, text_of
from serving.writers.nifti import check_nifti, write_slice
from serving.writers.npz import bytes_of_arrays

IMAGES, LABELS = "imagesTr", "labelsTr"
DATASET, SPLITS = "dataset.json", "splits_final.json"
PNG, NIFTI = ".png", ".nii.gz"
FAR_APART = 999.0  # mm between slices, as nnU-Net takes PNGs to be: else it plans to look across them
FOLDS, SHUFFLED_BY = 5, 12345  # as nnU-Net splits cases by itself
SYNTHETIC = "Synthetic: drawn by a generative model, of no patient. Not for validation."
UNDER_GIVEN = (
    "Synthetic: drawn by a generative model, but for {}, which it was given, and which may be of patients. "
    "Not for validation."
)


class NnUnet(Layout):
    """imagesTr/CASE_0000, labelsTr/CASE and dataset.json; CASE is synthetic_MODEL_NAME.

    Masks hold class indices. Where pixels have a known size, files are .nii.gz with float32 images; else they are PNG
    with images of 16 bits between their low and high, for nnU-Net would take the 1 mm of a NIfTI file for true.
    A sample is a volume of one slice: it is for nnU-Net's configuration 2d.

    real: the folder of a raw data set that the samples are to be added to. Its classes, its number of channels and the
    ending of its files must be those of the samples, and splits_final.json is then for both together: nnU-Net's own
    folds of the real cases (or those in a splits_final.json beside its dataset.json), with all synthetic cases in the
    training part of each. Slices are then as far apart as most of its are, so that nnU-Net plans what it would without.
    """

    name = "nnunet"

    def __init__(self, real: Path | None = None) -> None:
        self._real = None if real is None else _Real(real)
        self._apart = FAR_APART if self._real is None else self._real.apart
        self.set_files = (DATASET, SPLITS) if real else (DATASET,)

    def check_outputs(self, outputs: Sequence[Output], given: Collection[str] = ()) -> None:
        mask, images = _parts(outputs)
        if self._real is not None:
            self._real.check(mask, images, NIFTI if mask.spacing else PNG)
        if mask.spacing:
            check_nifti()

    def options(self) -> dict[str, Any]:
        return {} if self._real is None else {"added_to": self._real.digest, "apart": self._apart}

    def bytes_a_sample(self, shapes: Shapes) -> int:
        return bytes_of_arrays(shapes) + len(shapes) * BLOCK

    def write(self, samples: Samples, folder: Path, part: str) -> None:
        mask, images = _parts(samples.outputs)
        for name in (IMAGES, LABELS):
            (folder / name).mkdir(exist_ok=True)
        for row, name in enumerate(samples.names):
            case = case_of(str(samples.provenance[row]["model"]), name)
            ending = NIFTI if mask.spacing else PNG
            self._write(samples.arrays[mask.name][row, 0], mask, folder / LABELS / f"{case}{ending}")
            for channel, image in enumerate(images):
                file = folder / IMAGES / f"{case}_{channel:04d}{ending}"
                self._write(samples.arrays[image.name][row, 0], image, file)

    def _write(self, values: NDArray[Any], output: Output, file: Path) -> None:
        if output.spacing:
            write_slice(values, output.spacing, file, self._apart)
        elif is_mask(output):
            Image.fromarray(values).save(file)
        else:
            scaled = (np.asarray(values, np.float64) - output.low) / (output.high - output.low)
            Image.fromarray(np.rint(np.clip(scaled, 0, 1) * 65535).astype(np.uint16)).save(file)

    def describe(
        self,
        folder: Path,
        model: str,
        names: Iterable[str],
        count: int,
        outputs: Sequence[Output],
        given: Collection[str] = (),
    ) -> None:
        mask, images = _parts(outputs)
        described = {
            "channel_names": {str(channel): image.name for channel, image in enumerate(images)},
            "labels": {label: number for number, label in enumerate(mask.labels)},
            "numTraining": count,
            "file_ending": NIFTI if mask.spacing else PNG,
            "name": f"synthetic_{model}",
            "description": UNDER_GIVEN.format(" and ".join(given)) if given else SYNTHETIC,
        }
        (folder / DATASET).write_text(text_of(described))
        if self._real is not None:
            cases = [case_of(model, name) for name in names]
            (folder / SPLITS).write_text(json.dumps(self._real.splits_with(cases), indent=1) + "\n")


def case_of(model: str, name: str) -> str:
    return f"synthetic_{model}_{name}"


def folds(cases: Sequence[str]) -> list[dict[str, list[str]]]:
    """The folds that nnU-Net makes of the cases: scikit-learn's shuffled KFold over their sorted names."""
    if len(cases) < FOLDS:
        raise LayoutError(f"{len(cases)} real cases cannot be split into {FOLDS} folds")
    ordered = np.array(sorted(cases))
    shuffled = np.arange(len(ordered))
    np.random.RandomState(SHUFFLED_BY).shuffle(shuffled)
    found = []
    for validation in np.array_split(shuffled, FOLDS):
        held_out = np.isin(np.arange(len(ordered)), validation)
        found.append({"train": ordered[~held_out].tolist(), "val": ordered[held_out].tolist()})
    return found


class _Real:
    """A real data set, as far as samples that are added to it must fit it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._described = _read(folder / DATASET)
        if not isinstance(self._described, dict):
            raise LayoutError(f"{folder / DATASET} describes no data set of nnU-Net")
        ending = str(self._described.get("file_ending"))
        files = sorted(file.name for file in (folder / LABELS).glob(f"*{ending}"))
        self._cases = [name.removesuffix(ending) for name in files]
        if not self._cases:
            raise LayoutError(f"{folder / LABELS} holds no *{ending}, which its {DATASET} says are the labels")
        self._folds = self._own_folds() or folds(self._cases)
        self.apart = _slices_apart([folder / LABELS / file for file in files]) if ending == NIFTI else FAR_APART
        self.digest = hashlib.sha256(json.dumps([self._described, self._folds], sort_keys=True).encode()).hexdigest()

    def _own_folds(self) -> list[dict[str, list[str]]] | None:
        file = self._folder / SPLITS
        if not file.exists():
            return None
        found = _read(file)
        try:
            strangers = {case for fold in found for part in ("train", "val") for case in fold[part]} - {*self._cases}
        except (TypeError, KeyError):
            raise LayoutError(f"{file} must be a list of folds, each with train and val") from None
        if strangers:
            raise LayoutError(f"{file} names {min(strangers)}, of which {self._folder / LABELS} has no label")
        return [{part: list(fold[part]) for part in ("train", "val")} for fold in found]

    def check(self, mask: Output, images: Sequence[Output], ending: str) -> None:
        ours: dict[str, object] = {
            "labels": {label: number for number, label in enumerate(mask.labels)},
            "file_ending": ending,
            "number of channels": len(images),
        }
        theirs = {**self._described, "number of channels": len(self._described.get("channel_names") or ())}
        for name, value in ours.items():
            if theirs.get(name) != value:
                raise LayoutError(f"{self._folder}: its {name} is {theirs.get(name)}, and that of the samples {value}")

    def splits_with(self, synthetic: Sequence[str]) -> list[dict[str, list[str]]]:
        if twice := {*synthetic} & {*self._cases}:
            raise LayoutError(f"{self._folder} has a case {min(twice)} already")
        return [{"train": [*fold["train"], *synthetic], "val": fold["val"]} for fold in self._folds]


def _parts(outputs: Sequence[Output]) -> tuple[Output, list[Output]]:
    """The mask and the images; raises LayoutError if there is not one mask, or no image, or they do not fit."""
    masks = [output for output in outputs if is_mask(output)]
    images = [output for output in outputs if is_picture(output) and not is_mask(output)]
    drawn = ", ".join(f"{output.name} {output.dtype} {list(output.shape)}" for output in outputs)
    if len(masks) != 1 or not images:
        raise LayoutError(f"nnU-Net needs one mask, and images [1, H, W] under it; here there are {drawn}")
    (mask,) = masks
    if len(mask.labels) < 2:
        raise LayoutError(f"nnU-Net needs names for the classes of the {mask.name}, and this one has none")
    if any((image.shape, image.spacing) != (mask.shape, mask.spacing) for image in images):
        raise LayoutError(f"nnU-Net needs images of the size and the spacing of their mask; here there are {drawn}")
    return mask, images


def _slices_apart(files: Sequence[Path]) -> float:
    """The median of what NIfTI files say, in mm; only their headers are read."""
    check_nifti()
    import nibabel

    apart = []
    for file in files:
        try:
            apart.append(float(nibabel.Nifti1Image.from_filename(file).header.get_zooms()[2]))
        except (nibabel.filebasedimages.ImageFileError, OSError, EOFError, IndexError) as error:
            raise LayoutError(f"{file} is no NIfTI volume: {error}") from None
    return float(np.median(apart))


def _read(file: Path) -> Any:
    try:
        return read_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise LayoutError(f"{file} cannot be read: {error}") from None
