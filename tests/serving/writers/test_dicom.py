"""DICOM files, read back with pydicom and highdicom, and by dciodvfy where it is installed."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from tiny import contents

from serving.bundle import Condition
from serving.sample_set import Samples, under
from serving.writers.dicom import Dicom
from serving.writers.layout import LayoutError

KINDS = {
    "breast": "Digital Mammography X-Ray Image Storage - For Presentation",
    "heart": "MR Image Storage",
    "unnamed": "Secondary Capture Image Storage",
}
NEWER = "(0008,001c)"  # Synthetic Data, of 2023, which the dciodvfy of 2022 does not know


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def samples(kind: str, request: pytest.FixtureRequest) -> Samples:
    return request.getfixturevalue(kind)


def test_pictures_and_masks_come_back(samples: Samples, kind: str, tmp_path: Path) -> None:
    Dicom().write(samples, tmp_path, "part")
    for row, name in enumerate(samples.names):
        image = pydicom.dcmread(tmp_path / f"{name}_image.dcm")
        assert image.SOPClassUID.name == KINDS[kind]
        values = image.pixel_array / 65535 * 4 - 1
        np.testing.assert_allclose(values, samples.arrays["image"][row, 0], atol=4 / 65535)
        assert image.PixelSpacing == list(samples.outputs[1].spacing or (1, 1))
        assert ("PixelSpacingCalibrationDescription" in image) is (samples.outputs[1].spacing is None)
        mask = highdicom.seg.segread(tmp_path / f"{name}_mask.dcm")
        labels = [mask.get_segment_description(number).segment_label for number in mask.segment_numbers]
        assert labels == [*samples.outputs[0].labels[1:]]
        drawn = mask.get_pixels_by_source_instance(
            [image.SOPInstanceUID], combine_segments=True, ignore_spatial_locations=True
        )
        np.testing.assert_array_equal(drawn[0], samples.arrays["mask"][row, 0])


def test_they_are_marked_in_every_way(samples: Samples, tmp_path: Path) -> None:
    Dicom().write(samples, tmp_path, "part")
    for file in tmp_path.iterdir():
        dataset = pydicom.dcmread(file)
        assert dataset.SyntheticData == "YES"
        assert dataset.ImageType[0] == "DERIVED"
        assert dataset.PatientName.family_name == "SYNTHETIC"
        assert dataset.StudyDescription == "SYNTHETIC"
        assert dataset.SeriesDescription.startswith("SYNTHETIC ")
        assert "no patient, not for diagnosis" in dataset.PatientComments
        assert '"seed": ' in dataset.ImageComments
        assert dataset.ContributingEquipmentSequence[0].ContributionDescription.startswith("SYNTHETIC")


def test_the_same_sample_is_the_same_file_and_another_is_another(samples: Samples, tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        Dicom().write(samples, tmp_path / name, "part")
    assert contents(tmp_path / "one") == contents(tmp_path / "other")
    changed = Samples(samples.arrays, [{**facts, "steps": 5} for facts in samples.provenance], samples.outputs)
    Dicom().write(changed, tmp_path / "other", "part")
    uids = {}
    for way in ("one", "other"):
        for file in (tmp_path / way).iterdir():
            dataset = pydicom.dcmread(file)
            uids[way, file.name] = {element.value for element in dataset.iterall() if element.VR == "UI"}
            study = {dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID}
            assert all(uid.startswith("2.25.") for uid in study)
    ours = [{uid for uid in found if uid.startswith("2.25.")} for (way, _), found in uids.items() if way == "one"]
    theirs = [{uid for uid in found if uid.startswith("2.25.")} for (way, _), found in uids.items() if way == "other"]
    assert not set.union(*ours) & set.union(*theirs)


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy is Debian's dicom3tools")
def test_dciodvfy_finds_nothing(samples: Samples, tmp_path: Path) -> None:
    Dicom().write(samples, tmp_path, "part")
    for file in tmp_path.iterdir():
        found = subprocess.run(["dciodvfy", "-new", file], capture_output=True, text=True, check=False).stderr
        lines = [line for line in found.splitlines() if NEWER not in line]
        assert len(lines) == 1, lines  # the IOD's name


def test_what_cannot_be_dicom_is_refused(heart: Samples) -> None:
    mask, image = heart.outputs
    with pytest.raises(LayoutError, match=r"DICOM files need a picture \[1, H, W\], and here there are mask uint8"):
        Dicom().check_outputs([mask])
    with pytest.raises(LayoutError, match="masks of the size and the spacing of the picture"):
        Dicom().check_outputs([replace(mask, spacing=(1.0, 1.0)), image])
    with pytest.raises(LayoutError, match=r"and here there are mask uint8 \[1, 24, 32\]$"):
        Dicom().check_outputs([mask, image], given=["image"])


def test_a_spacing_has_no_more_digits_than_dicom_allows(heart: Samples, tmp_path: Path) -> None:
    outputs = tuple(replace(output, spacing=(320 / 300, 160 / 96)) for output in heart.outputs)
    Dicom().write(replace(heart, outputs=outputs), tmp_path, "part")
    dataset = pydicom.dcmread(tmp_path / f"{heart.names[0]}_image.dcm")
    written = [str(side) for side in dataset.PixelSpacing]
    assert all(len(side) <= 16 for side in written)
    np.testing.assert_allclose([float(side) for side in written], [320 / 300, 160 / 96], rtol=1e-13)


def test_a_mask_that_was_given_is_not_said_to_be_drawn_nor_to_be_nobody_s(heart: Samples, tmp_path: Path) -> None:
    mask, image = heart.outputs
    drawn = Samples({"image": heart.arrays["image"]}, heart.provenance, (image,))
    condition = Condition("mask", mask.shape, classes=len(mask.labels), labels=mask.labels, spacing=mask.spacing)
    Dicom().write(under(condition, heart.arrays["mask"], drawn), tmp_path, "part")
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{name}_image.dcm" for name in heart.names]
    for file in tmp_path.iterdir():
        dataset = pydicom.dcmread(file)
        assert dataset.PatientIdentityRemoved == "NO"
        assert "after another image, perhaps a patient's" in dataset.PatientComments


def test_a_size_that_is_unknown_is_said_to_be(heart: Samples, tmp_path: Path) -> None:
    outputs = tuple(replace(output, spacing=None) for output in heart.outputs)
    Dicom().write(replace(heart, outputs=outputs), tmp_path, "part")
    for file in tmp_path.iterdir():
        assert "size (1 mm stands for it), place, direction" in pydicom.dcmread(file).ImageComments


@pytest.mark.parametrize("by_a_chain", [False, True])
def test_what_was_drawn_after_a_picture_is_not_said_to_show_no_patient(
    unnamed: Samples, tmp_path: Path, by_a_chain: bool
) -> None:
    """Nor is that picture, which may be a patient's, written as a synthetic one."""
    image = unnamed.outputs[1]
    made = [{**facts, "notices": ["A near copy of what went in."]} for facts in unnamed.provenance]
    if by_a_chain:
        made = [{"model": "chain", "seed": facts["seed"], "stages": [facts, facts]} for facts in made]
    drawn = Samples({"found": unnamed.arrays["image"]}, made, (replace(image, name="found"),))
    condition = Condition("image", image.shape, low=image.low, high=image.high)
    Dicom().write(under(condition, unnamed.arrays["image"], drawn), tmp_path, "part")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["000007_found.dcm", "000008_found.dcm"]
    for file in tmp_path.iterdir():
        dataset = pydicom.dcmread(file)
        assert dataset.SyntheticData == "YES"
        assert dataset.PatientIdentityRemoved == "NO"
        assert "DeidentificationMethod" not in dataset
        (equipment,) = dataset.ContributingEquipmentSequence
        for text in (dataset.PatientComments, dataset.ImageComments, equipment.ContributionDescription):
            assert "after another image, perhaps a patient's" in text
            said, _, _source = text.partition("{")
            assert said.count("A near copy of what went in.") == 1
            assert "no patient" not in text
