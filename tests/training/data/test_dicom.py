"""DICOM files as data: shown as a viewer shows them, or refused."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless
from tiny_samples import pairs

from serving.writers.dicom import Dicom
from training.data import open_dataset
from training.data.formats.grey_image import read_grey
from training.data.problems import BadFileError, DataError

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
LESION = np.zeros((64, 64), np.uint8)
LESION[20:30, 30:40] = 1


def dicom(path: Path, pixels: np.ndarray = RAMP, bits: int = 12, **attributes: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = SECONDARY_CAPTURE
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = f"2.25.{1 + hash(path.name) % 10**9}"
    file.StudyInstanceUID = file.SeriesInstanceUID = "2.25.7"
    file.Modality, file.PatientID = "OT", "1"
    file.PhotometricInterpretation = "MONOCHROME2"
    file.SamplesPerPixel, (file.Rows, file.Columns) = 1, pixels.shape[-2:]
    file.BitsAllocated, file.BitsStored, file.HighBit = 8 * pixels.dtype.itemsize, bits, bits - 1
    file.PixelRepresentation = int(pixels.dtype.kind == "i")
    file.PixelData = pixels.tobytes()
    for name, value in attributes.items():
        setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)
    return path


def table(first: int, values: list[int]) -> Dataset:
    found = Dataset()
    found.LUTDescriptor = [len(values), first, 16]
    found.LUTData = np.array(values, "<u2").tobytes()
    found.ModalityLUTType = "US"
    return found


def windowed(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """PS3.3, C.11.2.1.2.1."""
    return ((values - (centre - 0.5)) / (width - 1) + 0.5).clip(0, 1)


@pytest.mark.parametrize(
    ("attributes", "shown", "decided"),
    [
        ({}, RAMP, ()),
        ({"PhotometricInterpretation": "MONOCHROME1"}, 4095 - RAMP, ("inverted",)),
        ({"WindowCenter": 1000, "WindowWidth": 500}, windowed(RAMP, 1000, 500), ("window",)),
        ({"WindowCenter": [1000, 2000], "WindowWidth": [500, 9]}, windowed(RAMP, 1000, 500), ("window",)),
        (
            {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 1000, "WindowWidth": 500},
            1 - windowed(RAMP, 1000, 500),
            ("window", "inverted"),
        ),
        (
            {"WindowCenter": 0, "WindowWidth": 800, "RescaleSlope": 1, "RescaleIntercept": -1024},
            windowed(RAMP - 1024.0, 0, 800),
            ("window", "rescaled"),
        ),
        (
            {"VOILUTSequence": [table(0, [*range(0, 65536, 16)])]},
            RAMP * 16 / (65536 - 1),
            ("VOI table",),
        ),
        (
            {"ModalityLUTSequence": [table(0, [*range(4095, -1, -1)])], "WindowCenter": 2048, "WindowWidth": 4096},
            windowed(4095.0 - RAMP, 2048, 4096),
            ("window", "modality table"),
        ),
        ({"PresentationLUTShape": "INVERSE"}, 4095 - RAMP, ("inverted",)),
    ],
)
def test_it_is_shown_as_the_standard_says(tmp_path, attributes, shown, decided):
    image = read_grey(dicom(tmp_path / "a.dcm", **attributes))
    np.testing.assert_allclose(image.pixels, shown, atol=1e-3 if image.pixels.dtype.kind == "f" else 0)
    assert image.pixels.dtype == (np.uint16 if shown.dtype.kind in "ui" else np.float32)
    assert image.decided == decided


def test_jpeg_2000_is_read(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(RAMP).save(stream, "JPEG2000", irreversible=False, no_jp2=True)
    path = dicom(tmp_path / "a.dcm", bits=16)
    packed = Dataset()
    packed.update(pydicom.dcmread(path))
    packed.file_meta = FileMetaDataset()
    packed.file_meta.TransferSyntaxUID = JPEG2000Lossless
    packed.file_meta.MediaStorageSOPClassUID, packed.file_meta.MediaStorageSOPInstanceUID = SECONDARY_CAPTURE, "2.25.1"
    packed.PixelData = encapsulate([stream.getvalue()])
    packed["PixelData"].VR = "OB"
    packed.save_as(path, enforce_file_format=True)
    np.testing.assert_array_equal(read_grey(path).pixels, RAMP)


@pytest.mark.parametrize(
    ("pixels", "attributes", "said"),
    [
        (RAMP.astype(np.int16), {}, "has values below 0, or in units of their own, and no window"),
        (RAMP, {"RescaleIntercept": -1024, "RescaleSlope": 1}, "and no window: nothing says what is white"),
        (RAMP, {"PhotometricInterpretation": "PALETTE COLOR"}, "is PALETTE COLOR, not grey"),
        (RAMP, {"NumberOfFrames": 4, "Rows": 16}, "holds 4 pictures, not one"),
        (RAMP, {"PixelSpacing": [0.1, 0.2]}, "pixels must be square"),
        (RAMP, {"PixelAspectRatio": [1, 2]}, "pixels must be square"),
        (RAMP, {"BurnedInAnnotation": "YES"}, "words burnt into it"),
        (RAMP, {"PixelData": b"12"}, "cannot be read"),
        (RAMP.astype(np.uint32) * 32, {"BitsStored": 32, "HighBit": 31}, "holds 131040; no more than 16 bits are read"),
    ],
)
def test_what_cannot_be_honoured_is_refused(tmp_path, pixels, attributes, said):
    with pytest.raises(BadFileError, match=said):
        read_grey(dicom(tmp_path / "a.dcm", pixels, **attributes))


def test_a_report_and_a_missing_package_are_named(tmp_path, monkeypatch):
    path = dicom(tmp_path / "a.dcm")
    report = pydicom.dcmread(path)
    del report.Rows
    report.save_as(tmp_path / "report.dcm")
    with pytest.raises(BadFileError, match="without pixels"):
        read_grey(tmp_path / "report.dcm")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(BadFileError, match=r"needs highdicom: pip install 'medgen\[dicom\]'"):
        read_grey(path)


def test_a_folder_says_what_its_files_asked_for(tmp_path):
    for name, side in {"a": 0.1, "b": 0.25}.items():
        dicom(
            tmp_path / "images" / f"{name}.dcm",
            WindowCenter=2048,
            WindowWidth=4096,
            ImagerPixelSpacing=[side, side],
            PresentationIntentType="FOR PROCESSING",
        )
        dicom(tmp_path / "masks" / f"{name}.dcm", LESION, bits=8)
    pairs = open_dataset(str(tmp_path), 64)
    np.testing.assert_allclose(pairs[0]["image"][0], 2 * windowed(RAMP, 2048, 4096) - 1, atol=1e-3)
    np.testing.assert_array_equal(pairs[0]["mask"][0], LESION)
    assert pairs.reading["dicom"] == {"for processing": 2, "window": 2}
    assert pairs.reading["mm_a_pixel"] == [[0.1, 0.25]]
    assert any("0.1 to 0.25 mm wide" in warning for warning in pairs.warnings)
    assert any("2 of 2 images are raw" in warning for warning in pairs.warnings)
    dicom(tmp_path / "images" / "c.dcm", BurnedInAnnotation="YES")
    dicom(tmp_path / "masks" / "c.dcm", LESION, bits=8)
    with pytest.raises(DataError, match=r"c\.dcm.*words burnt"):
        open_dataset(str(tmp_path), 64)


@pytest.mark.parametrize("modality", ["MG", "MR"])
def test_samples_come_back(tmp_path, modality):
    """What `sample --layout dicom` writes, image and segmentation, is what a data set reads."""
    samples = pairs("pig", modality, ("background", "lesion"), (0.5, 0.5))
    (tmp_path / "drawn").mkdir()
    Dicom().write(samples, tmp_path / "drawn", "")
    for kind in ("image", "mask"):
        (tmp_path / f"{kind}s").mkdir()
        for path in (tmp_path / "drawn").rglob(f"*{kind}*.dcm"):
            path.rename(tmp_path / f"{kind}s" / f"{path.stem[:6]}.dcm")
    read = open_dataset(str(tmp_path), 32)
    for row in range(2):
        np.testing.assert_allclose(read[row]["image"][0, 4:28], (samples.arrays["image"][row, 0] - 1) / 2, atol=1e-4)
        np.testing.assert_array_equal(read[row]["mask"][0, 4:28], samples.arrays["mask"][row, 0])
    assert read.reading["mm_a_pixel"] == [[0.5, 0.5]]
    assert any("2 of 2 images are synthetic" in warning for warning in read.warnings)


def test_shares_of_a_segmentation_are_no_mask(tmp_path):
    fractional = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4",
        "SegmentationType": "FRACTIONAL",
        "MaximumFractionalValue": 255,
    }
    shares = np.array([[0, 1], [128, 255]], np.uint8)
    with pytest.raises(BadFileError, match="holds shares, such as 1 of 255"):
        read_grey(dicom(tmp_path / "a.dcm", shares, 8, **fractional))
    whole = read_grey(dicom(tmp_path / "b.dcm", shares // 255 * 255, 8, **fractional))
    assert whole.pixels.tolist() == [[False, False], [False, True]]
