import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import ndimage

from training.data import open_dataset
from training.data.dataset import LoadedPairs
from training.data.layouts import acdc, cached_slices, mnms
from training.data.layouts.cardiac import assign, load_cardiac
from training.data.layouts.recording import Recording
from training.data.layouts.stacks import Stacks, read_stacks
from training.data.preparation.resize import fit_classes
from training.data.preparation.short_axis import PIXEL, SIDE, Stack, prepare
from training.data.problems import DataError, Problems

SPACING = (2.0, 2.5, 8.0)
SHAPE = (84, 70, 4)
X, Y, Z = np.indices(SHAPE)
BACKGROUND, LV, MYO, RV = range(4)
# a short axis as it lies in a patient: x to the left and back, y to the feet, slices to the base
DIRECTIONS = np.array([[-0.72, 0.12, 0.684], [-0.66, -0.43, -0.616], [0.22, -0.895, 0.388]])
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = np.linalg.svd(DIRECTIONS)[0] @ np.linalg.svd(DIRECTIONS)[2] * SPACING
GREY = np.array([60, 400, 120, 300])
ACDC_ON_DISK = np.array([0, 3, 2, 1], np.uint8)  # by our label
TABLE = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


def draw_labels(x: float = 46, y: float = 34) -> np.ndarray:
    """An LV of 20 mm radius in a MYO ring of 28 mm around voxel (x, y), RV at smaller x, in the slices 1 to 3."""
    distance = np.hypot((X - x) * SPACING[0], (Y - y) * SPACING[1])
    beside = np.hypot((X - x + 16) * SPACING[0], (Y - y - 2) * SPACING[1])
    labels = np.where(distance < 20, LV, np.where(distance < 28, MYO, np.where(beside < 22, RV, BACKGROUND)))
    return np.where(Z > 0, labels, BACKGROUND).astype(np.uint8)


def draw_image(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    return (GREY[labels] + np.random.default_rng(seed).normal(0, 8, labels.shape)).clip(1).astype(np.float32)


LABELS = draw_labels()
IMAGE = draw_image(LABELS)


def write(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, np.diag([*SPACING, 1]) if affine is None else affine), path)


def write_acdc(home: Path, frame: int = 1, image: np.ndarray = IMAGE, labels: np.ndarray = LABELS, **mask) -> None:
    stem = home / f"{home.name}_frame{frame:02d}"
    write(Path(f"{stem}.nii.gz"), image)
    write(Path(f"{stem}_gt.nii.gz"), ACDC_ON_DISK[labels], **mask)


def write_mnms(home: Path, ed: int = 2, es: int = 0, frames: int = 3) -> None:
    """Only the frames ED and ES have labels; the others' images are flat."""
    image, labels = np.full((*SHAPE, frames), 7, np.float32), np.zeros((*SHAPE, frames), np.uint8)
    for frame in (ed, es):
        image[..., frame], labels[..., frame] = IMAGE, LABELS
    write(home / f"{home.name}_sa.nii.gz", image, OBLIQUE)
    write(home / f"{home.name}_sa_gt.nii.gz", labels, OBLIQUE)


def write_table(folder: Path, *rows: str) -> None:
    (folder / TABLE).write_text("\n".join([",External code,VendorName,Vendor,Centre,ED,ES,Age", *rows]) + "\n")


@pytest.fixture(params=["acdc", "mnms"])
def folder(request, tmp_path) -> Path:
    """One patient with two moments."""
    if request.param == "acdc":
        home = tmp_path / "training" / "patient007"
        write_acdc(home, 1)
        write_acdc(home, 12)
        (home / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: DCM\nNbFrame: 30\n")
        (home / "patient007_4d.nii.gz").write_bytes(b"not looked at")
    else:
        write_mnms(tmp_path / "Training" / "Labeled" / "A0S9V9")
        write_mnms(tmp_path / "Training" / "Unlabeled" / "B0S9V9")
        write_table(tmp_path, "0,A0S9V9,Siemens,A,1,2,0,50", "1,B0S9V9,Siemens,A,1,2,0,50")
    return tmp_path


def arrays(pairs: LoadedPairs, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return pairs[index]["image"][0].numpy(), pairs[index]["mask"][0].numpy()


class TestPublishedLayouts:
    def test_both_become_the_same_pairs_with_the_same_labels(self, folder):
        pairs = load_cardiac(folder, 64, "all")
        assert len(pairs) == 6
        assert {key: (value.dtype, value.shape) for key, value in pairs[0].items()} == {
            "image": (torch.float32, (1, 64, 64)),
            "mask": (torch.uint8, (1, 64, 64)),
        }
        for index in range(6):
            image, mask = arrays(pairs, index)
            background, lv, myo, rv = (image[mask == label].mean() for label in range(4))
            assert lv > rv + 0.2 > myo + 0.4 > background + 0.4
            assert ndimage.center_of_mass(mask == RV)[1] < ndimage.center_of_mass(mask == LV)[1] - 8

    def test_names_say_patient_moment_and_slice_and_slices_without_structures_are_left_out(self, folder):
        moments = {"training": ("patient007_frame01", "patient007_frame12"), "Training": ("A0S9V9_ED", "A0S9V9_ES")}
        part = next(path.name for path in folder.iterdir() if path.is_dir())
        expected = [f"{moment}_slice{level:02d}" for moment in moments[part] for level in (1, 2, 3)]
        assert list(load_cardiac(folder, 32, "all").names) == expected

    def test_both_are_recognised(self, folder):
        assert len(open_dataset(str(folder), 32, "all")) == 6

    def test_a_patients_folders_alone_are_acdc(self, folder):
        if (folder / "training").is_dir():
            assert len(open_dataset(str(folder / "training"), 32, "all")) == 6


def stored_otherwise(image: nib.Nifti1Image, axes: tuple[int, ...]) -> nib.Nifti1Image:
    """The same in the patient, with the axes in another order; negative ones, counted from 1, run backwards."""
    orientation = np.zeros((3, 2))
    for place, axis in enumerate(axes):
        orientation[abs(axis) - 1] = place, np.sign(axis)
    return image.as_reoriented(orientation)


def recording_of(image: nib.Nifti1Image, mask: nib.Nifti1Image, folder: Path) -> Recording:
    folder.mkdir()
    nib.save(image, folder / "image.nii.gz")
    nib.save(mask, folder / "mask.nii.gz")
    return Recording("a", folder / "image.nii.gz", folder / "mask.nii.gz", {"a": None}, (0, 1, 2, 3))


def stacks_of(image: nib.Nifti1Image, mask: nib.Nifti1Image, folder: Path) -> Stacks:
    problems = Problems(folder)
    stacks = read_stacks(recording_of(image, mask, folder), problems)
    assert not problems.found, problems.lines()
    assert stacks is not None
    return stacks


LPS = np.diag([-SPACING[0], -SPACING[1], SPACING[2], 1])  # as ACDC is published
RAS = np.diag([*SPACING, 1])


class TestOrientation:
    @pytest.mark.parametrize("affine", [LPS, RAS, OBLIQUE], ids=["nominal", "nominal the other way", "oblique"])
    @pytest.mark.parametrize("axes", [(-1, 2, 3), (1, -2, -3), (2, 1, 3), (-2, 1, 3), (-2, -1, -3)])
    def test_the_same_heart_is_the_same_stack_however_it_is_stored(self, tmp_path, affine, axes):
        image, mask = (nib.Nifti1Image(voxels, affine) for voxels in (IMAGE, LABELS))
        plain = stacks_of(image, mask, tmp_path / "plain")
        other = stacks_of(stored_otherwise(image, axes), stored_otherwise(mask, (1, 2, -3)), tmp_path / "other")
        for one, its_other in zip(plain.by_frame["a"], other.by_frame["a"], strict=True):
            assert np.array_equal(one, its_other)
        assert np.array_equal(plain.by_frame["a"].image, IMAGE)  # which is drawn as it is looked at
        assert np.array_equal(plain.by_frame["a"].labels, LABELS)

    def test_a_folder_may_mix_them(self, tmp_path):
        write_acdc(tmp_path / "patient001")
        for suffix in ("", "_gt"):
            plain = nib.load(tmp_path / "patient001" / f"patient001_frame01{suffix}.nii.gz")
            path = tmp_path / "patient002" / f"patient002_frame01{suffix}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            nib.save(stored_otherwise(plain, (-2, 1, 3)), path)
        pairs = load_cardiac(tmp_path, 32, "all")
        for one, other in zip(pairs.items[:3], pairs.items[3:], strict=True):
            assert torch.equal(one["image"], other["image"])
            assert torch.equal(one["mask"], other["mask"])
        assert pairs.reading["axes"] == {"RAS": 1, "PRS": 1}

    def test_of_nominal_axes_the_heart_decides_which_way_is_up_and_it_is_said(self, tmp_path):
        stacks = [
            stacks_of(nib.Nifti1Image(IMAGE, affine), nib.Nifti1Image(LABELS, affine), tmp_path / name)
            for name, affine in {"as published": LPS, "by half": RAS}.items()
        ]
        assert np.array_equal(stacks[0].by_frame["a"].image, stacks[1].by_frame["a"].image)
        assert [(each.axes, each.turned) for each in stacks] == [("LPS", ""), ("RAS", "by half")]

    def test_true_axes_are_kept_and_an_rv_on_the_wrong_side_is_said(self, tmp_path):
        mirrored = OBLIQUE * [-1, -1, 1, 1]
        write(tmp_path / "patient001" / "patient001_frame01.nii.gz", IMAGE, mirrored)
        write(tmp_path / "patient001" / "patient001_frame01_gt.nii.gz", ACDC_ON_DISK[LABELS], mirrored)
        pairs = load_cardiac(tmp_path, 32, "all")
        (warning,) = pairs.warnings
        assert warning == (
            "by their axes the RV lies to the patient's left of the LV in 1 files: patient001/patient001_frame01.nii.gz"
        )
        mask = pairs[0]["mask"][0].numpy()
        assert ndimage.center_of_mass(mask == RV)[1] > ndimage.center_of_mass(mask == LV)[1]

    @pytest.mark.parametrize(("unit", "factor"), [("mm", 1), ("meter", 0.001), ("micron", 1000), ("unknown", 1)])
    def test_lengths_are_in_the_files_unit(self, tmp_path, unit, factor):
        both = [nib.Nifti1Image(voxels, np.diag([*np.array(SPACING) * factor, 1])) for voxels in (IMAGE, LABELS)]
        for image in both:
            image.header.set_xyzt_units(unit)
        assert stacks_of(*both, tmp_path / "a").by_frame["a"].spacing == pytest.approx(SPACING)

    def test_an_sform_without_lengths_has_those_of_the_voxels(self, tmp_path):
        both = [nib.Nifti1Image(voxels, LPS) for voxels in (IMAGE, LABELS)]
        for image in both:
            image.set_sform(np.diag([-1, -1, 1, 1]), code=1)  # as in ACDC
        stacks = stacks_of(*both, tmp_path / "a")
        assert stacks.by_frame["a"].spacing == pytest.approx(SPACING)
        assert stacks.axes == "LPS"

    def test_without_any_form_the_order_of_the_file_is_that_of_the_view(self, tmp_path):
        both = [nib.Nifti1Image(voxels, None) for voxels in (IMAGE, LABELS)]
        for image in both:
            image.header.set_zooms(SPACING)
        stacks = stacks_of(*both, tmp_path / "a")
        assert np.array_equal(stacks.by_frame["a"].image, IMAGE)
        assert stacks.by_frame["a"].spacing == SPACING

    def contradicting(self, **forms: np.ndarray) -> nib.Nifti1Image:
        image = nib.Nifti1Image(IMAGE, RAS)
        image.set_qform(forms.get("qform", RAS), code=1)
        image.set_sform(forms.get("sform", RAS), code=1)
        return image

    @pytest.mark.parametrize(
        ("forms", "reason"),
        [
            ({"sform": RAS * [2, 2, 2, 1]}, "says that its voxels are 2 x 2.5 x 8 by pixdim, but 4 x 5 x 16 by its"),
            ({"qform": LPS}, "is turned one way by its sform and another way by its qform"),
        ],
    )
    def test_a_header_that_contradicts_itself_is_refused(self, tmp_path, forms, reason):
        problems = Problems(tmp_path)
        read_stacks(recording_of(self.contradicting(**forms), nib.Nifti1Image(LABELS, RAS), tmp_path / "a"), problems)
        (line,) = problems.lines()
        assert line.startswith(f"a/image.nii.gz {reason}")


class TestUniqueNames:
    @pytest.fixture
    def sites(self, tmp_path) -> Path:
        write_acdc(tmp_path / "siteA" / "patient001")
        write_acdc(tmp_path / "siteB" / "patient001", image=draw_image(LABELS, seed=1))
        write_acdc(tmp_path / "siteB" / "training" / "patient002")
        return tmp_path

    def test_two_sites_may_have_a_patient_of_the_same_number(self, sites):
        pairs = load_cardiac(sites, 32, "all")
        assert len(pairs) == 9
        assert pairs.names[::3] == (
            "siteA/patient001_frame01_slice01",
            "siteB/patient001_frame01_slice01",
            "patient002_frame01_slice01",
        )
        assert not torch.equal(pairs[0]["image"], pairs[3]["image"])
        assert pairs.reading["patients"] == 3

    def test_they_are_on_one_side_of_a_split(self, sites):
        for seed in range(9):
            recordings = acdc.find_recordings(sites, Problems(sites))
            parts = assign(recordings, sites, 0.5, seed)
            assert parts[0] == parts[1]

    def test_two_subjects_of_mnms_with_one_code(self, tmp_path):
        write_mnms(tmp_path / "Training" / "A0")
        write_mnms(tmp_path / "Validation" / "A0")
        write_table(tmp_path, "0,A0,Siemens,A,1,2,0,50")
        assert load_cardiac(tmp_path, 32, "all").names[::6] == ("Training/A0_ED_slice01", "Validation/A0_ED_slice01")

    def test_one_subject_in_two_places_of_one_name_is_an_error(self, tmp_path):
        write_mnms(tmp_path / "Training" / "A0")
        for file in (tmp_path / "Training" / "A0").iterdir():
            shutil.copy(file, tmp_path / "Training")
        write_table(tmp_path, "0,A0,Siemens,A,1,2,0,50")
        with pytest.raises(DataError, match="more than one pair has the name Training/A0_ED_slice01"):
            load_cardiac(tmp_path, 32, "all")

    def test_a_code_with_two_rows_is_a_problem(self, tmp_path):
        write_mnms(tmp_path / "A0")
        write_table(tmp_path, "0,A0,Siemens,A,1,2,0,50", "1,A0,Siemens,A,1,0,2,50")
        with pytest.raises(DataError, match=r"opendataset\.csv has 2 rows for A0; there must be one"):
            load_cardiac(tmp_path, 32, "all")

    def test_so_is_a_second_table(self, tmp_path):
        write_mnms(tmp_path / "A0")
        write_table(tmp_path, "0,A0,Siemens,A,1,2,0,50")
        (tmp_path / "another.csv").write_bytes((tmp_path / TABLE).read_bytes())
        with pytest.raises(DataError, match=f"another.csv is a table of subjects, and so is {TABLE}"):
            load_cardiac(tmp_path, 32, "all")

    def test_so_is_a_second_column_of_a_name(self, tmp_path):
        write_mnms(tmp_path / "A0")
        (tmp_path / TABLE).write_text("External code,ED,ES,ED\nA0,2,0,1\n")
        with pytest.raises(DataError, match="has 2 columns 'ed'; there must be one"):
            load_cardiac(tmp_path, 32, "all")


class TestTable:
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
    @pytest.mark.parametrize("delimiter", [",", ";", "\t"])
    @pytest.mark.parametrize("end", ["\r\n", "\r"])
    def test_it_may_be_as_a_spreadsheet_writes_it(self, tmp_path, encoding, delimiter, end):
        write_mnms(tmp_path / "A0")
        text = "External code,Vendor, Name,ED,ES\r\nA0,B,x,2,0\r\n\r\n".replace(",", delimiter).replace("\r\n", end)
        (tmp_path / TABLE).write_bytes(text.encode(encoding))
        (found,) = mnms.find_recordings(tmp_path, Problems(tmp_path))
        assert found.frames == {"A0_ED": 2, "A0_ES": 0}

    def test_one_that_is_missing_is_named(self, tmp_path):
        write_mnms(tmp_path / "Training" / "A0")
        for name, content in {"notes": b"code,age\n", "binary": bytes(range(256)), "long": b"n" * 200_000}.items():
            (tmp_path / f"{name}.csv").write_bytes(content)
        with pytest.raises(
            DataError,
            match=r"no CSV with columns External code, ED and ES; there is binary\.csv, long\.csv, notes\.csv",
        ):
            open_dataset(str(tmp_path), 32)

    def test_two_data_sets_in_one_folder_are_named(self, tmp_path):
        write_acdc(tmp_path / "patient001")
        write_mnms(tmp_path / "Training" / "A0")
        write_table(tmp_path, "0,A0,Siemens,A,1,2,0,50")
        with pytest.raises(DataError, match="is ACDC and M&Ms at once; give each a folder of its own"):
            open_dataset(str(tmp_path), 32)


class TestPreparation:
    @pytest.mark.parametrize("size", [128, 64])
    def test_a_known_point_is_where_it_must_be_in_image_and_mask(self, tmp_path, size):
        labels = np.zeros(SHAPE, np.uint8)
        labels[30:60, 20:50, 2] = RV  # its middle, voxel (44.5, 34.5), becomes the middle of the picture
        labels[48:56, 24:32, 2] = LV
        image = np.where(labels == LV, 900, 100) + draw_image(np.zeros_like(labels))
        write_acdc(tmp_path / "patient001", image=image, labels=labels)
        seen, mask = arrays(load_cardiac(tmp_path, size, "all"))
        away = (np.array([27.5, 51.5]) - [34.5, 44.5]) * [SPACING[1], SPACING[0]] / PIXEL
        expected = (away + SIDE / 2) * size / SIDE - 0.5
        assert ndimage.center_of_mass(mask == LV) == pytest.approx(expected, abs=0.5)
        assert ndimage.center_of_mass((seen + 1) * (seen > 0)) == pytest.approx(expected, abs=0.3)

    def test_pixels_are_one_and_a_quarter_millimetres(self):
        area = (prepare(Stack(IMAGE, LABELS, SPACING)).masks[0] == LV).sum() * PIXEL**2
        assert area == pytest.approx(np.pi * 20**2, rel=0.05)

    def test_every_slice_is_centred_on_its_own_structures(self):
        apart = np.where(Z == 2, draw_labels(52, 30), draw_labels())
        for mask in prepare(Stack(draw_image(apart), apart, SPACING)).masks:
            rows, columns = mask.nonzero()
            middle = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
            assert middle == pytest.approx(((SIDE - 1) / 2, (SIDE - 1) / 2), abs=1)

    def test_the_first_and_the_last_percent_are_clipped(self):
        for image in prepare(Stack(IMAGE, LABELS, SPACING)).images:
            assert image.min() == -1
            assert image.max() == 1
            assert (image == -1).mean() == pytest.approx(0.01, abs=0.001)
            assert (image == 1).mean() == pytest.approx(0.01, abs=0.001)

    def test_the_bias_field_is_removed(self):
        shade = np.exp(X / SHAPE[0] - Y / SHAPE[1]).astype(np.float32)
        plain, shaded = (prepare(Stack(IMAGE * field, LABELS, SPACING)) for field in (np.float32(1), shade))
        heart = plain.masks != BACKGROUND
        assert np.abs(shaded.images - plain.images)[heart].mean() < 0.05  # 0.18 if it stays

    @pytest.mark.parametrize(("scale", "offset"), [(1, -2048), (1 / 97, -1.7)], ids=["offset", "z-scored"])
    def test_values_below_0_change_nothing(self, scale, offset):
        image = IMAGE - IMAGE.min()
        plain = prepare(Stack(image, LABELS, SPACING)).images
        moved = prepare(Stack(image * np.float32(scale) + np.float32(offset), LABELS, SPACING)).images
        assert np.abs(moved - plain).max() < 0.01

    def test_what_lies_beyond_the_stack_is_black_and_background(self):
        at_the_edge = draw_labels(x=74, y=60)
        heart = prepare(Stack(draw_image(at_the_edge), at_the_edge, SPACING))
        assert (heart.images[:, -10:, -10:] == -1).all()
        assert (heart.masks[:, -10:, -10:] == BACKGROUND).all()


def test_a_smaller_class_map_has_the_class_with_most_of_each_pixel():
    classes = np.array([[0, 0, 1, 1], [0, 3, 1, 2], [0, 0, 2, 2], [1, 1, 2, 3]], np.uint8)
    assert fit_classes(classes, 2, 4).tolist() == [[0, 1], [1, 2]]
    assert np.array_equal(fit_classes(classes, 4, 4), classes)


def recording(path: str) -> Recording:
    return Recording(Path(path).parent.name, Path("/data") / path, Path("/data/mask"), {"a": None}, (0, 1, 2, 3))


class TestSplit:
    def test_patients_are_drawn_whole_and_whichever_others_are_there(self):
        recordings = [recording(f"patient{n:03d}/{frame}.nii.gz") for n in range(200) for frame in (1, 2)]
        parts = assign(recordings, Path("/data"), 0.2, seed=0)
        assert parts[::2] == parts[1::2]
        assert 25 < parts[::2].count("validation") < 55
        assert assign(recordings[100:], Path("/data"), 0.2, seed=0) == parts[100:]
        assert assign(recordings, Path("/data"), 0.2, seed=1) != parts

    def test_published_parts_are_kept(self):
        parts = ["Training/Labeled", "Validation", "Testing"]
        recordings = [recording(f"{part}/C{n}/a.nii.gz") for part in parts for n in range(20)]
        assert assign(recordings, Path("/data"), 0.5, seed=0) == ["train"] * 20 + ["validation"] * 20 + ["testing"] * 20

    def test_patients_of_one_name_in_two_parts_are_refused(self, tmp_path):
        for part in ("Training", "Validation"):
            write_acdc(tmp_path / part / "patient001")
        with pytest.raises(DataError, match=r"1 patients are in more than one of train, .*: patient001"):
            load_cardiac(tmp_path, 32)

    def test_an_empty_file_in_the_cache_is_none(self, tmp_path):
        (tmp_path / "empty.npz").touch()
        assert cached_slices._read(tmp_path / "empty.npz") is None

    def test_a_split_reads_its_own_part(self, tmp_path):
        for part, patient in {"training": "patient001", "testing": "patient101"}.items():
            write_acdc(tmp_path / part / patient)
        train = load_cardiac(tmp_path, 32, "train", validation_fraction=0)
        assert {name[:10] for name in train.names} == {"patient001"}
        assert {name[:10] for name in load_cardiac(tmp_path, 32, "all").names} == {"patient001", "patient101"}
        with pytest.raises(DataError, match="no slice of the validation split can be used"):
            load_cardiac(tmp_path, 32, "validation", validation_fraction=0)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def with_nan() -> np.ndarray:
    return np.where((X == 3) & (Y == 3), np.nan, IMAGE)


def with_label_4() -> np.ndarray:
    return np.where((X == 3) & (Y == 3), 4, ACDC_ON_DISK[LABELS]).astype(np.uint8)


def sheared() -> np.ndarray:
    affine = np.diag([*SPACING, 1])
    affine[0, 1] = 1
    return affine


def shifted() -> np.ndarray:
    affine = np.diag([*SPACING, 1])
    affine[0, 3] = 1
    return affine


WIDE = np.where((X < 83) & (Y > 30) & (Y < 40), LV, 0).astype(np.uint8)
# what is broken on a good frame: (how, the file at fault, what is said of it)
BROKEN: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no mask": (lambda stem: Path(f"{stem}_gt.nii.gz").unlink(), "_gt", "is missing"),
    "no image": (lambda stem: Path(f"{stem}.nii.gz").unlink(), "", "is missing"),
    "short image": (lambda stem: cut_short(Path(f"{stem}.nii.gz")), "", "cannot be read ("),
    "short mask": (lambda stem: cut_short(Path(f"{stem}_gt.nii.gz")), "_gt", "cannot be read ("),
    "other shape": (
        lambda stem: write(Path(f"{stem}_gt.nii.gz"), LABELS[:-1]),
        "_gt",
        "has the shape (83, 70, 4), but its image (84, 70, 4)",
    ),
    "other place": (
        lambda stem: write(Path(f"{stem}_gt.nii.gz"), LABELS, shifted()),
        "_gt",
        "lies elsewhere than its image: their affines differ",
    ),
    "label 4": (
        lambda stem: write(Path(f"{stem}_gt.nii.gz"), with_label_4()),
        "_gt",
        "holds the labels 0, 1, 2, 3, 4; 0 to 3 are known",
    ),
    "no label": (
        lambda stem: write(Path(f"{stem}_gt.nii.gz"), np.zeros_like(LABELS)),
        "_gt",
        "is empty: no structure is marked",
    ),
    "no grey": (lambda stem: write(Path(f"{stem}.nii.gz"), np.zeros_like(IMAGE)), "", "is empty: every voxel is 0"),
    "padding": (
        lambda stem: write(Path(f"{stem}.nii.gz"), np.where(X < 9, -32768, IMAGE)),
        "",
        "holds -32768 far below all else (",
    ),
    "no spacing": (
        lambda stem: write(Path(f"{stem}.nii.gz"), IMAGE, np.diag([0.002, 0.0025, 0.008, 1])),
        "",
        "has voxels of 0.002 x 0.0025 x 0.008 mm; pixels must have 0.1 to 10 mm",
    ),
    "tiny": (
        lambda stem: [write(Path(f"{stem}{suffix}.nii.gz"), LABELS[40:46, 30:36]) for suffix in ("", "_gt")],
        "_gt",
        "has slices of 6 x 6 pixels; 8 are needed each way",
    ),
    "nan": (lambda stem: write(Path(f"{stem}.nii.gz"), with_nan()), "", "holds NaN or infinity"),
    "4-D": (
        lambda stem: write(Path(f"{stem}.nii.gz"), IMAGE[..., None].repeat(2, 3)),
        "",
        "has the shape (84, 70, 4, 2); it must be (x, y, slice)",
    ),
    "slices first": (
        lambda stem: write(Path(f"{stem}.nii.gz"), IMAGE.T, np.diag([8.0, 2.5, 2.0, 1])),
        "",
        "has 4 x 70 x 84 voxels of 8 x 2.5 x 2 mm; its axes must be x, y, slice",
    ),
    "sheared": (lambda stem: write(Path(f"{stem}.nii.gz"), IMAGE, sheared()), "", "has axes that are not at right"),
    "too wide": (
        lambda stem: write(Path(f"{stem}_gt.nii.gz"), WIDE),
        "_gt",
        "marks structures over 166 mm of slice 0; 160 mm are cut out",
    ),
    "a blank slice": (
        lambda stem: write(Path(f"{stem}.nii.gz"), np.where(Z == 2, 0, IMAGE)),
        "_gt",
        "marks structures in slice 2, where its image is blank",
    ),
}


class TestBadFiles:
    @pytest.fixture
    def bad(self, tmp_path) -> dict[str, str]:
        """A good patient, one for every way to be bad, and what must be said of each."""
        write_acdc(tmp_path / "patient000")
        said = {}
        for number, (damage, suffix, reason) in enumerate(BROKEN.values(), start=1):
            home = tmp_path / f"patient{number:03d}"
            write_acdc(home)
            damage(home / f"{home.name}_frame01")
            said[f"{home.name}/{home.name}_frame01{suffix}.nii.gz"] = reason
        return said

    def test_one_error_names_every_file_and_its_reason(self, tmp_path, bad):
        with pytest.raises(DataError) as caught:
            load_cardiac(tmp_path, 32, "all")
        first, *lines = str(caught.value).split("\n")
        assert f"mend these ({len(bad)})" in first
        found = dict(line.strip().split(" ", 1) for line in lines)
        assert found.keys() == bad.keys()
        for path, reason in bad.items():
            assert found[path].startswith(reason), path

    def test_skip_bad_keeps_the_good_and_reports_the_rest(self, tmp_path, bad, caplog):
        assert {name[:10] for name in load_cardiac(tmp_path, 32, "all", skip_bad=True).names} == {"patient000"}
        assert all(f"  {path} {reason}" in caplog.text for path, reason in bad.items())

    @pytest.mark.parametrize(
        ("info", "reason"),
        [
            ("ED: 1\nES: 12\n", "patient001/patient001_frame12.nii.gz is missing"),
            ("ED: 1\n", "patient001/Info.cfg does not name the frames ED and ES"),
        ],
    )
    def test_acdc_frames_that_info_cfg_names_must_be_there(self, tmp_path, info, reason):
        write_acdc(tmp_path / "patient001")
        (tmp_path / "patient001" / "Info.cfg").write_text(info)
        with pytest.raises(DataError, match=reason):
            load_cardiac(tmp_path, 32, "all")

    def test_a_patient_without_frames_is_named(self, tmp_path):
        (tmp_path / "patient001").mkdir()
        with pytest.raises(DataError, match="patient001 holds no frame"):
            load_cardiac(tmp_path, 32, "all")

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ("0,OTHER,Siemens,A,1,2,0,50", f"A0/A0_sa.nii.gz has no row in {TABLE}"),
            ("0,A0,Siemens,A,1,,0,50", r"opendataset.csv has the frames \['', '0'\] for A0; these are no numbers"),
            ("0,A0,Siemens,A,1,3,0,50", "A0/A0_sa.nii.gz has no frame 3; there are 3, counted from 0"),
            ("0,A0,Siemens,A,1,1,0,50", "A0/A0_sa.nii.gz is empty: every voxel is 7"),
        ],
    )
    def test_mnms_frames_must_be_named_and_be_there(self, tmp_path, row, reason):
        write_mnms(tmp_path / "Validation" / "A0")
        write_table(tmp_path, row)
        with pytest.raises(DataError, match=reason):
            load_cardiac(tmp_path, 32, "all")


class TestCache:
    @pytest.fixture
    def prepared_of(self, monkeypatch) -> list[Stack]:
        """What ``prepare`` was called with."""
        calls: list[Stack] = []
        monkeypatch.setattr(cached_slices, "prepare", lambda stack: calls.append(stack) or prepare(stack))
        return calls

    @pytest.fixture
    def home(self, tmp_path) -> Path:
        write_acdc(tmp_path / "patient001")
        return tmp_path

    def test_a_stack_is_prepared_once_for_every_size(self, home, prepared_of):
        first, again, smaller = (load_cardiac(home, size, "all") for size in (128, 128, 32))
        assert len(prepared_of) == 1
        assert torch.equal(first[2]["image"], again[2]["image"])
        assert torch.equal(first[2]["mask"], again[2]["mask"])
        assert first.names == again.names == smaller.names

    def test_a_changed_file_or_setting_is_prepared_anew(self, home, prepared_of, monkeypatch):
        load_cardiac(home, 32, "all")
        write_acdc(home / "patient001", image=draw_image(LABELS, seed=1))
        load_cardiac(home, 32, "all")
        assert len(prepared_of) == 2
        monkeypatch.setattr(cached_slices, "SETTINGS", ("other",))
        load_cardiac(home, 32, "all")
        assert len(prepared_of) == 3

    def test_what_was_interrupted_leaves_nothing_and_what_was_done_stays(self, home, cache, prepared_of, monkeypatch):
        write_acdc(home / "patient002")
        save = np.savez

        def interrupted(file, **given):
            if "patient002" in given["names"][0]:
                file.write(b"PK")
                raise KeyboardInterrupt
            save(file, **given)

        monkeypatch.setattr(np, "savez", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_cardiac(home, 32, "all")
        (kept,) = (cache / "medgen" / "hearts").iterdir()
        assert kept.name.startswith("patient001-")
        monkeypatch.undo()
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
        assert len(load_cardiac(home, 32, "all")) == 6

    def test_a_broken_cache_file_is_made_anew(self, home, cache, prepared_of):
        load_cardiac(home, 32, "all")
        (kept,) = (cache / "medgen" / "hearts").iterdir()
        cut_short(kept)
        load_cardiac(home, 32, "all")
        load_cardiac(home, 32, "all")
        assert len(prepared_of) == 2


def test_only_nifti_data_needs_its_libraries(tmp_path):
    write_acdc(tmp_path / "patient001")
    program = f"""
import sys
sys.modules.update(nibabel=None, SimpleITK=None, monai=None)
from training.data import DataError, open_dataset
assert len(open_dataset("phantom:2", 32)) == 2
try:
    open_dataset({str(tmp_path)!r}, 32)
except DataError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "NIfTI files need nibabel: pip install 'medgen[train]'" in done.stdout


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> LoadedPairs:
    folder = tmp_path_factory.mktemp("acdc")
    for patient in ("patient001", "patient014"):  # the last one's slices lie far apart
        (folder / patient).symlink_to(Path(os.environ["MEDGEN_DATA"]) / "acdc" / patient)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return load_cardiac(folder, 128, "all")


@pytest.mark.skipif("MEDGEN_DATA" not in os.environ, reason="MEDGEN_DATA names no folder with the real acdc/")
class TestPublishedStacks:
    def test_nearly_every_slice_is_a_pair(self, real):
        assert len(real) > 30

    def test_blood_is_brighter_than_muscle(self, real):
        for image, mask in (arrays(real, index) for index in range(len(real))):
            if (mask == LV).any() and (mask == MYO).any():
                assert image[mask == LV].mean() > image[mask == MYO].mean()

    def test_the_lv_lies_in_the_ring_of_myo_and_the_rv_to_the_left(self, real):
        inside, left = [], []
        for _, mask in (arrays(real, index) for index in range(len(real))):
            if (mask == LV).any() and (mask == MYO).any():
                inside.append((ndimage.binary_fill_holes(mask == MYO) & (mask == LV)).sum() / (mask == LV).sum())
            if (mask == LV).any() and (mask == RV).any():
                left.append(ndimage.center_of_mass(mask == RV)[1] < ndimage.center_of_mass(mask == LV)[1])
        assert np.mean(np.array(inside) > 0.99) > 0.95
        assert np.mean(left) > 0.95
