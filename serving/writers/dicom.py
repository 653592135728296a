"""Samples as DICOM: an image and a segmentation of each, marked as synthetic, and a patient to none.

Of IODs in the DICOM standard, PS3.3: Digital Mammography X-Ray Image (A.27), MR Image (A.4), Secondary Capture Image
(A.8) and Segmentation (A.51). What a slice has no values for, but the standard wants, is nominal: the place and
direction in the patient, and of a mammogram the side, the view and the thickness.
"""

import hashlib
import importlib.util
import json
from collections.abc import Collection, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Output
from serving.sample_set import Samples, notices_of
from serving.writers.layout import BLOCK, Layout, LayoutError, Shapes, is_mask, is_picture
from serving.writers.npz import bytes_of_arrays, check_name

if TYPE_CHECKING:
    from pydicom import Dataset

BITS = 16
WHEN, TIME = "20260101", "000000"  # a date is wanted, and the day of the drawing would be other bytes
NOMINAL_MM = 1.0
NOT_A_PATIENT = "SYNTHETIC, drawn by a generative model: no patient, not for diagnosis"
OF_ANOTHER = "SYNTHETIC, drawn by a generative model after another image, perhaps a patient's: not for diagnosis"
NOMINAL = "place, direction, side and view are nominal"
SIZE_TOO = "size (1 mm stands for it), place, direction, side and view are nominal"


class Kind(NamedTuple):
    """Of a picture: its SOP class, modality and ImageType, and the attributes that its IOD has beside the others'."""

    sop_class: str
    modality: str
    image_type: tuple[str, ...]
    attributes: Mapping[str, Any]


class Code(NamedTuple):
    value: str
    scheme: str
    meaning: str


BREAST, OBLIQUE = Code("76752008", "SCT", "Breast"), Code("399368009", "SCT", "medio-lateral oblique")
EQUIPMENT = Code("109102", "DCM", "Processing Equipment")
SECONDARY = Kind(
    "1.2.840.10008.5.1.4.1.1.7", "OT", ("DERIVED", "SECONDARY"), {"ConversionType": "SYN", "ImageLaterality": "U"}
)
KINDS = {
    "MG": Kind(
        "1.2.840.10008.5.1.4.1.1.1.2",  # Digital Mammography X-Ray Image Storage - For Presentation
        "MG",
        ("DERIVED", "SECONDARY"),
        {
            "PresentationIntentType": "FOR PRESENTATION",
            "PixelIntensityRelationship": "LOG",
            "PixelIntensityRelationshipSign": 1,
            "RescaleIntercept": 0,
            "RescaleSlope": 1,
            "RescaleType": "US",
            "PresentationLUTShape": "IDENTITY",
            "AcquisitionContextSequence": [],
            "PatientOrientation": ["A", "F"],
            "ImageLaterality": "L",
            "BodyPartExamined": "BREAST",
            "OrganExposed": "BREAST",
            "PositionerType": "NONE",
            "DetectorType": "DIRECT",
            "BreastImplantPresent": "NO",
            "PartialView": "NO",
        },
    ),
    "MR": Kind(
        "1.2.840.10008.5.1.4.1.1.4",
        "MR",
        ("DERIVED", "SECONDARY", "OTHER"),
        {
            "ScanningSequence": "RM",
            "SequenceVariant": "NONE",
            "ScanOptions": "",
            "MRAcquisitionType": "2D",
            "EchoTime": None,
            "EchoTrainLength": None,
            "RepetitionTime": None,
            "PatientPosition": "HFS",
            "AcquisitionNumber": None,
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "ImagePositionPatient": [0, 0, 0],
            "PatientOrientation": ["L", "P"],
            "ImageLaterality": "U",
        },
    ),
}
STRUCTURE = Code("91723000", "SCT", "Anatomical structure")
ABNORMAL = Code("49755003", "SCT", "Morphologically Altered Structure")
TISSUE = Code("85756007", "SCT", "Tissue")  # where nothing is known of a class but its label
CLASSES = {  # category and type of a segment, by the label of its class
    "lesion": (ABNORMAL, Code("52988006", "SCT", "Lesion")),
    "LV": (STRUCTURE, Code("87878005", "SCT", "Left ventricle of heart")),
    "MYO": (STRUCTURE, Code("74281007", "SCT", "Myocardium")),
    "RV": (STRUCTURE, Code("53085002", "SCT", "Right ventricle of heart")),
}


class Dicom(Layout):
    """NAME_OUTPUT.dcm for every picture and mask of every sample, which are one study of one synthetic patient.

    A picture is what its output's modality says, a mammogram or an MR image, or else a secondary capture; its stored
    values 0 to 65535 stand for low to high. A mask is a segmentation of the sample's first picture, with a segment for
    each class but 0. UIDs, and all other bytes, follow from the provenance.

    A picture or mask that was given is none of medgen's, and is not written. What was drawn under one may show whom
    that shows, so nothing is said of there being no patient, and the model's notices are.
    """

    name = "dicom"

    def check(self) -> None:
        for package in ("pydicom", "highdicom"):
            if importlib.util.find_spec(package) is None:
                raise LayoutError(f"DICOM files need {package}: pip install 'medgen[dicom]'")

    def check_outputs(self, outputs: Sequence[Output], given: Collection[str] = ()) -> None:
        outputs = [output for output in outputs if output.name not in given]  # which are not written
        drawn = ", ".join(f"{output.name} {output.dtype} {list(output.shape)}" for output in outputs)
        pictures = _pictures(outputs)
        if not pictures:
            raise LayoutError(f"DICOM files need a picture [1, H, W], and here there are {drawn}")
        for mask in filter(is_mask, outputs):
            if (mask.shape, mask.spacing) != (pictures[0].shape, pictures[0].spacing):
                raise LayoutError(
                    f"DICOM files need masks of the size and the spacing of the picture; here are {drawn}"
                )
        for output in outputs:
            check_name(output.name)

    def bytes_a_sample(self, shapes: Shapes) -> int:
        return 8 * bytes_of_arrays({n: shape for n, shape in shapes.items() if shape[0] == np.uint8}) + sum(
            2 * int(np.prod(shape)) + 4 * BLOCK for _, shape in shapes.values()
        )

    def write(self, samples: Samples, folder: Path, part: str) -> None:
        self.check_outputs(samples.outputs, samples.given)
        drawn = [picture for picture in _pictures(samples.outputs) if picture.name not in samples.given]
        masks = [mask for mask in samples.outputs if is_mask(mask) and mask.name not in samples.given]
        after_another = any(o.name in samples.given for o in samples.outputs if is_mask(o) or is_picture(o))
        for row, name in enumerate(samples.names):
            case = _Case(name, samples.provenance[row], after_another)
            first = None
            for number, output in enumerate(drawn, 1):
                picture = case.picture(output, samples.arrays[output.name][row, 0], number)
                first = first or picture
                picture.save_as(folder / f"{name}_{output.name}.dcm", enforce_file_format=True)
            for number, output in enumerate(masks, len(samples.outputs)):
                values = samples.arrays[output.name][row, 0]
                mask = case.segmentation(output, values, first, number)
                mask.save_as(folder / f"{name}_{output.name}.dcm", enforce_file_format=True)


def _pictures(outputs: Sequence[Output]) -> list[Output]:
    return [output for output in outputs if is_picture(output) and not is_mask(output)]


def stored(output: Output, values: NDArray[Any]) -> NDArray[np.uint16]:
    """0 to 65535 for values from low to high."""
    scaled = (np.asarray(values, np.float64) - output.low) / (output.high - output.low)
    return np.rint(np.clip(scaled, 0, 1) * (2**BITS - 1)).astype("<u2")


class _Case:
    """One sample: one study of one patient who never was, unless it was drawn after another image."""

    def __init__(self, name: str, provenance: Mapping[str, Any], after_another: bool = False) -> None:
        self._name, self._model = name, str(provenance["model"])
        self._after_another = after_another
        self._said = ". ".join([OF_ANOTHER if after_another else NOT_A_PATIENT, *notices_of(provenance)])
        self._source = json.dumps(provenance, sort_keys=True)
        bundles = [str(stage.get("bundle", "")) for stage in provenance.get("stages", [provenance])]
        self._bundles = bundles
        self._version = _version()
        self._patient = hashlib.sha256(self._source.encode()).hexdigest()[:16]

    def uid(self, *what: object) -> Any:
        """2.25 and a UUID of version 8 (RFC 9562) out of the sha256 of what made the sample (PS3.5, B.2)."""
        from pydicom.uid import UID

        digest = bytearray(hashlib.sha256(json.dumps([self._source, *what]).encode()).digest()[:16])
        digest[6], digest[8] = digest[6] & 0x0F | 0x80, digest[8] & 0x3F | 0x80
        return UID(f"2.25.{int.from_bytes(digest, 'big')}")

    def picture(self, output: Output, values: NDArray[Any], number: int) -> "Dataset":
        from pydicom.dataset import Dataset, FileMetaDataset
        from pydicom.uid import ExplicitVRLittleEndian
        from pydicom.valuerep import DSfloat

        kind = KINDS.get(str(output.modality), SECONDARY)
        picture = Dataset()
        picture.file_meta = FileMetaDataset()
        picture.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        picture.file_meta.ImplementationClassUID = self.uid("medgen")
        picture.SpecificCharacterSet = "ISO_IR 192"
        picture.SOPClassUID, picture.SOPInstanceUID = kind.sop_class, self.uid(output.name, "instance")
        self._describe(picture, kind.modality, output, number)
        picture.ImageType = list(kind.image_type)
        picture.PatientOrientation = ["", ""]
        for name, value in kind.attributes.items():
            setattr(picture, name, value)
        if kind.modality == "MG":
            view = _coded(OBLIQUE)
            view.ViewModifierCodeSequence = []
            picture.AnatomicRegionSequence, picture.ViewCodeSequence = [_coded(BREAST)], [view]
        spacing = [DSfloat(side, auto_format=True) for side in output.spacing or (NOMINAL_MM, NOMINAL_MM)]
        picture.PixelSpacing = spacing
        if kind.modality == "MG":
            picture.ImagerPixelSpacing = spacing
        if output.spacing is None and kind.modality != "MR":
            picture.PixelSpacingCalibrationType = "GEOMETRY"
            picture.PixelSpacingCalibrationDescription = "The size is unknown; 1 mm stands for it"
        if kind is not SECONDARY:  # which has no place
            picture.FrameOfReferenceUID, picture.PositionReferenceIndicator = self.uid("frame"), ""
        if kind.modality == "MR":
            picture.SliceThickness = NOMINAL_MM
        picture.DerivationDescription = f"Stored 0 to {2**BITS - 1} stand for {output.low:g} to {output.high:g}"
        picture.LossyImageCompression, picture.BurnedInAnnotation = "00", "NO"
        picture.SamplesPerPixel, picture.PhotometricInterpretation = 1, "MONOCHROME2"
        picture.Rows, picture.Columns = values.shape
        picture.BitsAllocated, picture.BitsStored, picture.HighBit, picture.PixelRepresentation = 16, BITS, BITS - 1, 0
        picture.WindowCenter, picture.WindowWidth = 2 ** (BITS - 1), 2**BITS
        picture.PixelData = stored(output, values).tobytes()
        return picture

    def segmentation(self, output: Output, mask: NDArray[np.uint8], picture: "Dataset | None", number: int) -> Any:
        """The classes 1 up of a mask [H, W], each a segment, over the picture's pixels."""
        import highdicom
        from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
        from highdicom.sr.coding import CodedConcept
        from pydicom import Dataset
        from pydicom.sr.codedict import codes

        assert picture is not None
        source = Dataset(picture)  # with what a segmentation must have
        source.FrameOfReferenceUID, source.PositionReferenceIndicator = self.uid("frame"), ""
        source.SliceThickness = NOMINAL_MM
        algorithm = highdicom.AlgorithmIdentificationSequence(
            name=f"medgen {self._model}",
            family=codes.DCM.ArtificialIntelligence,
            version=self._version,
            source="medgen",
        )
        segments = []
        for index, label in enumerate(output.labels or [str(k) for k in range(int(output.high) + 1)]):
            if index == 0:
                continue
            category, kind = CLASSES.get(label, (TISSUE, TISSUE))
            segments.append(
                SegmentDescription(
                    segment_number=index,
                    segment_label=label[:64],
                    segmented_property_category=CodedConcept(*category),
                    segmented_property_type=CodedConcept(*kind),
                    algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
                    algorithm_identification=algorithm,
                    tracking_uid=self.uid(output.name, "segment", index),
                    tracking_id=f"{self._name} {label}"[:64],
                )
            )
        classes = np.arange(1, len(segments) + 1)
        found = highdicom.seg.Segmentation(
            source_images=[source],
            pixel_array=(mask[None, ..., None] == classes).astype(np.uint8),
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=self.uid(output.name, "series"),
            series_number=number,
            sop_instance_uid=self.uid(output.name, "instance"),
            instance_number=1,
            manufacturer="medgen",
            manufacturer_model_name=self._model,
            software_versions=self._version,
            device_serial_number=self._bundles[0][:64] or "none",
            omit_empty_frames=False,
        )
        self._describe(found, "SEG", output, number)
        found.PatientOrientation = picture.PatientOrientation
        found.DimensionOrganizationSequence[0].DimensionOrganizationUID = self.uid(output.name, "dimensions")
        for dimension in found.DimensionIndexSequence:
            dimension.DimensionOrganizationUID = self.uid(output.name, "dimensions")
        return found

    def _describe(self, dataset: "Dataset", modality: str, output: Output, number: int) -> None:
        """Whose it is, when, and by whom: nobody's, on a nominal day, by medgen."""
        from pydicom.dataset import Dataset

        dataset.Modality = modality
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = self.uid("study"), self.uid(output.name, "series")
        dataset.PatientName, dataset.PatientID = f"SYNTHETIC^{self._name}", f"MEDGEN-{self._patient}"
        dataset.PatientBirthDate, dataset.PatientSex = "", ""
        dataset.PatientComments = self._said[:10240]
        dataset.SyntheticData = "YES"
        if self._after_another:
            dataset.PatientIdentityRemoved = "NO"
        else:
            dataset.PatientIdentityRemoved, dataset.DeidentificationMethod = "YES", "There never was a patient"
        for name in ("InstanceCreation", "Study", "Series", "Content", "Acquisition"):
            setattr(dataset, f"{name}Date", WHEN)
            setattr(dataset, f"{name}Time", TIME)
        dataset.AccessionNumber, dataset.ReferringPhysicianName, dataset.StudyID = "", "", self._name[:16]
        dataset.SeriesNumber, dataset.InstanceNumber = number, 1
        dataset.Manufacturer, dataset.ManufacturerModelName = "medgen", self._model[:64]
        dataset.DeviceSerialNumber, dataset.SoftwareVersions = self._bundles[0][:64] or "none", self._version
        dataset.StudyDescription = "SYNTHETIC"
        dataset.SeriesDescription = f"SYNTHETIC {output.name} by medgen {self._model}"[:64]
        nominal = NOMINAL if output.spacing else SIZE_TOO
        dataset.ImageComments = f"{self._said}. {nominal}. {self._source}"[:10240]
        equipment = Dataset()
        equipment.PurposeOfReferenceCodeSequence = [_coded(EQUIPMENT)]
        equipment.Manufacturer, equipment.ManufacturerModelName = "medgen", self._model[:64]
        equipment.DeviceSerialNumber, equipment.SoftwareVersions = self._bundles[-1][:64] or "none", self._version
        equipment.ContributionDateTime = WHEN + TIME
        equipment.ContributionDescription = self._said[:1024]
        dataset.ContributingEquipmentSequence = [equipment]


def _version() -> str:
    try:
        return metadata.version("medgen")
    except metadata.PackageNotFoundError:  # run from a checkout
        return "unknown"


def _coded(code: Code) -> "Dataset":
    from pydicom.dataset import Dataset

    coded = Dataset()
    coded.CodeValue, coded.CodingSchemeDesignator, coded.CodeMeaning = code
    return coded
