"""Pairs are the same whatever they are stored as, and what cannot be compared is refused."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from benchmarks.evaluation.pairs import (
    EvaluationError,
    Pairs,
    check_alike,
    check_apart,
    drawn_by_patient,
    halves_by_patient,
    of_same_patients,
    together,
)
from benchmarks.evaluation.reading import A_PATIENT_A_VOLUME, of_samples, read_pairs
from benchmarks.evaluation.sides import _named_alike, _of_whose_masks
from serving.bundle import Output
from serving.drawn_set import DrawnSet, Plan
from serving.sample_set import Samples
from serving.writers.layouts import make_layout
from serving.writers.sample_folder import write_samples
from training.data.classes import HEART, LESION

SIZE = 24


def samples(labels: tuple[str, ...], spacing: tuple[float, float] | None) -> Samples:
    random = np.random.default_rng(0)
    mask = np.zeros((3, 1, SIZE, SIZE), np.uint8)
    for label in range(1, len(labels)):
        mask[:2, 0, 4 * label : 4 * label + 3, 5:11] = label  # the third is empty
    outputs = (
        Output("mask", "uint8", (1, SIZE, SIZE), 0, len(labels) - 1, labels, spacing),
        Output("image", "float32", (1, SIZE, SIZE), 0.0, 1.0, (), spacing),
    )
    made = [{"model": "m", "bundle": "b" * 64, "seed": seed, "solver": "ddim", "steps": 4} for seed in (7, 8, 9)]
    return Samples({"mask": mask, "image": random.random(mask.shape, np.float32)}, made, outputs)


@pytest.mark.parametrize(("labels", "spacing"), [(LESION, None), (HEART, (1.25, 2.5))], ids=["png", "nifti"])
def test_samples_are_the_same_in_all_layouts(tmp_path: Path, labels, spacing):
    drawn = samples(labels, spacing)
    write_samples(drawn, tmp_path / "out", layouts=[make_layout("nnunet"), make_layout("nifti")])
    for folder in ("out", "out/nnunet", "out/nifti"):
        pairs = read_pairs(str(tmp_path / folder))
        assert np.abs(pairs.images - drawn.arrays["image"][:, 0]).max() < 1e-5, folder
        assert (pairs.masks == drawn.arrays["mask"][:, 0]).all(), folder
        assert pairs.labels == labels
        assert pairs.knows_patients
        assert any("whether its masks were given" in line for line in pairs.warnings) == (folder == "out/nnunet")
        assert pairs.described()["empty_masks"] == 1
        assert pairs.in_mm == (spacing is not None)
        if spacing is not None:
            assert pairs.spacing.tolist() == [list(spacing)] * 3
            halved = read_pairs(str(tmp_path / folder), SIZE // 2)
            assert halved.spacing.tolist() == [[2 * side for side in spacing]] * 3
    assert read_pairs(str(tmp_path / "out")).facts["drawn_by"]["bundle"] == "b" * 64


def test_classes_of_nnunet_are_ordered_by_their_names(tmp_path: Path):
    drawn = samples(HEART, (1.0, 1.0))
    write_samples(drawn, tmp_path / "out", layouts=[make_layout("nnunet")])
    described = tmp_path / "out/nnunet/dataset.json"
    fields = json.loads(described.read_text())
    fields["labels"] = {"background": 0, "RV": 1, "MYO": 2, "LV": 3}
    described.write_text(json.dumps(fields))
    pairs = read_pairs(str(tmp_path / "out/nnunet"), labels=HEART)
    assert pairs.labels == HEART
    assert (pairs.masks == np.array([0, 3, 2, 1])[drawn.arrays["mask"][:, 0]]).all()


@pytest.mark.parametrize(("drawn", "white"), [(False, 4095), (True, 65535)])
def test_pictures_of_nnunet_have_one_white_as_fit_finds_it(tmp_path: Path, drawn, white):
    described = {"labels": {"background": 0, "lesion": 1}, "file_ending": ".png"}
    (tmp_path / "dataset.json").write_text(json.dumps(described))
    brightest = {"case_1": 1000, "case_2": 4000, "case_3": 3000}  # of 12 bits, in files of 16
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    for case, level in brightest.items():
        name = f"synthetic_{case}" if drawn else case
        grey = np.full((SIZE, SIZE), level, np.uint16)
        grey[0] = 0
        Image.fromarray(grey).save(tmp_path / "imagesTr" / f"{name}_0000.png")
        Image.fromarray(np.eye(SIZE, dtype=np.uint8)).save(tmp_path / "labelsTr" / f"{name}.png")
    found = read_pairs(str(tmp_path))
    assert found.images.max((1, 2)).tolist() == pytest.approx([level / white for level in brightest.values()])


def of_tiffs(folder: Path, *pictures: np.ndarray) -> Pairs:
    """Of nnU-Net: case_0, case_1 and so on."""
    described = {"labels": {"background": 0, "lesion": 1}, "file_ending": ".tif"}
    (folder / "dataset.json").write_text(json.dumps(described))
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir()
    for number, pixels in enumerate(pictures):
        tifffile.imwrite(folder / "imagesTr" / f"case_{number}_0000.tif", pixels)
        tifffile.imwrite(folder / "labelsTr" / f"case_{number}.tif", np.eye(len(pixels), dtype=np.uint8))
    return read_pairs(str(folder))


def test_bright_floats_of_nnunet_are_scaled_and_not_said_to_be_cut_off(tmp_path: Path):
    ramp = np.arange(SIZE**2, dtype=np.float32).reshape(SIZE, SIZE)
    found = of_tiffs(tmp_path, ramp, ramp / 2, ramp / ramp.max())
    assert found.facts["white"] == {}
    assert found.facts["volumes_scaled_by_percentiles"] == 2
    assert not [line for line in found.warnings if "cut off" in line]
    assert found.images[0] == pytest.approx(found.images[1])


@pytest.mark.parametrize(
    ("kind", "low", "high"), [(np.int16, -1000, 2000), (np.int32, 0, 10**6), (np.uint32, 0, 10**6)]
)
def test_integers_of_nnunet_beyond_16_bits_are_scaled_by_percentiles(tmp_path: Path, kind, low, high):
    ramp = np.linspace(low, high, SIZE**2).astype(kind).reshape(SIZE, SIZE)
    found = of_tiffs(tmp_path, ramp, ramp.clip(0, 2000))  # the second could be of 12 bits, beside another such
    assert found.facts["white"] == {}
    assert found.facts["volumes_scaled_by_percentiles"] == 2
    assert found.images[0].mean() == pytest.approx(0.5, abs=0.01)
    assert (found.images.min(), found.images.max()) == (0, 1)


def test_a_mask_of_nnunet_that_cannot_be_read_is_named(tmp_path: Path):
    write_samples(samples(LESION, None), tmp_path, layouts=[make_layout("nnunet")])
    place = next((tmp_path / "nnunet" / "labelsTr").iterdir())
    place.write_bytes(b"no PNG")
    with pytest.raises(EvaluationError, match=f"{place.name} cannot be read"):
        read_pairs(str(tmp_path / "nnunet"))


def test_a_picture_of_nnunet_that_is_not_grey_is_named(tmp_path: Path):
    write_samples(samples(LESION, None), tmp_path, layouts=[make_layout("nnunet")])
    place = next((tmp_path / "nnunet" / "imagesTr").iterdir())
    Image.new("RGB", (SIZE, SIZE)).save(place)
    with pytest.raises(EvaluationError, match=f"{place.name} is RGB, not grey"):
        read_pairs(str(tmp_path / "nnunet"))


def test_slices_of_volumes_belong_to_their_patients(tmp_path: Path):
    nibabel = pytest.importorskip("nibabel")
    mask = np.zeros((20, 16, 4), np.uint8)
    mask[3:6, 3:6, 1:3] = 1
    grey = np.random.default_rng(0).normal(300, 100, mask.shape).astype(np.float32)
    for part, values in (("images", grey), ("masks", mask)):
        (tmp_path / part).mkdir()
        for case in ("patient001_frame01", "patient001_frame12", "patient002_frame01"):
            nibabel.Nifti1Image(values, np.diag([-1.0, -1.0, 8.0, 1.0])).to_filename(tmp_path / part / f"{case}.nii.gz")
    pairs = read_pairs(str(tmp_path))
    assert (len(pairs), pairs.patient_count, pairs.size) == (6, 2, 20)
    assert pairs.facts["slices_without_a_structure"] == 6
    assert pairs.facts["volumes_scaled_by_percentiles"] == 3
    assert pairs.images.min() == 0
    assert pairs.images.max() == 1
    assert pairs.masks[0, 5:8, 3:6].all()  # rows are y, of which there are 16, and two are put above
    assert pairs.spacing.tolist() == [[1, 1]] * 6
    assert any("does not name the classes of its masks" in line for line in pairs.warnings)
    assert A_PATIENT_A_VOLUME in pairs.warnings
    assert A_PATIENT_A_VOLUME not in read_pairs(str(tmp_path), patient="^patient[0-9]+").warnings


@pytest.mark.parametrize("named", ["images/{}", "{}_image"])
def test_volumes_without_a_mask_are_refused_as_pictures_are(tmp_path: Path, named: str):
    nibabel = pytest.importorskip("nibabel")
    for case, parts in {"a": ("image", "mask"), "b": ("image",)}.items():
        for part in parts:
            file = tmp_path / f"{named.replace('image', part).format(case)}.nii.gz"
            file.parent.mkdir(exist_ok=True)
            nibabel.Nifti1Image(np.ones((16, 16, 2), np.uint8), np.eye(4)).to_filename(file)
    with pytest.raises(EvaluationError, match=r"1 images have no mask: b(_image)?\.nii\.gz"):
        read_pairs(str(tmp_path))


@pytest.mark.parametrize("strange", [np.nan, np.inf])
def test_grey_values_that_are_no_numbers_are_refused(tmp_path: Path, strange):
    """The least of them is none either, so that nothing would be scaled, and training would learn nothing."""
    nibabel = pytest.importorskip("nibabel")
    grey = np.random.default_rng(0).normal(300, 100, (16, 16, 2)).astype(np.float32)
    grey[3, 4, 1] = strange
    for part, values in (("image", grey), ("mask", np.ones(grey.shape, np.uint8))):
        nibabel.Nifti1Image(values, np.eye(4)).to_filename(tmp_path / f"case_{part}.nii.gz")
    with pytest.raises(EvaluationError, match="the image of case has 1 grey values that are no finite numbers"):
        read_pairs(str(tmp_path))


def test_an_expression_finds_patients(tmp_path: Path):
    from PIL import Image

    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        for name in ("a_1", "a_2", "b_1"):
            Image.fromarray(np.eye(SIZE, dtype=np.uint8) * 200).save(tmp_path / part / f"{name}.png")
    unknown = read_pairs(str(tmp_path), SIZE)
    assert not unknown.knows_patients
    assert "nothing is known of its patients" in unknown.warnings[-1]
    known = read_pairs(str(tmp_path), SIZE, patient="^(.)_")
    assert known.patients == ("a", "a", "b")
    with pytest.raises(EvaluationError, match="finds nothing in 3 names"):
        read_pairs(str(tmp_path), SIZE, patient="P")


def test_a_voxel_that_stands_for_an_unknown_one_is_no_millimetre(tmp_path: Path):
    write_samples(samples(LESION, None), tmp_path / "out", layouts=[make_layout("nifti")])
    assert not read_pairs(str(tmp_path / "out/nifti")).in_mm


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("*_image.nii.gz", b"broken", "cannot be read"),
        ("*_mask.nii.gz", None, "is missing"),
        ("*_mask.json", b"{", "is no JSON"),
        ("*_mask.json", b"[]", "holds list; it must be an object"),
    ],
)
def test_a_file_of_nifti_that_cannot_be_read_is_named(tmp_path, file, content, said):
    write_samples(samples(LESION, None), tmp_path / "out", layouts=[make_layout("nifti")])
    path = sorted((tmp_path / "out/nifti").glob(file))[0]
    if content is None:
        path = path.with_name(path.name.replace("_mask", "_image"))
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(EvaluationError, match=f"{re.escape(str(path))} ({said})"):
        read_pairs(str(tmp_path / "out/nifti"))


def test_hearts_have_the_pixels_that_training_gives_them():
    assert read_pairs("phantom:1", 32, labels=HEART).spacing.tolist() == [[5, 5]]
    assert not read_pairs("phantom:1", 32).in_mm


def test_of_several_pictures_the_one_that_was_drawn_is_compared(tmp_path: Path):
    """An inversion's folder begins with the picture that it was given, which would be a perfect sample."""
    drawn = samples(LESION, None)
    picture = drawn.arrays["image"]
    given, found = Output("image", "float32", (1, SIZE, SIZE), -1.0, 1.0), drawn.outputs[1]
    outputs = (given, replace(found, name="reconstruction"))
    inverted = Samples({"image": 2 * picture - 1, "reconstruction": picture}, drawn.provenance, outputs, ("image",))
    write_samples(inverted, tmp_path / "out")
    for pairs in (read_pairs(str(tmp_path / "out")), of_samples(inverted, "drawn")):
        assert (pairs.images == picture[:, 0]).all()
        assert not pairs.has_masks
        assert pairs.facts["picture"] == "reconstruction"
        assert pairs.warnings[-1].endswith("reconstruction is compared")


def test_arrays_without_seeds_are_no_samples_and_nothing_is_known_of_their_patients(tmp_path: Path):
    np.savez(tmp_path / "pairs.npz", **samples(LESION, None).arrays, mask_labels=np.array(LESION))
    pairs = read_pairs(str(tmp_path))
    assert not pairs.knows_patients
    assert "nothing is known of its patients" in pairs.warnings[-1]


def test_what_models_say_of_samples_is_read_even_if_several_drew_them(tmp_path: Path):
    drawn = samples(LESION, None)
    drawn.provenance[1] |= {"model": "other", "notices": ["A copy."]}
    by = {"bundle": drawn.provenance[2].get("bundle")}
    drawn.provenance[2] |= {"stages": [{**by, "notices": ["Of a stage."], "unfinished": "step 5 of 9"}]}
    write_samples(drawn, tmp_path / "out", layouts=[make_layout("nifti")])
    for folder in ("out", "out/nifti"):
        facts = read_pairs(str(tmp_path / folder)).facts
        assert facts["drawn_by"] is None
        assert facts["notices"] == ["A copy.", "Of a stage."]
        assert facts["unfinished"] == ["step 5 of 9"]


@pytest.mark.parametrize("made", ["under masks", "by a chain", "under labels"])
def test_masks_that_were_given_are_told_from_those_that_were_drawn(tmp_path: Path, made):
    drawn, facts = samples(LESION, None), {"condition_sha256": "c" * 64}
    more = {"under masks": facts, "by a chain": {"stages": [{}, facts]}, "under labels": {**facts, "label": 1}}
    for each in drawn.provenance:
        each |= more[made]
    write_samples(drawn, tmp_path / "out", layouts=[make_layout("nifti")])
    plan = Plan("m", 7, 3, 3, {}, "c" * 64, {"name": "npz"})
    drawn_set = DrawnSet(tmp_path / "set", plan, make_layout("npz"))
    drawn_set.begin(drawn)
    drawn_set.add(0, drawn)
    for folder in ("out", "out/nifti", "set"):
        found = read_pairs(str(tmp_path / folder)).facts
        assert ("given_masks" in found) == ("given_conditions" in found) == (made == "under masks"), folder


def test_parts_of_other_meaning_are_refused(tmp_path: Path):
    (tmp_path / "index.json").write_text("{}")
    arrays = {**samples(HEART, None).arrays, "seed": np.arange(3)}
    np.savez(tmp_path / "part-000000.npz", **arrays, mask_labels=np.array(HEART))
    np.savez(tmp_path / "part-000001.npz", **arrays, mask_labels=np.array(HEART[::-1]))
    with pytest.raises(EvaluationError, match=r"part-000001\.npz of .* hold other arrays, classes"):
        read_pairs(str(tmp_path))


def test_classes_that_one_side_does_not_name_are_those_of_the_others():
    one, other = _named_alike(pairs("ab", labels=()), pairs("cd"))
    assert one.labels == other.labels == LESION
    one, other = _named_alike(*(pairs(who, labels=()) for who in ("ab", "cd")))
    assert one.labels == other.labels == ("background", "class 1")


def test_files_of_the_same_name_are_not_of_the_same_patient_where_nobody_says_so():
    one, other = (replace(pairs("ab", seed), knows_patients=seed == 0) for seed in (0, 1))
    assert together(one, other).patient_count == 4


def test_samples_under_masks_of_pictures_are_called_as_these_are_where_nobody_knows_patients():
    one, other = (replace(pairs("ab", seed), knows_patients=False) for seed in (0, 1))
    own = replace(pairs("xy", 2), masks=other.masks)
    assert of_same_patients(together(one, other), _of_whose_masks(own, one, other)).sum(0).tolist() == [1, 1]


def test_samples_have_no_split(tmp_path: Path):
    write_samples(samples(LESION, None), tmp_path / "out")
    with pytest.raises(EvaluationError, match="--train"):
        read_pairs(str(tmp_path / "out"), split="train")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image": np.full((3, 1, SIZE, SIZE), 2, np.float32)}, "must be from 0 to 1"),
        ({"mask": np.zeros((3, 1, SIZE, 8), np.uint8)}, "they must be"),
        ({"image": None}, "has no image; it has mask"),
    ],
)
def test_arrays_that_are_no_pairs_are_refused(tmp_path: Path, changed, message):
    arrays = {**samples(LESION, None).arrays, **changed}
    np.savez(tmp_path / "pairs.npz", **{name: values for name, values in arrays.items() if values is not None})
    with pytest.raises(EvaluationError, match=message):
        read_pairs(str(tmp_path))


def pairs(patients: str, seed: int = 0, labels: tuple[str, ...] = LESION) -> Pairs:
    random = np.random.default_rng(seed)
    images = random.random((len(patients), 8, 8), np.float32)
    names = tuple(map(str, range(len(patients))))
    return Pairs(f"set {seed}", images, (images > 0.5).astype(np.uint8), labels, names, tuple(patients), True)


def test_no_patient_and_no_picture_is_on_both_sides():
    one, other = halves_by_patient(pairs("aaabbbccd"), seed=1)
    assert not {*one.patients} & {*other.patients}
    check_apart(one, other)
    with pytest.raises(EvaluationError, match="1 patients are both in set 0 and in set 1: b"):
        check_apart(pairs("ab"), pairs("bc", seed=1))
    with pytest.raises(EvaluationError, match="2 pictures of set 0 are in set 0 too"):
        check_apart(pairs("ab"), pairs("cd"))
    with pytest.raises(EvaluationError, match="one patient alone"):
        halves_by_patient(pairs("aa"), 0)


def test_a_part_has_as_many_patients_as_it_can():
    assert {*drawn_by_patient(pairs("aaaaaabc"), 3, seed=0).patients} == {*"abc"}


def test_other_classes_and_sizes_are_refused():
    with pytest.raises(EvaluationError, match="background, LV, MYO, RV"):
        check_alike(pairs("ab"), pairs("cd", labels=HEART))
