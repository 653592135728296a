"""Samples as NIfTI files of one slice each, with sidecars that say what the voxels mean and where they come from."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Output
from serving.sample_set import Samples
from serving.writers.layout import BLOCK, Layout, LayoutError, Shapes, is_picture
from serving.writers.npz import bytes_of_arrays, check_name

UNKNOWN = (1.0, 1.0)
ORIENTATION = "nominal: x, the columns, to the left, y, the rows, to the back (LPS); the PNG's first row is y = 0"


class NiftiError(LayoutError):
    """NIfTI files cannot be written here; the message has the line that helps."""


class Nifti(Layout):
    """One file for every mask and picture of every sample, and a sidecar; see `write_nifti`."""

    name = "nifti"

    def check(self) -> None:
        check_nifti()

    def bytes_a_sample(self, shapes: Shapes) -> int:
        pictures = [shape for _, shape in shapes.values() if len(shape) == 3 and shape[0] == 1]
        return bytes_of_arrays(shapes) + 2 * len(pictures) * BLOCK

    def write(self, samples: Samples, folder: Path, part: str) -> None:
        write_nifti(samples, folder)


def check_nifti() -> None:
    """Raises NiftiError if nibabel is missing."""
    if importlib.util.find_spec("nibabel") is None:
        raise NiftiError("NIfTI files need nibabel: pip install 'medgen[nifti]', or pip install nibabel")


def write_nifti(samples: Samples, folder: Path) -> None:
    """Writes NAME_OUTPUT.nii.gz and NAME_OUTPUT.json for every output [1, H, W] of every sample; NAME as a PNG's.

    Voxels are [x, y, 1]: x counts columns, y counts rows. The affine has the spacing, in mm, and nominal directions: it
    does not place the slice in a patient. Columns run to the patient's left and rows to the back (LPS, as in DICOM), so
    that a viewer with the front at the top and the patient's left on the right shows the PNG, and training reads the
    array back. Where the spacing is unknown, a voxel is 1 mm. The sidecar says both, and what made
    the output, or that it was given. Raises NiftiError if nibabel is
    missing.
    """
    check_nifti()
    folder.mkdir(exist_ok=True)
    for output in filter(is_picture, samples.outputs):
        check_name(output.name)
        for row, name in enumerate(samples.names):
            write_slice(samples.arrays[output.name][row, 0], output.spacing, folder / f"{name}_{output.name}.nii.gz")
            facts = {"given": True} if output.name in samples.given else {"provenance": samples.provenance[row]}
            sidecar = json.dumps(_described(output, facts), indent=1)
            (folder / f"{name}_{output.name}.json").write_text(sidecar + "\n")


def write_slice(values: NDArray[Any], spacing: tuple[float, float] | None, file: Path, apart: float = 1.0) -> None:
    """One slice [H, W] as it came; the same slice gives the same bytes. apart: mm to a next slice, were there one."""
    import nibabel

    between_rows, between_columns = spacing or UNKNOWN
    voxels = values.T[..., None]
    affine = np.diag([-between_columns, -between_rows, apart, 1.0])
    image = nibabel.Nifti1Image(voxels, affine, dtype=voxels.dtype)
    image.header.set_xyzt_units("mm")
    image.to_filename(file)


def _described(output: Output, facts: dict[str, Any]) -> dict[str, Any]:
    spacing: dict[str, Any] = {"spacing": "unknown; a voxel of 1 mm stands for it"}
    if output.spacing is not None:
        between_rows, between_columns = output.spacing
        spacing = {"spacing": {"unit": "mm", "x": between_columns, "y": between_rows}}
    return {
        "output": output.name,
        "values": {"low": output.low, "high": output.high},
        "labels": {str(number): label for number, label in enumerate(output.labels)},
        **spacing,
        "orientation": ORIENTATION,
        **facts,
    }
