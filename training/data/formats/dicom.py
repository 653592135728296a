"""One grey DICOM file as a viewer shows it, or a segmentation of it."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.data.formats.grey_image import GreyImage, check_square
from training.data.problems import BadFileError

if TYPE_CHECKING:
    from pydicom import Dataset

GREY = ("MONOCHROME1", "MONOCHROME2")
SEGMENTATIONS = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")  # of bits, or of labels
IDENTITY = (0.0, 1.0)


def read_dicom(path: Path) -> GreyImage:
    """An image of one frame in the standard's order of transformations (PS3.3, C.11): modality, VOI, presentation.

    With a window or a VOI table, the first where there are several, pixels are float32 from 0 to 1. Without, they are
    the stored integers, whose white a folder's images share. MONOCHROME1 is inverted. A segmentation is bool: where any
    of its segments is, all of them of one plane.

    Raises:
        BadFileError: pydicom or highdicom is missing, or the file has colours, several frames, pixels that are not
            square, words burnt into it, or values below 0 or in other units and nothing that says what is white.
    """
    try:
        import highdicom
        import pydicom
    except ModuleNotFoundError as missing:
        raise BadFileError(f"is DICOM, which needs {missing.name}: pip install 'medgen[dicom]'") from missing
    with warnings.catch_warnings():  # of values that a standard's reader finds odd, and reads all the same
        warnings.simplefilter("ignore")
        header = pydicom.dcmread(path, stop_before_pixels=True)
        if "Rows" not in header:
            raise BadFileError("is a DICOM file without pixels")
        if header.get("SOPClassUID") in SEGMENTATIONS:
            return GreyImage(_segments(pydicom.dcmread(path)), decided=("segmentation",))
        spacing, decided = _checked(header), _decided(header)
        if "VOI table" in decided or "window" in decided:
            image = highdicom.imread(path)
            shown = image.get_frame(1, apply_real_world_transform=False, apply_voi_transform=True, dtype=np.float32)
            return GreyImage(shown, spacing=spacing, decided=decided)
        stored = pydicom.dcmread(path).pixel_array
    if stored.dtype.kind != "u" or _rescaled(header):
        raise BadFileError("has values below 0, or in units of their own, and no window: nothing says what is white")
    if (highest := int(stored.max())) >= 2**16:
        raise BadFileError(f"holds {highest}; no more than 16 bits are read")
    if "inverted" in decided:
        stored = 2**header.BitsStored - 1 - stored
    return GreyImage(stored.astype(np.uint8 if header.BitsStored <= 8 else np.uint16), spacing=spacing, decided=decided)


def _checked(header: "Dataset") -> float | None:
    """The side of a pixel in mm, of an image that can be read; of a projection, at the detector."""
    if (kind := header.get("PhotometricInterpretation")) not in GREY:
        raise BadFileError(f"is {kind}, not grey")
    if (frames := int(header.get("NumberOfFrames") or 1)) != 1:
        raise BadFileError(f"holds {frames} pictures, not one")
    if header.get("BurnedInAnnotation") == "YES":
        raise BadFileError("has words burnt into it (BurnedInAnnotation is YES), which may name a patient")
    check_square(*map(float, header.get("PixelAspectRatio") or (1, 1)))
    sides = header.get("PixelSpacing") or header.get("ImagerPixelSpacing")
    if not sides:
        return None
    down, across = map(float, sides)
    check_square(across, down)
    return down


def _decided(header: "Dataset") -> tuple[str, ...]:
    """What is done to the pixels, and what else is to be known of them, in words."""
    shape = header.get("PresentationLUTShape")
    inverted = shape == "INVERSE" or (not shape and header.PhotometricInterpretation == "MONOCHROME1")
    said = {
        "VOI table": bool(header.get("VOILUTSequence")),
        "window": header.get("WindowCenter") is not None and not header.get("VOILUTSequence"),
        "inverted": inverted,
        "modality table": bool(header.get("ModalityLUTSequence")),
        "rescaled": _rescaled(header) and not header.get("ModalityLUTSequence"),
        "for processing": header.get("PresentationIntentType") == "FOR PROCESSING",
        "synthetic": header.get("SyntheticData") == "YES",
    }
    return tuple(name for name, holds in said.items() if holds)


def _rescaled(header: "Dataset") -> bool:
    """Whether stored values are not what is meant."""
    line = float(header.get("RescaleIntercept") or 0), float(header.get("RescaleSlope") or 1)
    return line != IDENTITY or bool(header.get("ModalityLUTSequence"))


def _segments(stored: "Dataset") -> NDArray[np.bool_]:
    frames: NDArray[Any] = stored.pixel_array.reshape(-1, stored.Rows, stored.Columns)
    places = {
        tuple(group.PlanePositionSequence[0].ImagePositionPatient)
        for group in stored.get("PerFrameFunctionalGroupsSequence", [])
        if "PlanePositionSequence" in group
    }
    if len(places) > 1:
        raise BadFileError(f"segments {len(places)} planes, not one")
    if stored.get("SegmentationType") == "FRACTIONAL":
        most = stored.MaximumFractionalValue
        if len(between := np.unique(frames[(frames != 0) & (frames != most)])):
            told = f"{between[0]} of {most}"
            raise BadFileError(f"holds shares, such as {told}; a mask says where a lesion is, or is not")
    return (frames != 0).any(axis=0)
