"""nnU-Net's raw data sets, and the folds that keep synthetic cases out of validation."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from serving.drawn_set import DrawnSet, Plan, check_set
from serving.sample_set import Samples
from serving.writers.layout import LayoutError
from serving.writers.nnunet import NnUnet, folds


def write(samples: Samples, folder: Path, real: Path | None = None) -> dict:
    layout = NnUnet(real)
    layout.check_outputs(samples.outputs)
    layout.write(samples, folder, "part")
    layout.describe(folder, samples.provenance[0]["model"], samples.names, len(samples), samples.outputs)
    return json.loads((folder / "dataset.json").read_text())


def real(folder: Path, samples: Samples, cases: int = 12, **changed: object) -> Path:
    """A real data set of the same kind."""
    folder.mkdir()
    described = write(samples, folder) | changed
    for file in (folder / "labelsTr").iterdir():
        file.unlink()
    for case in range(cases):
        file = folder / "labelsTr" / f"patient{case:03d}{described['file_ending']}"
        file.touch()
        if described["file_ending"] == ".nii.gz":
            nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 3), np.uint8), np.diag([1, 1, 5 + case % 2 * 5, 1])), file)
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def test_pngs_where_the_size_of_pixels_is_unknown(breast: Samples, tmp_path: Path) -> None:
    described = write(breast, tmp_path)
    assert described["labels"] == {"background": 0, "lesion": 1}
    assert (described["channel_names"], described["numTraining"], described["file_ending"]) == (
        {"0": "image"},
        2,
        ".png",
    )
    image = np.asarray(Image.open(tmp_path / "imagesTr" / "synthetic_pig_000008_0000.png"))
    np.testing.assert_allclose(image / 65535 * 4 - 1, breast.arrays["image"][1, 0], atol=4 / 65535)
    mask = np.asarray(Image.open(tmp_path / "labelsTr" / "synthetic_pig_000008.png"))
    np.testing.assert_array_equal(mask, breast.arrays["mask"][1, 0])


def test_nifti_where_it_is_known(heart: Samples, tmp_path: Path) -> None:
    described = write(heart, tmp_path)
    assert described["labels"] == {"background": 0, "LV": 1, "MYO": 2, "RV": 3}
    assert described["file_ending"] == ".nii.gz"
    image = nibabel.load(tmp_path / "imagesTr" / "synthetic_cmr_flow_000007_0000.nii.gz")
    assert image.header.get_zooms() == (1.5, 1.25, 999.0), "nnU-Net would look across slices"
    np.testing.assert_array_equal(np.asanyarray(image.dataobj)[..., 0].T, heart.arrays["image"][0, 0])
    mask = nibabel.load(tmp_path / "labelsTr" / "synthetic_cmr_flow_000007.nii.gz")
    np.testing.assert_array_equal(mask.affine, image.affine)


@pytest.mark.parametrize(
    ("cases", "validation"),
    [(5, [[0], [4], [3], [1], [2]]), (12, [[0, 3, 8], [7, 10, 11], [6, 9], [1, 4], [2, 5]])],
)
def test_folds_are_nnunets_own(cases: int, validation: list[list[int]]) -> None:
    """By scikit-learn 1.9's KFold(n_splits=5, shuffle=True, random_state=12345), as nnU-Net calls it."""
    names = [f"case{case:02d}" for case in range(cases)]
    found = folds(names[::-1])
    assert [fold["val"] for fold in found] == [[names[k] for k in fold] for fold in validation]
    assert all(sorted([*fold["train"], *fold["val"]]) == names for fold in found)


def test_synthetic_cases_are_trained_on_and_never_validated_with(heart: Samples, tmp_path: Path) -> None:
    there = real(tmp_path / "real", heart)
    (tmp_path / "new").mkdir()
    write(heart, tmp_path / "new", there)
    splits = json.loads((tmp_path / "new" / "splits_final.json").read_text())
    real_cases = {f"patient{case:03d}" for case in range(12)}
    synthetic = {"synthetic_cmr_flow_000007", "synthetic_cmr_flow_000008"}
    assert len(splits) == 5
    for fold in splits:
        assert {*fold["train"]} - {*fold["val"]} == real_cases - {*fold["val"]} | synthetic
    assert sorted(case for fold in splits for case in fold["val"]) == sorted(real_cases)
    image = nibabel.load(tmp_path / "new" / "imagesTr" / "synthetic_cmr_flow_000007_0000.nii.gz")
    assert image.header.get_zooms()[2] == 7.5
    (there / "splits_final.json").write_text(json.dumps([{"train": ["patient000"], "val": ["patient001"]}]))
    write(heart, tmp_path / "new", there)
    own = [{"train": ["patient000", *sorted(synthetic)], "val": ["patient001"]}]
    assert json.loads((tmp_path / "new" / "splits_final.json").read_text()) == own
    (there / "splits_final.json").write_text(json.dumps([{"train": ["patient000"], "val": ["patient999"]}]))
    with pytest.raises(LayoutError, match=r"splits_final.json names patient999, of which .* has no label"):
        NnUnet(there)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"labels": {"background": 0, "RV": 1, "MYO": 2, "LV": 3}}, "its labels is {'background': 0, 'RV': 1"),
        ({"channel_names": {"0": "T1", "1": "T2"}}, "its number of channels is 2, and that of the samples 1"),
        ({"file_ending": ".png"}, r"its file_ending is .png, and that of the samples .nii.gz"),
    ],
)
def test_a_real_data_set_of_another_kind_is_refused(heart: Samples, tmp_path: Path, changed: dict, said: str) -> None:
    with pytest.raises(LayoutError) as error:
        NnUnet(real(tmp_path / "real", heart, **changed)).check_outputs(heart.outputs)
    assert said in str(error.value)


def test_what_is_no_pair_is_refused(heart: Samples, tmp_path: Path) -> None:
    mask, image = heart.outputs
    for outputs in ([mask], [image], [mask, mask, image]):
        with pytest.raises(LayoutError, match=r"nnU-Net needs one mask, and images \[1, H, W\] under it; here there"):
            NnUnet().check_outputs(outputs)
    with pytest.raises(LayoutError, match=r"real/dataset.json cannot be read"):
        NnUnet(tmp_path / "real")
    with pytest.raises(LayoutError, match="4 real cases cannot be split into 5 folds"):
        NnUnet(real(tmp_path / "few", heart, cases=4))


def test_masks_that_were_given_are_not_said_to_be_of_nobody(heart: Samples, tmp_path: Path) -> None:
    NnUnet().describe(tmp_path, "cmr_flow", heart.names, 2, heart.outputs, ("mask",))
    said = json.loads((tmp_path / "dataset.json").read_text())["description"]
    assert "but for mask, which it was given, and which may be of patients. Not for validation." in said
    assert "no patient" not in said


def test_cases_are_called_alike_whatever_the_folder_of_a_model_is_called(heart: Samples, tmp_path: Path) -> None:
    layout = NnUnet(real(tmp_path / "real", heart))
    drawn_set = DrawnSet(tmp_path / "set", Plan("cmr_flow_v2", 7, 2, 2, {}, None, {"name": "nnunet"}), layout)
    drawn_set.begin(heart)
    drawn_set.add(0, heart)
    drawn_set.describe()
    splits = json.loads((tmp_path / "set" / "splits_final.json").read_text())
    cases = {file.name.removesuffix(".nii.gz") for file in (tmp_path / "set" / "labelsTr").iterdir()}
    assert len(cases) == 2
    assert all(cases <= {*fold["train"]} for fold in splits)
    assert check_set(tmp_path / "set").problems == ()
