"""NIfTI files of samples, read back with nibabel."""

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from serving.bundle import Output
from serving.sample_set import Samples
from serving.writers.nifti import Nifti, NiftiError, write_nifti
from serving.writers.sample_folder import write_samples
from training.data.formats.nifti import read_nifti
from training.data.preparation.orientation import canonical

LABELS = ("background", "LV", "MYO", "RV")
ROW, COLUMN = 5, 18
PROVENANCE = {"model": "chain", "seed": 7, "stages": [{"model": "mask"}, {"model": "image"}]}


def point(spacing: tuple[float, float] | None) -> Samples:
    """One pixel of class 3 and of full brightness, in a picture of 24 rows and 32 columns."""
    mask = np.zeros((1, 1, 24, 32), np.uint8)
    mask[0, 0, ROW, COLUMN] = 3
    outputs = (
        Output("mask", "uint8", (1, 24, 32), 0, 3, LABELS, spacing),
        Output("image", "float32", (1, 24, 32), 0.0, 1.0, (), spacing),
        Output("score", "float32", (1,), 0.0, 1.0),
    )
    arrays = {"mask": mask, "image": mask.astype(np.float32) / 3, "score": np.zeros((1, 1), np.float32)}
    return Samples(arrays, [PROVENANCE], outputs)


def test_a_point_lies_where_it_was_drawn(tmp_path: Path) -> None:
    write_nifti(point((1.5, 0.75)), tmp_path)
    for name, dtype, value in (("mask", np.uint8, 3), ("image", np.float32, 1.0)):
        image = nibabel.load(tmp_path / f"000007_{name}.nii.gz")
        assert image.shape == (32, 24, 1)
        assert image.get_data_dtype() == dtype
        voxels = np.asanyarray(image.dataobj)
        assert np.argwhere(voxels).tolist() == [[COLUMN, ROW, 0]]
        assert voxels[COLUMN, ROW, 0] == value
        assert image.header.get_zooms() == (0.75, 1.5, 1.0)
        assert image.header.get_xyzt_units()[0] == "mm"
        assert (image.affine @ [COLUMN, ROW, 0, 1]).tolist() == [-0.75 * COLUMN, -1.5 * ROW, 0, 1]


def test_which_way_is_up(tmp_path: Path) -> None:
    """A viewer in RAS turns what it shows by the directions, and has the front (A) at the top and L on the right."""
    samples = point((1.5, 0.75))
    write_nifti(samples, tmp_path)
    image = nibabel.load(tmp_path / "000007_mask.nii.gz")
    assert nibabel.aff2axcodes(image.affine) == ("L", "P", "S")
    to_the_right_and_front = np.asanyarray(nibabel.as_closest_canonical(image).dataobj)[..., 0]
    shown = to_the_right_and_front[::-1, ::-1].T  # its rows from the front, its columns from the right
    np.testing.assert_array_equal(shown, samples.arrays["mask"][0, 0])
    said = json.loads((tmp_path / "000007_mask.json").read_text())["orientation"]
    assert "x, the columns, to the left, y, the rows, to the back (LPS)" in said


def test_training_reads_back_what_was_drawn(tmp_path: Path) -> None:
    samples = point((1.5, 0.75))
    write_nifti(samples, tmp_path)
    for name in ("mask", "image"):
        volume = canonical(read_nifti(tmp_path / f"000007_{name}.nii.gz"))
        np.testing.assert_array_equal(volume.voxels[..., 0].T, samples.arrays[name][0, 0])
        assert np.linalg.norm(volume.affine[:3, :3], axis=0).tolist() == [0.75, 1.5, 1]


def test_samples_of_one_seed_have_files_of_their_own(tmp_path: Path) -> None:
    one = point(None)
    arrays = {name: np.concatenate([values, 0 * values, values]) for name, values in one.arrays.items()}
    write_nifti(Samples(arrays, [{**PROVENANCE, "seed": seed} for seed in (7, 7, 8)], one.outputs), tmp_path)
    names = [file.name.removesuffix(".nii.gz") for file in tmp_path.glob("*_mask.nii.gz")]
    assert sorted(names) == ["000007_2_mask", "000007_mask", "000008_mask"]
    for name, values in zip(("000007", "000007_2", "000008"), arrays["mask"], strict=True):
        voxels = np.asanyarray(nibabel.load(tmp_path / f"{name}_mask.nii.gz").dataobj)
        np.testing.assert_array_equal(voxels[..., 0].T, values[0])


def test_the_sidecar_names_labels_spacing_and_origin(tmp_path: Path) -> None:
    write_nifti(point((1.5, 0.75)), tmp_path)
    mask, image = (json.loads((tmp_path / f"000007_{name}.json").read_text()) for name in ("mask", "image"))
    assert mask["labels"] == {"0": "background", "1": "LV", "2": "MYO", "3": "RV"}
    assert image["labels"] == {}
    assert image["values"] == {"low": 0.0, "high": 1.0}
    for sidecar in (mask, image):
        assert sidecar["spacing"] == {"unit": "mm", "x": 0.75, "y": 1.5}
        assert sidecar["provenance"] == PROVENANCE


def test_an_unknown_spacing_is_said_to_be_unknown(tmp_path: Path) -> None:
    write_nifti(point(None), tmp_path)
    np.testing.assert_array_equal(nibabel.load(tmp_path / "000007_mask.nii.gz").affine, np.diag([-1, -1, 1, 1]))
    assert json.loads((tmp_path / "000007_mask.json").read_text())["spacing"].startswith("unknown")


def test_they_are_in_a_folder_beside_the_others_and_are_replaced_with_them(tmp_path: Path) -> None:
    out = tmp_path / "samples"
    assert "nifti/" not in write_samples(point(None), out)
    for _ in range(2):
        assert "nifti/" in write_samples(point(None), out, replace=True, layouts=[Nifti()])
    assert {file.name for file in (out / "nifti").iterdir()} == {
        f"000007_{name}.{end}" for name in ("mask", "image") for end in ("nii.gz", "json")
    }


def test_without_nibabel_there_is_a_line_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(NiftiError, match=r"pip install 'medgen\[nifti\]'"):
        write_nifti(point(None), tmp_path / "nifti")
    assert not (tmp_path / "nifti").exists()


def test_what_was_given_is_not_said_to_be_drawn(tmp_path: Path) -> None:
    write_nifti(replace(point(None), given=("mask",)), tmp_path)
    mask, image = (json.loads((tmp_path / f"000007_{name}.json").read_text()) for name in ("mask", "image"))
    assert (mask["given"], "provenance" in mask) == (True, False)
    assert (image["provenance"], "given" in image) == (PROVENANCE, False)
