"""The commands from folders to pages."""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from live import add_model
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tiny import write_tiny_bundle
from tiny_families import tiny_family

from benchmarks.__main__ import main
from benchmarks.evaluation import cache, features, measure_utility
from benchmarks.evaluation.cache import Cache
from benchmarks.evaluation.drawing import Drawing
from benchmarks.evaluation.measure_quality import SEVERAL_SLICES
from benchmarks.evaluation.pairs import EvaluationError, Pairs
from benchmarks.evaluation.reading import read_pairs
from serving.bundle import Condition, bundle_folder
from serving.client import LocalClient
from training.checkpoint import save_checkpoint
from training.data.classes import HEART, LESION
from training.data.phantom import Phantoms

SIZE = 32
NOTICE = "A near copy of what went in."


def folder_of(place: Path, phantoms: range, **others: np.ndarray) -> Path:
    place.mkdir()
    dataset = Phantoms(max(phantoms) + 1, SIZE, seed=5)
    items = [dataset[k] for k in phantoms]
    arrays = {
        "mask": np.stack([item["mask"].numpy() for item in items]),
        "image": np.stack([item["image"].numpy() for item in items]) / 2 + 0.5,
        "seed": np.array(phantoms),
        "mask_labels": np.array(["background", "lesion"]),
    }
    np.savez(place / "pairs.npz", **{**arrays, **others})
    made = [{"model": "m", "bundle": "b" * 64, "seed": seed, "notices": [NOTICE]} for seed in phantoms]
    (place / "provenance.json").write_text(json.dumps({"samples": made}))
    return place


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    return folder_of(tmp_path / "drawn", range(20))


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code != 0
    return result.stderr


def test_a_report_has_all_three_on_a_page_without_a_network(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "has_radiomics", lambda: False)
    family = tiny_family("pig")
    save_checkpoint(tmp_path / "pig", family, family.state_dict(), {"preset_name": "small", "step": 7, "data": "x"})
    asked = ["report", "phantom:16", drawn, "--out", tmp_path / "out", "--epochs", 1, "--seeds", 1]
    output = run(*asked, "--checkpoint", tmp_path / "pig")
    assert "Nearest neighbours in the training set" in output
    page = (tmp_path / "out/report.html").read_text()
    assert not re.search(r'(src|href)=(?!"data:)', page)
    assert page.count("<img") > 10
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["facts"]["versions"]["torch"]
    sides, quality, privacy, utility = report["sections"]
    assert [section["title"] for section in report["sections"][1:]] == ["Quality", "Privacy", "Utility"]
    assert [row[:3] for row in sides["tables"][0]["rows"]] == [
        ["real, trained on", 16, 16],
        ["real, held out", 16, 16],
        ["synthetic", 20, "each its own"],
    ]
    assert sides["tables"][0]["rows"][2][-1].startswith("m bbbbbbbbbbbb")
    assert quality["facts"]["synthetic"]["drawn_by"]["bundle"] == "b" * 64
    assert not re.search(r"FID|KID", json.dumps(quality["tables"]))
    (by_segmenter,) = [table for table in quality["tables"] if table["title"] == "By segmenter"]
    assert [row[0] for row in by_segmenter["rows"]] == ["synthetic", "real, other patients", "noise (ceiling)"]
    assert {row[1] for row in by_segmenter["rows"]} == {16}
    assert SEVERAL_SLICES not in quality["text"]
    assert any("radiomics are left out" in line for line in quality["warnings"])
    assert by_segmenter["rows"][0][2].keys() == {"value", "low", "high"}
    rows = [row[0] for row in utility["tables"][0]["rows"]]
    assert rows == ["real", "synthetic", "real + 0.5x", "real + 1x", "synthetic, masks shuffled"]
    assert any("20 samples are too few for mixtures of 1.5, 2" in line for line in utility["warnings"])
    assert page.count("Dice of lesion, tested on real, held out</figcaption>") == 1
    assert utility["tables"][0]["columns"][5:7] == ["HD95 (pixels)", "ASD (pixels)"]
    for section in report["sections"][1:]:
        assert f"synthetic: the model says of its samples: {NOTICE}" in section["warnings"]
    assert any("not that the model keeps its secrets" in line for line in privacy["warnings"])
    assert privacy["tables"][1]["rows"][0][0] == "threshold on the loss"
    assert "Noise levels at 8 places from 0.3 to 0.5625 of the schedule" in privacy["tables"][1]["note"]

    # All that is no count has an interval, or its table says why not.
    tables = [table for section in report["sections"] for table in section["tables"]]
    bare = {table["title"] for table in tables if any(isinstance(cell, float) for row in table["rows"] for cell in row)}
    assert not bare
    assert len(utility["tables"]) == 1  # the deviation of one seed's mean is none

    # What was measured is not measured again, and what else is measured of it is by the same segmenters.
    for file in (tmp_path / "out/cache").glob("features-*.npz"):
        file.unlink()
    for what in ("segmentation.trained", "utility.trained", "measure_privacy.seen"):
        monkeypatch.setattr(f"benchmarks.evaluation.{what}", None)
    run(*asked, "--checkpoint", tmp_path / "pig")
    again = json.loads((tmp_path / "out/report.json").read_text())
    assert again["sections"] == report["sections"]


@pytest.mark.parametrize("patients", [[], ["--patient", r"seed (\d \(|1\d|)"]], ids=["each its own", "one held out"])
def test_copies_are_told(tmp_path, patients):
    train, other = (folder_of(tmp_path / name, span) for name, span in (("train", range(20)), ("other", range(20, 40))))
    copies = folder_of(tmp_path / "copies", range(12))
    output = run(
        *("privacy", other, copies, "--train", train, "--out", tmp_path / "out", "--epochs", 1, *patients),
    )
    assert "Nearest neighbours" in output
    _, section = json.loads((tmp_path / "out/privacy.json").read_text())["sections"]
    assert "12 of 12 samples are training pictures, bit for bit." in section["text"]
    assert any("100% of the samples are nearer to a training picture" in line for line in section["warnings"])
    pixels, ceiling, noise, *_ = section["tables"][0]["rows"]
    assert [row[0].rpartition(": ")[2] for row in (ceiling, noise)] == ["training pictures (ceiling)", "noise"]
    for row in (pixels, ceiling):
        assert row[1]["value"] == row[3]["value"] == 0  # distance, NNDR
        assert row[7]["value"] == row[8]["value"] == 1  # AUC
    assert noise[1]["value"] > 2 * noise[2]["value"]
    assert noise[3]["value"] > 0.95
    assert noise[7]["value"] == 0


def test_what_cannot_be_compared_is_refused(drawn, tmp_path):
    out = ("--out", tmp_path / "out")
    assert "give either SYNTHETIC" in refused("quality", "phantom:8", *out)
    assert "holds no data set" in refused("quality", tmp_path, drawn, *out)
    real = folder_of(tmp_path / "real", range(20, 30))
    assert "name the first with --train" in refused("privacy", real, drawn, *out)
    assert "10 patients are both in real, trained on and in real, held out" in refused(
        "privacy", real, drawn, "--train", folder_of(tmp_path / "same", range(20, 30)), *out
    )
    hearts = folder_of(tmp_path / "hearts", range(4), mask_labels=np.array(HEART))
    assert "LV, MYO, RV" in refused("quality", real, hearts, *out)
    assert "is not NAME=PATH" in refused("quality", real, drawn, "--features", "inception", *out)
    assert "--patient '(' is no expression" in refused("quality", real, drawn, "--patient", "(", *out)
    assert "--url, --count, --steps is for --model" in refused(
        "quality", real, drawn, "--count", 5, "--url", "a:1", "--steps", 3, *out
    )
    network = tmp_path / "network.pt"
    network.touch()
    for name in ("radiomics", "FID", "Inception"):
        assert "taken for what it is not" in refused("quality", real, drawn, "--features", f"{name}={network}", *out)
    twice = ("--features", f"a={network}", "--features", f"a={network}")
    assert "two networks are called 'a'" in refused("quality", real, drawn, *twice, *out)
    assert not (tmp_path / "out").exists()


def test_pictures_without_masks_are_judged_as_pictures(tmp_path, monkeypatch):
    """As inversions are, whose bundle says what they are."""
    monkeypatch.setattr(features, "has_radiomics", lambda: False)
    pictures = folder_of(tmp_path / "pictures", range(8))
    with np.load(pictures / "pairs.npz") as arrays:
        kept = {name: arrays[name] for name in ("image", "seed")}
    np.savez(pictures / "pairs.npz", **kept)
    run("report", "phantom:16", pictures, "--out", tmp_path / "out", "--epochs", 1)
    _, quality, privacy, utility = json.loads((tmp_path / "out/report.json").read_text())["sections"]
    assert [table["title"] for table in quality["tables"]] == ["By segmenter"]
    assert privacy["tables"][0]["title"] == "Nearest neighbours in the training set"
    assert utility["warnings"] == ["Not measured: the samples have no masks"]
    assert not any("masks are empty" in line for line in quality["warnings"])
    assert any(NOTICE in line for line in privacy["warnings"])
    assert "have no masks" in refused("utility", "phantom:16", pictures, "--out", tmp_path / "out")


def pictures_of(place: Path, phantoms: range) -> Path:
    """A folder of images/ alone."""
    (place / "images").mkdir(parents=True)
    dataset = Phantoms(max(phantoms) + 1, SIZE, seed=5)
    for k in phantoms:
        grey = (dataset[k]["image"].numpy()[0] / 2 + 0.5) * 255
        Image.fromarray(grey.round().astype(np.uint8)).save(place / "images" / f"p{k // 2}_{k}.png")
    return place


@pytest.mark.parametrize("radiomics", [True, False])
def test_of_folders_of_pictures_alone_what_needs_masks_is_left_out_by_name(tmp_path, monkeypatch, radiomics):
    if radiomics:
        pytest.importorskip("radiomics")
    monkeypatch.setattr(features, "has_radiomics", lambda: radiomics)
    real, drawn = (pictures_of(tmp_path / name, span) for name, span in (("real", range(16)), ("drawn", range(16, 24))))
    train = pictures_of(tmp_path / "train", range(24, 36))
    for name, fields in {"ddpm": {"paired": False}, "pig": {}}.items():
        family = tiny_family(name, **fields)
        save_checkpoint(tmp_path / name, family, family.state_dict(), {"preset_name": "small", "step": 7, "data": "x"})
    asked = ["report", real, drawn, "--train", train, "--patient", r"^p\d+", "--out", tmp_path / "out", "--seeds", 1]
    run(*asked, "--checkpoint", tmp_path / "ddpm", "--checkpoint", tmp_path / "pig")
    _, quality, privacy, utility = json.loads((tmp_path / "out/report.json").read_text())["sections"]
    assert quality["facts"]["train"]["size"] == SIZE  # the pictures' own
    assert quality["facts"]["train"]["has_masks"] is False
    assert quality["facts"]["held out"]["patients"] == 8
    assert SEVERAL_SLICES in quality["text"]
    both = "the real images and the samples have no masks"
    assert any(line.startswith(f"{both}: not measured are shapes of masks") for line in quality["warnings"])
    assert utility == {"title": "Utility", "text": [], "warnings": [f"Not measured: {both}"], "tables": [], "facts": {}}
    for section in (quality, privacy):
        assert "the real images have no masks, so features of a segmenter that learnt them are left out" in str(section)
    assert [table["title"] for table in quality["tables"]] == (["By radiomics"] if radiomics else [])
    assert [features.NO_PUBLISHED_FRD in table["note"] for table in quality["tables"]] == [True] * radiomics
    assert any("Nothing is left to compare by" in line for line in quality["warnings"]) is not radiomics
    near, inferred = privacy["tables"]
    spaces = ["L2 of pixels in [0, 1]", *(["features: radiomics"] if radiomics else [])]
    assert [row[0] for row in near["rows"][::3]] == spaces
    assert inferred["title"] == "Membership inference: ddpm (ddpm)"
    assert any(line.startswith("pig (pig): it learnt pairs") for line in privacy["warnings"])
    assert not any("masks are empty" in line for line in quality["warnings"])

    # Masks on one side only are no reason to fail either.
    pairs = folder_of(tmp_path / "pairs", range(40, 48))
    run("quality", real, pairs, "--out", tmp_path / "one")
    assert "the real images have no masks: not measured" in (tmp_path / "one/quality.html").read_text()
    assert "have no masks: a segmenter learns nothing" in refused("utility", real, pairs, "--out", tmp_path / "one")
    elsewhere = ("--other", real, "--out", tmp_path / "one", "--epochs", 1)
    assert "real has no masks, which a segmenter is trained" in refused("utility", "phantom:8", pairs, *elsewhere)


def test_a_radiomics_extractor_has_the_features_that_the_note_says():
    pytest.importorskip("radiomics")
    found = features.radiomics().extract(np.random.default_rng(0).random((1, 16, 16), np.float32))
    assert found.shape == (1, 93)
    assert "pyradiomics' 93 of first order, GLCM, GLDM, GLRLM, GLSZM and NGTDM" in features.NO_PUBLISHED_FRD
    assert features.KINDS == ("firstorder", "glcm", "gldm", "glrlm", "glszm", "ngtdm")


def test_another_data_set_is_neither_trained_and_tested_on_nor_another_ones_namesake(tmp_path, drawn):
    asked = ("utility", "phantom:16", drawn, "--out", tmp_path / "out", "--epochs", 1)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    others = [folder_of(tmp_path / place / "set", range(30, 34)) for place in "ab"]
    assert "two of --other are called 'set'" in refused(*asked, "--other", others[0], "--other", others[1])
    real = folder_of(tmp_path / "real", range(16))
    asked = ("utility", real, drawn, "--out", tmp_path / "out", "--epochs", 1)
    held_out = folder_of(tmp_path / "held out", range(12, 20))
    assert "pictures of held out are in" in refused(*asked, "--other", held_out)


def pngs_of(place: Path, pairs: Pairs, names: str) -> Path:
    """images/ and masks/ of pairs, for each of which there is a letter of its patient."""
    for part, arrays in {"images": (pairs.images * 255).round(), "masks": pairs.masks * 255}.items():
        (place / part).mkdir(parents=True)
        for number, (name, array) in enumerate(zip(names, arrays.astype(np.uint8), strict=True)):
            Image.fromarray(array).save(place / part / f"{name}_{number}.png")
    return place


def test_no_patient_is_trained_on_and_tested_on_in_another_data_set(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(measure_utility, "predictions", lambda row, tests, *_: [test.masks for test in tests])
    phantoms = read_pairs(str(folder_of(tmp_path / "some", range(30, 42))))
    real, held_out, other, apart = (
        pngs_of(tmp_path / place, phantoms.at(rows), names)
        for place, rows, names in (
            ("real", range(4), "aabb"),
            ("held_out", range(4, 6), "cc"),
            ("other", range(6, 8), "bd"),
            ("apart", range(8, 10), "de"),
        )
    )
    asked = ["utility", held_out, drawn, "--train", real, "--out", tmp_path / "out", "--epochs", 1, "--seeds", 1]
    asked += ["--size", SIZE]

    def found(*more: object) -> tuple[list[str], list[str]]:
        run(*asked, *more)
        _, section = json.loads((tmp_path / "out/utility.json").read_text())["sections"]
        named = more[-1].name
        told = any(line.startswith(f"{named}: ") for line in section["warnings"])
        assert told, f"what is to be said of {named} is said"
        return section["text"], [line for line in section["warnings"] if line.startswith("whether a patient")]

    known = ("--patient", r"^([a-e]|seed)[_ ]")
    assert "1 patients are both in real, trained on and in other: b" in refused(*asked, *known, "--other", other)
    text, unsure = found(*known, "--other", apart)
    assert ("Patients are either trained on or tested on." in text, unsure) == (True, [])

    # Where nothing is known of patients, or they have other names in the other data set, nobody promises it.
    for more, where in (
        (("--other", other), "real, trained on and real, held out; real, trained on and other"),
        ((*known, "--other", tmp_path / "some"), "real, trained on and some"),
    ):
        text, unsure = found(*more)
        assert "Patients are either trained on or tested on." not in text
        assert [line.endswith(f" in {where}") for line in unsure] == [True]


def test_halves_that_nobody_knows_a_generator_to_have_learnt_from_are_said_to_leak(tmp_path, drawn):
    real = folder_of(tmp_path / "real", range(20, 32))
    run("utility", real, drawn, "--out", tmp_path / "out", "--epochs", 1, "--seeds", 1)
    _, section = json.loads((tmp_path / "out/utility.json").read_text())["sections"]
    assert any("samples carry them into training" in line for line in section["warnings"])


def test_what_a_changed_picture_was_is_not_taken_for_what_it_is(tmp_path):
    made = []

    def extract(images: np.ndarray) -> np.ndarray:
        made.append(len(images))
        return images.mean((1, 2))[:, None].astype(np.float64)

    extractor, cache = features.Extractor("mine", "1", extract), Cache(tmp_path / "cache")
    folder = folder_of(tmp_path / "some", range(4))
    first = extractor.of(read_pairs(str(folder)), cache)
    assert (extractor.of(read_pairs(str(folder)), cache) == first).all()
    assert made == [4]
    with np.load(folder / "pairs.npz") as arrays:
        kept = dict(arrays)
    kept["image"][2, 0, 3, 3] = 1 - kept["image"][2, 0, 3, 3]
    np.savez(folder / "pairs.npz", **kept)
    assert (extractor.of(read_pairs(str(folder)), cache) != first).ravel().tolist() == [False, False, True, False]
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(b"")
    extractor.of(read_pairs(str(folder)), cache)
    assert made == [4, 4, 4]


@pytest.mark.parametrize(
    ("what", "packages"), [("samples", cache.MADE_WITH), ("features", cache.FIGURES_WITH)], ids=["samples", "features"]
)
def test_what_another_version_made_is_made_anew(tmp_path, monkeypatch, what, packages):
    made, versions = [], dict.fromkeys(cache.FIGURES_WITH, "1")
    monkeypatch.setattr(cache, "versions_of", cache.versions_of.__wrapped__)
    monkeypatch.setattr(cache, "version", lambda name: versions[name])

    def of() -> int:
        Cache(tmp_path).arrays(what, 1, lambda: made.append(1) or {"zeros": np.zeros(1)})
        return len(made)

    assert [of(), of()] == [1, 1]
    for package in cache.FIGURES_WITH:
        before = of()
        versions[package] = "2"
        assert of() - before == (package in packages), package
    before = of()
    monkeypatch.setattr(cache, "FORMATS", {name: number + 1 for name, number in cache.FORMATS.items()})
    assert of() - before == (what in cache.FORMATS)


def test_samples_that_were_drawn_are_kept(tmp_path, monkeypatch):
    cache = Cache(tmp_path / "cache")
    add_model(tmp_path / "repository", "pig")
    asked = Drawing("pig", range(3, 8), {"steps": 2}, tmp_path / "repository", None, cache)
    first = asked.drawn()
    assert (len(first), first.facts["drawn_by"]["steps"], first.names[0]) == (5, 2, "000003")
    drew, sample = [], LocalClient.sample
    monkeypatch.setattr(
        LocalClient,
        "sample",
        lambda self, *given, **asked: drew.append(asked["seeds"]) or sample(self, *given, **asked),
    )
    again = asked.drawn()
    assert drew == [range(3, 4)]  # to see that it is the same bundle
    assert again.digest == first.digest
    assert again.facts == first.facts
    replace(asked, solving={"steps": 3}).drawn()
    assert drew[-1] == range(3, 8)
    write_tiny_bundle(bundle_folder(tmp_path / "repository", "pig"), model="pig", notices=(NOTICE,))  # another one
    assert asked.drawn().facts["notices"] == [NOTICE]
    assert drew[-1] == range(3, 8)
    with pytest.raises(EvaluationError, match="no model 'other'"):
        replace(asked, model="other").drawn()


def test_one_seed_is_of_the_samples_too_unless_they_have_their_own(tmp_path, monkeypatch):
    def told(model, seeds, *_):
        raise EvaluationError(f"asked for {seeds} of {model}")

    monkeypatch.setattr("benchmarks.evaluation.sides.Drawing", told)
    asked = ("quality", "phantom:12", "--model", "pig", "--count", 5, "--out", tmp_path / "out")
    assert "asked for range(0, 5) of pig" in refused(*asked)
    assert "asked for range(7, 12) of pig" in refused(*asked, "--seed", 7)
    assert "asked for range(0, 5) of pig" in refused(*asked, "--seed", 7, "--sample-seed", 0)
    assert "-1 is not in the range x>=0" in refused(*asked, "--seed", -1)


MASK = Condition("mask", (1, SIZE, SIZE), 2, LESION)
PICTURE = Condition("photo", (1, SIZE, SIZE), low=-1.0, high=3.0)
LABEL = Condition("label", (1,), 3, ("normal", "benign", "malignant"))


def test_samples_under_masks_are_drawn_under_those_of_held_out_patients(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "has_radiomics", lambda: False)
    add_model(tmp_path / "repository", "seg_guided", condition=MASK, sample_shape=(1, SIZE, SIZE))
    asked = ["report", "phantom:12", "--model", "seg_guided", "--count", 20, "--steps", 2, "--epochs", 1, "--seeds", 1]
    asked += ["--repository", tmp_path / "repository", "--out", tmp_path / "out"]
    run(*asked)
    _, quality, _, utility = json.loads((tmp_path / "out/report.json").read_text())["sections"]
    _, held_out = (read_pairs("phantom:12", SIZE, split) for split in ("train", "validation"))
    given = {"what": "mask", "of": "real, held out", "count": 12, "sha256": held_out.digest}
    assert quality["facts"]["synthetic"]["drawn_under"] == given
    assert any("drawn under 12 masks of real, held out, in turn" in line for line in quality["warnings"])
    assert [table["title"] for table in quality["tables"]] == ["By segmenter", "Like the real image of the same mask"]
    assert quality["tables"][1]["rows"][0][:2] == ["sample and the real image of its mask", 12]

    # What is tested on is not in what segmenters learn.
    assert utility["facts"]["synthetic"]["drawn_under"]["of"] == "real, trained on"
    assert not any("have the mask of a sample" in line for line in utility["warnings"])

    drew, sample = [], LocalClient.sample
    monkeypatch.setattr(
        LocalClient,
        "sample",
        lambda self, *given, **asked: drew.append(asked["seeds"]) or sample(self, *given, **asked),
    )
    run(*asked)
    assert drew == [range(1)] * 2
    refused_size = refused("quality", "phantom:12", "--size", 64, *asked[2:8], *asked[-4:])
    assert "seg_guided draws 32 pixels; --size is 64" in refused_size


def test_samples_count_as_of_the_patients_of_what_they_were_drawn_under(tmp_path):
    real = read_pairs("phantom:6", SIZE)
    given = replace(real, patients=tuple("aabbcc"))
    for name, condition in {"under_masks": MASK, "under_pictures": PICTURE}.items():
        add_model(tmp_path / "repository", name, condition=condition, sample_shape=(1, SIZE, SIZE))
        asked = Drawing(name, range(3, 11), {"steps": 2}, tmp_path / "repository", None, Cache(tmp_path / "cache"))
        assert asked.drawn(given).patients == tuple("aabbccaa")
        assert not asked.drawn(replace(given, knows_patients=False)).knows_patients


def test_samples_of_a_folder_under_masks_of_real_images_count_as_of_their_patients(tmp_path, drawn, monkeypatch):
    monkeypatch.setattr(features, "has_radiomics", lambda: False)
    real = folder_of(tmp_path / "real", range(30, 40))
    with np.load(real / "pairs.npz") as arrays:
        samples = folder_of(tmp_path / "samples", range(50, 58), mask=arrays["mask"][[0, 1, 0, 1, 2, 0, 3, 3]])
    conditions = [{"seed": seed, "condition_sha256": "c" * 64} for seed in range(50, 58)]
    (samples / "provenance.json").write_text(json.dumps({"samples": conditions}))
    run("quality", real, samples, "--train", drawn, "--out", tmp_path / "out", "--epochs", 1)
    sides, quality = json.loads((tmp_path / "out/quality.json").read_text())["sections"]
    assert sides["tables"][0]["rows"][2][1:3] == [8, 4]
    assert any("Samples with the mask of a real image count as of its patient" in line for line in quality["warnings"])
    assert any("shapes of the masks are none of the model's" in line for line in quality["warnings"])
    assert not any(table["title"].startswith("Shapes") for table in quality["tables"])


def test_masks_that_are_tested_on_and_learnt_are_told(tmp_path, drawn):
    real = folder_of(tmp_path / "real", range(30, 40))
    with np.load(real / "pairs.npz") as arrays:
        pictures = np.random.default_rng(0).random(arrays["image"].shape, np.float32)
        copied = folder_of(tmp_path / "copied", range(50, 60), image=pictures, mask=arrays["mask"])
    run("utility", real, copied, "--train", drawn, "--out", tmp_path / "out", "--epochs", 1, "--seeds", 1)
    _, section = json.loads((tmp_path / "out/utility.json").read_text())["sections"]
    assert any(
        line.startswith("10 pictures that are tested on have the mask of a sample") for line in section["warnings"]
    )


def test_samples_under_pictures_are_told_from_new_ones_and_compared_with_what_went_in(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "has_radiomics", lambda: False)
    options = {"condition": PICTURE, "schedule": None, "notices": (NOTICE,), "sample_shape": (1, SIZE, SIZE)}
    add_model(tmp_path / "repository", "finder", **options)
    asked = ["quality", "phantom:12", "--model", "finder", "--count", 9, "--epochs", 1]
    run(*asked, "--repository", tmp_path / "repository", "--out", tmp_path / "out")
    _, quality = json.loads((tmp_path / "out/quality.json").read_text())["sections"]
    assert quality["facts"]["synthetic"]["drawn_under"]["what"] == "picture"
    assert any("each is what the model makes of a real image" in line for line in quality["warnings"])
    assert any(NOTICE in line for line in quality["warnings"])
    _, likeness = quality["tables"]
    assert likeness["title"] == "Like the picture that each was drawn under"
    assert likeness["rows"][0][:2] == ["sample and its picture", 9]


def test_a_model_that_wants_a_label_is_given_each_in_turn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.evaluation.drawing.PART", 1)
    monkeypatch.setattr("serving.progress.SECONDS", 0)
    add_model(tmp_path / "repository", "told", condition=LABEL, sample_shape=(1, SIZE, SIZE))
    drawing = Drawing("told", range(5, 9), {"steps": 2}, tmp_path / "repository", None, Cache(tmp_path / "cache"))
    pairs = drawing.drawn()
    assert pairs.facts["drawn_under"] == {"what": "label", "classes": ["normal", "benign", "malignant"]}
    assert "told, 1 samples at a time: 3 of 4" in capsys.readouterr().err
    assert drawing.condition() == LABEL
    later = replace(drawing, seeds=range(4, 8))  # every seed has another label
    with LocalClient(tmp_path / "repository") as client:
        for each in (drawing, later):
            expected = client.sample("told", seeds=each.seeds, steps=2, label=[0, 1, 2, 0]).arrays["image"]
            assert (each.drawn().images[:, None] == expected).all()


def test_a_network_of_the_user_gives_distances_of_its_name(tmp_path):
    import torch

    class Wide(torch.nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.layer = torch.nn.Conv2d(3, width, 3, stride=16)

        def forward(self, colours: torch.Tensor) -> torch.Tensor:
            return self.layer(colours)

    pairs = read_pairs(str(folder_of(tmp_path / "some", range(5))))
    for width in (7, 2048):
        torch.jit.script(Wide(width)).save(str(tmp_path / f"{width}.pt"))
    own = features.of_network("mine", tmp_path / "7.pt", SIZE)
    assert own.of(pairs, Cache(tmp_path / "cache")).shape == (5, 7)
    assert (own.frechet_name(), own.kernel_name()) == ("Frechet (mine)", "kernel distance (mine)")
    with pytest.raises(EvaluationError, match="called inception has 7 features"):
        features.of_network("inception", tmp_path / "7.pt", SIZE).of(pairs, Cache(tmp_path / "cache"))
    inception = features.of_network("inception", tmp_path / "2048.pt", SIZE)
    assert inception.of(pairs.at([0]), Cache(tmp_path / "cache")).shape == (1, 2048)
    assert (inception.frechet_name(), inception.kernel_name()) == ("FID", "KID")
    digest = hashlib.sha256((tmp_path / "2048.pt").read_bytes()).hexdigest()
    assert inception.identity.startswith(f"sha256 {digest}, given 0 to 255 at 299 x 299 as TensorFlow 1 resizes them")
    assert inception.identity.endswith("called FID because you called it inception: nothing here knows the weights")
    (tmp_path / "not.pt").write_text("no network")
    with pytest.raises(EvaluationError, match="is no TorchScript network"):
        features.of_network("mine", tmp_path / "not.pt", SIZE)


@pytest.mark.parametrize("side", [32, 299, 598])
def test_pictures_for_inception_are_resized_as_tensorflow_does(side):
    """The i-th is linear between the pixels beside i * S / 299, of which no other has a part: none is averaged."""
    import torch

    grey = np.random.default_rng(0).random((side, side), np.float32)
    found = features.resized_for_inception(torch.from_numpy(grey).expand(2, 3, side, side)).numpy()
    assert found.shape == (2, 3, 299, 299)
    places = np.arange(299) * side / 299
    for axis in (1, 0):
        grey = np.apply_along_axis(lambda line: np.interp(places, np.arange(side), line), axis, grey)
    np.testing.assert_allclose(found[1, 2], grey, atol=1e-4)


def onnx_of(place: Path, name: str, shape: list) -> Path:
    """A network whose output is its input."""
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, shape) for end in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], name, ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(model, place / f"{name}.onnx")
    return place / f"{name}.onnx"


def test_a_network_that_does_not_fit_is_refused_before_anything_is_trained(tmp_path, drawn, monkeypatch):
    import torch

    monkeypatch.setattr(features, "has_radiomics", lambda: False)
    monkeypatch.setattr("benchmarks.evaluation.segmentation.trained", None)
    torch.jit.script(torch.nn.Conv2d(1, 4, 3)).save(str(tmp_path / "grey.pt"))
    files = {
        onnx_of(tmp_path, "single", [1, 3, SIZE, SIZE]): "Got: 2 Expected: 1",
        onnx_of(tmp_path, "last", ["n", SIZE, SIZE, 3]): "index: 1 Got: 3 Expected: 32",
        onnx_of(tmp_path, "larger", ["n", 3, 64, 64]): "index: 2 Got: 32 Expected: 64",
        tmp_path / "grey.pt": "but got 3 channels instead",
    }
    for file, why in files.items():
        for command in ("quality", "privacy"):
            told = refused(command, "phantom:16", drawn, "--out", tmp_path / "out", "--features", f"mine={file}")
            assert f"{file.name} does not take float32 [2, 3, 32, 32]: " in told
            assert why in told
    onnx_of(tmp_path, "flat", ["n", "m", "s", "t"])
    with pytest.raises(EvaluationError, match="inception has 3 features; FID's has 2048"):
        features.of_network("inception", tmp_path / "flat.onnx", SIZE)


def test_a_network_in_onnx_sees_the_grey_level_in_each_colour(tmp_path):
    shape = ["n", 3, SIZE, SIZE]
    ends = [
        helper.make_tensor_value_info(*end)
        for end in (("x", TensorProto.FLOAT, shape), ("y", TensorProto.FLOAT, shape))
    ]
    graph = helper.make_graph([helper.make_node("Exp", ["x"], ["y"])], "some", ends[:1], ends[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "some.onnx"
    )
    pairs = read_pairs(str(folder_of(tmp_path / "some", range(5))))
    found = features.of_network("mine", tmp_path / "some.onnx", SIZE).of(pairs, Cache(tmp_path / "cache"))
    expected = np.exp(pairs.images).mean((1, 2))  # of maps [N, 3, S, S]
    np.testing.assert_allclose(found, np.repeat(expected[:, None], 3, axis=1), rtol=1e-5)
    (tmp_path / "not.onnx").write_text("no network")
    with pytest.raises(EvaluationError, match="is no ONNX network"):
        features.of_network("mine", tmp_path / "not.onnx", SIZE)


@pytest.mark.parametrize("location", ["weights.bin", "w" * 200], ids=["short", "of two bytes of length"])
def test_weights_beside_a_network_in_onnx_are_part_of_it(tmp_path, location):
    shape = ["n", 3, SIZE, SIZE]
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, shape) for end in "xy"]
    pairs, cache = read_pairs(str(folder_of(tmp_path / "some", range(5)))), Cache(tmp_path / "cache")

    def with_weights(value: float) -> features.Extractor:
        weights = numpy_helper.from_array(np.full(3 * SIZE**2, value, np.float32).reshape(3, SIZE, SIZE), "w")
        graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "some", ends[:1], ends[1:], [weights])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        (tmp_path / location).unlink(missing_ok=True)
        onnx.save(model, tmp_path / "some.onnx", save_as_external_data=True, location=location)
        return features.of_network("mine", tmp_path / "some.onnx", SIZE)

    one, other = (with_weights(value) for value in (1, 2))
    assert one.identity != other.identity
    assert one.identity.endswith(f" of some.onnx, {location}")
    np.testing.assert_allclose(with_weights(2).of(pairs, cache) - with_weights(1).of(pairs, cache), 1, rtol=1e-5)
    (tmp_path / location).unlink()
    with pytest.raises(EvaluationError, match=f"{location} cannot be read: No such file"):
        features.of_network("mine", tmp_path / "some.onnx", SIZE)


def test_radiomics_are_of_the_picture_alone(tmp_path):
    pytest.importorskip("radiomics")
    random = np.random.default_rng(0)
    images = random.random((2, SIZE, SIZE), np.float32)
    found = features.radiomics().extract(images[[0, 1, 0]])
    assert found.shape[1] > 80
    assert np.isfinite(found).all()
    assert (found[0] == found[2]).all()
    assert (found[0] != found[1]).any()
    flat = features.radiomics().extract(np.full((1, SIZE, SIZE), 0.5, np.float32))
    assert np.isfinite(flat).all()
