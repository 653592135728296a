"""The command, from a repository to a bundle with another default."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tiny import LABELS, contents, write_tiny_bundle
from tiny_texture import TEXTURE

from benchmarks.__main__ import main
from benchmarks.evaluation.cache import Cache
from benchmarks.evaluation.pairs import EvaluationError, Pairs
from benchmarks.evaluation.segmentation import Segmenter
from benchmarks.latency.contenders import Case
from benchmarks.tune import command
from benchmarks.tune.apply import apply
from benchmarks.tune.candidates import Candidate, held, kin, labelled, same_weights
from benchmarks.tune.drawing import PART, Drawer
from benchmarks.tune.gate import Followed
from benchmarks.tune.reader import Reader
from benchmarks.tune.timing import Clock, paper_sampler
from export.report import facts_of
from serving.bundle import MANIFEST, BundleError, Condition, Output, Student, bundle_folder, load_bundle, seal
from serving.client import LocalClient
from serving.repository import prepare_repository
from training.checkpoint import load_checkpoint, shipped_checkpoint

COUNT = 64
STUDENT = ("ddim_clipped_trailing", 2)  # solver and steps
EXTRACTORS = command._extractors
ASKED = ("--data", "phantom:64", "--reference-solver", "ddim", "--reference-steps", 60, "--count", COUNT)


class Knows(Reader):
    """Finds every mask in its own picture and in no other: what a pig draws that knows nothing cannot be read."""

    def agreement(self, pairs: Pairs, cache: Cache) -> np.ndarray:
        return np.ones(len(pairs))

    def followed(self, pairs: Pairs, cache: Cache, seed: int) -> Followed:
        return Followed(np.ones(len(pairs)), np.zeros(len(pairs)))


@pytest.fixture(autouse=True)
def by_texture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_extractors", lambda *_: [TEXTURE])

    def reader_of(segmenter: Segmenter) -> Reader:
        assert segmenter.real.facts.get("split", "all") in ("train", "all")  # samples are compared with others
        return Knows("knows", "itself", lambda images: images)

    monkeypatch.setattr("benchmarks.tune.reader.reader_of", reader_of)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Of a pig that knows nothing: its masks are noise, so of these the gate cannot say much."""
    return repository_of(tmp_path / "repository")


def repository_of(folder: Path) -> Path:
    prepare_repository(folder, "pig")
    write_tiny_bundle(bundle_folder(folder, "pig"), model="pig", sample_shape=(2, 32, 32))
    return folder


def changed_repository(folder: Path, digest: str, **fields: object) -> Path:
    """With weights of this digest."""
    if isinstance(student := fields.get("student"), Student):
        fields |= {"default_solver": student.solver, "default_steps": student.steps}
    origin = {name: fields.pop(name) for name in ("packed_from",) if name in fields}
    changed(bundle_folder(repository_of(folder), "pig"), checkpoint={"digest": digest, **origin}, **fields)
    return folder


def run(*arguments: object, fails: bool = False) -> str:
    result = CliRunner().invoke(main, ["tune", "--model", "pig", *map(str, arguments)])
    assert (result.exit_code != 0) == fails, result.output
    return result.output


def changed(folder: Path, **fields: object) -> Path:
    bundle = load_bundle(folder)
    (folder / MANIFEST).write_text(dataclasses.replace(bundle.manifest, **fields).to_json())
    seal(folder)
    return folder


def test_pictures_alone_are_refused(tmp_path: Path) -> None:
    alone = (Output("image", "float32", (1, 32, 32), 0.0, 1.0),)
    changed(bundle_folder(repository_of(tmp_path / "alone"), "pig"), outputs=alone)
    printed = run("--repository", tmp_path / "alone", "--out", tmp_path / "out", *ASKED, fails=True)
    assert "pig draws pictures alone; tune compares pairs" in printed


def test_the_fastest_that_passes_becomes_the_default(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Clock, "__call__", lambda *_: ([2.0, 1.5, 1.0, 0.5], {"paper-sampler": 4.0}))
    monkeypatch.setattr("sys.argv", ["medgen", "benchmarks", "tune", "--model", "pig", "--apply"])
    other, out = repository_of(tmp_path / "other"), tmp_path / "out"
    before = load_bundle(changed(bundle_folder(repository, "pig")))
    better = load_bundle(changed(bundle_folder(other, "pig"), precision="bf16"))
    asked = ("--repository", repository, "--also", other, "--out", out, *ASKED, "--solver", "ddim", "--steps", "60,2,1")
    printed = run(*asked, "--apply")
    assert "ddim 60, onnx bf16: accepted" in printed
    assert "ddim 2: refused" in printed
    assert "by default ddim, 60 steps" in printed
    after = load_bundle(before.folder)
    manifest, tuned = after.manifest, after.manifest.tuned
    assert (manifest.default_solver, manifest.default_steps, manifest.precision) == ("ddim", 60, "bf16")
    assert manifest.engines == better.manifest.engines
    assert tuned is not None
    assert (tuned["verdict"], tuned["seeds"]) == ("accepted", [[0, COUNT - 1], [COUNT, 2 * COUNT - 1]])
    assert (tuned["reference"]["bundle"], tuned["chosen"]["bundle"]) == (before.digest, better.digest)
    assert {each["verdict"] for each in tuned["confirmed"]["criteria"]} == {"accepted"}
    assert "pictures follow masks" in {each["name"] for each in tuned["confirmed"]["criteria"]}
    assert tuned["reader"] == "knows"
    assert (tuned["seconds_per_sample"], tuned["times_as_fast"]) == (
        {"reference": 2.0, "chosen": 1.0, "paper-sampler": 4.0},
        2.0,
    )
    assert {*tuned["chosen"]["figures"]} >= {"rms", "Dice"}
    assert tuned["confirmed"]["figures"]["rms"]["value"] == 0
    assert tuned["untried"][0] == ["ddim 1", "ddim 2 was not accepted"]
    assert tuned["command"] == "medgen benchmarks tune --model pig --apply"
    assert "threads" in tuned["machine"]
    assert tuned["versions"]["onnxruntime"]
    told = dict(facts_of(after))
    assert told["default"] == "ddim, 60 steps"
    assert re.fullmatch(
        "accepted beside ddim, 60 steps, 2 times as fast, on 64 seeds and on 64 fresh ones; "
        "seconds a sample: reference 2, chosen 1, paper-sampler 4",
        told["tuned"],
    )

    with LocalClient(repository) as client:
        assert client.sample("pig", 1).provenance[0]["steps"] == 60
        assert client.sample("pig", 1, steps=3).provenance[0]["steps"] == 3

    page = (out / "tune.html").read_text()
    assert not re.search(r'(src|href)=(?!"data:)', page)
    assert re.search(r'<td class="words">0 of 64 beyond the limits', page)
    (section,) = json.loads((out / "tune.json").read_text())["sections"]
    shown = [row[:2] for row in section["tables"][0]["rows"]]
    assert shown == [
        ["ddim 60", "reference"],
        ["ddim 2", "refused early"],
        ["ddim 60, onnx bf16", "chosen"],
        ["ddim 2, onnx bf16", "refused early"],
        ["paper-sampler", "not judged"],
    ]
    assert section["facts"]["untried"][0] == ["ddim 1", "ddim 2 was not accepted"]


def test_what_fails_half_way_leaves_the_bundle_as_it_was(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is done goes into its place at once."""
    place = bundle_folder(repository, "pig")
    before, chosen = contents(repository), load_bundle(place)

    def full(_: Path) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("benchmarks.tune.apply.seal", full)
        with pytest.raises(OSError, match="no space left"):
            apply(chosen, "ddim", 3, {"verdict": "accepted"}, chosen)
    assert contents(repository) == before
    after = apply(chosen, "ddim", 3, {"verdict": "accepted"}, chosen)
    assert after == load_bundle(place)
    assert (after.manifest.default_steps, after.manifest.tuned) == (3, {"verdict": "accepted"})
    assert dict(facts_of(after))["tuned"] == '{"verdict": "accepted"}'
    assert list(place.parent.glob("*bundle*")) == [place]


@pytest.mark.parametrize("rebuilt", ["repository", "other"])
def test_what_was_rebuilt_meanwhile_is_kept(repository: Path, tmp_path: Path, rebuilt: str) -> None:
    """Neither its files under the old manifest, nor the old winner over it."""
    place, other = bundle_folder(repository, "pig"), bundle_folder(repository_of(tmp_path / "other"), "pig")
    tuned, chosen = load_bundle(place), load_bundle(changed(other, precision="bf16"))
    newer = bundle_folder(tmp_path / rebuilt, "pig")
    write_tiny_bundle(newer, model="pig", sample_shape=(2, 16, 16))
    before = contents(tmp_path)
    for winner in (chosen, tuned) if rebuilt == "repository" else (chosen,):
        with pytest.raises(EvaluationError, match=f"{newer} was rebuilt meanwhile, and nothing is changed"):
            apply(winner, "ddim", 3, {"verdict": "accepted"}, tuned)
    assert contents(tmp_path) == before


def test_a_copy_that_is_damaged_is_not_put_in_place(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, chosen = contents(repository), load_bundle(bundle_folder(repository, "pig"))
    monkeypatch.setattr("benchmarks.tune.apply.shutil.copyfile", lambda _, copy: copy.write_bytes(b"half"))
    with pytest.raises(BundleError, match=r"onnx is not the file that manifest\.json names"):
        apply(chosen, "ddim", 3, {"verdict": "accepted"}, chosen)
    assert contents(repository) == before


def test_samples_of_a_rebuilt_bundle_are_not_judged(repository: Path, tmp_path: Path) -> None:
    candidate = Candidate(held(repository, "pig", ""), "ddim", 2)
    newer = load_bundle(changed(candidate.held.bundle.folder, preset="newer"))
    none = Pairs("none", *np.zeros((2, 0, 32, 32), np.uint8), (), (), (), False)
    cache = Cache(tmp_path / "cache")
    with Drawer(cache, none) as drawer, pytest.raises(EvaluationError, match=f"meanwhile: {newer.digest} drew"):
        drawer.all(candidate, range(2))
    assert not cache.folder.exists()


def test_what_did_not_pass_changes_nothing(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And who waits for many steps hears of every batch."""
    monkeypatch.setattr("serving.progress.SECONDS", 0.0)
    before = contents(repository)
    printed = run(
        *("--repository", repository, "--out", tmp_path / "out", *ASKED), "--solver", "ddim", "--steps", 2, "--apply",
        fails=True,
    )  # fmt: skip
    assert "is as it was: refused: no candidate was accepted beside ddim 60" in printed
    told = [int(count) for count in re.findall(r"ddim 60: (\d+) of 64 samples", printed)]
    assert told == sorted(told)
    assert {told[0], told[-1]} == {min(told), COUNT}
    assert len(told) > COUNT // PART
    assert contents(repository) == before


def test_a_student_beside_its_teacher_takes_its_own_steps(repository: Path, tmp_path: Path) -> None:
    other = repository_of(tmp_path / "student")
    student = Student("0" * 64, 4, "ddim_clipped_trailing", 2)
    changed(bundle_folder(other, "pig"), student=student, default_solver="ddim_clipped_trailing", default_steps=2)
    asked = ("--out", tmp_path / "out", *ASKED, "--solver", "ddim", "--steps", 2)
    printed = run("--repository", repository, "--also", other, *asked)
    assert "ddim_clipped_trailing 2, student of 2 onnx fp32: refused" in printed
    refused = run("--repository", other, *asked, fails=True)
    assert "is a student; the reference is the trained model in fp32" in refused
    assert "ddim 2: refused" not in run("--repository", other, "--reference", repository, *asked)


def test_what_cannot_be_tuned_is_said(repository: Path, tmp_path: Path) -> None:
    asked = ("--repository", repository, "--out", tmp_path / "out")
    assert "does not say what it learnt; name real pairs with --data" in run(*asked, fails=True)
    assert "--solver magic: pig takes ddpm, ddim" in run(*asked, *ASKED, "--solver", "magic", fails=True)
    assert "'a,b' is not a list of numbers" in run(*asked, "--steps", "a,b", fails=True)
    changed(bundle_folder(repository, "pig"), precision="bf16")
    assert "of bf16; the reference is the trained model in fp32" in run(*asked, *ASKED, fails=True)


def test_networks_are_tried_before_a_segmenter_learns(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_extractors", EXTRACTORS)
    monkeypatch.setattr("benchmarks.tune.reader.reader_of", None)
    (tmp_path / "not.onnx").touch()
    asked = ("--repository", repository, "--out", tmp_path / "out", "--features", f"mine={tmp_path / 'not.onnx'}")
    assert "not.onnx is no ONNX network" in run(*asked, *ASKED, fails=True)


def test_masks_of_other_classes_are_not_taken_for_the_models(repository: Path, tmp_path: Path) -> None:
    """Two classes that change places are wrong for reference and candidate alike, so no comparison would tell."""
    masks = np.zeros((8, 1, 32, 32), np.uint8)
    masks[:, :, 8:16, 8:16] = 1
    asked = ("--repository", repository, "--out", tmp_path / "out", "--reference-solver", "ddim")
    asked += ("--reference-steps", 2, "--data", tmp_path, "--count", 8, "--steps", 1, "--solver", "ddim")
    held_there = {"image": np.random.default_rng(0).random(masks.shape, np.float32), "mask": masks}
    np.savez(tmp_path / "pairs.npz", **held_there, mask_labels=["lesion", "background"])
    assert "pig has masks of background, lesion, and real of lesion, background" in run(*asked, fails=True)
    np.savez(tmp_path / "pairs.npz", **{**held_there, "mask": 2 * masks})
    assert "real has masks of class 2; pig names 0 to 1" in run(*asked, fails=True)
    np.savez(tmp_path / "pairs.npz", **held_there)
    assert f"note: {tmp_path} does not name the classes of its masks" in run(*asked)
    other = repository_of(tmp_path / "other")
    mask, image = load_bundle(bundle_folder(other, "pig")).manifest.outputs
    named = dataclasses.replace(mask, labels=("background", "mass"))
    changed(bundle_folder(other, "pig"), outputs=(named, image))
    printed = run(*asked, "--also", other, fails=True)
    assert f"{other} has mask [1, 32, 32] of background, mass, image [1, 32, 32] of 0 to 1; that of" in printed


def test_masks_are_given_with_their_classes_and_pixels(tmp_path: Path) -> None:
    wanted = Condition("mask", (1, 16, 16), classes=4, labels=LABELS, spacing=(2.0, 2.0))
    write_tiny_bundle(
        bundle_folder(tmp_path, "cmr_flow_image"), model="cmr_flow_image", sample_shape=(1, 16, 16), condition=wanted
    )
    candidate = Candidate(held(tmp_path, "cmr_flow_image", ""), "ddim", 2)
    masks, names = np.zeros((2, 16, 16), np.uint8), ("a", "b")
    spacing = np.full((2, 2), 2.0)
    real = Pairs("real", masks.astype(np.float32), masks, LABELS, names, names, True, spacing=spacing)
    for given, said in (
        (real, ""),
        (dataclasses.replace(real, labels=LABELS[::-1]), r"RV, MYO, LV, background"),
        (dataclasses.replace(real, spacing=spacing / 2), "1.0 x 1.0 mm"),
    ):
        with Drawer(Cache(tmp_path / "cache"), given) as drawer:
            if not said:
                assert drawer.all(candidate, range(2)).labels == LABELS
                continue
            with pytest.raises(EvaluationError, match=f"the masks are .*{said}"):
                drawer.all(candidate, range(2))


def test_other_weights_are_not_taken_for_the_bundles(repository: Path, tmp_path: Path) -> None:
    """What is built to be tried is of the weights that the bundle has, and not of those that happen to be there."""
    first = held(repository, "pig", "")
    with pytest.raises(EvaluationError, match=r"name with --checkpoint what the bundle of .* was built of"):
        same_weights(first, None)
    shipped = shipped_checkpoint("pig")
    with pytest.raises(EvaluationError, match=f"{shipped} is not what the bundle of"):
        same_weights(first, shipped)
    digest = load_checkpoint(shipped)[1]["digest"]
    changed(bundle_folder(repository, "pig"), checkpoint={"digest": digest})
    own = held(repository, "pig", "")
    assert same_weights(own, None) == shipped
    other = held(repository_of(tmp_path / "other"), "pig")
    assert labelled(other, kin(own)).label == "onnx fp32 of other weights"
    assert labelled(own, kin(own)) == own
    taught = held(changed_repository(tmp_path / "taught", digest="0" * 64, student=Student(digest, 4, *STUDENT)), "pig")
    taught_by = {"second": ("5", Student("0" * 64, 2, *STUDENT)), "stranger": ("7", Student("9" * 64, 4, *STUDENT))}
    second, stranger = (
        held(changed_repository(tmp_path / name, digest=digest * 64, student=student), "pig")
        for name, (digest, student) in taught_by.items()
    )
    known = kin(own, [second, stranger, taught])
    assert [labelled(each, known) for each in (taught, second)] == [taught, second]
    assert labelled(stranger, known).label.endswith(" of other weights")
    alone = Student("0" * 64, 2, *STUDENT, ("0" * 64, digest))
    third = held(changed_repository(tmp_path / "third", digest="3" * 64, student=alone), "pig")
    packed = held(changed_repository(tmp_path / "packed", digest="4" * 64, packed_from=digest), "pig")
    for one, its in ((own, third), (third, own), (own, packed), (packed, own), (packed, third)):
        assert labelled(its, kin(one, [its])) == its
    assert labelled(own, kin(taught)) == own
    assert labelled(own, kin(second, [taught])) == own, "which older bundles name by their teachers alone"
    assert labelled(other, kin(taught)).label == "onnx fp32 of other weights"


def test_a_reference_of_other_weights_is_said_and_its_weights_take_no_place(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = changed_repository(repository, digest="2" * 64)
    older = changed_repository(tmp_path / "older", digest="1" * 64)
    asked = ("--repository", newer, "--reference", older, "--out", tmp_path / "out", *ASKED)
    said = f"name with --checkpoint what the bundle of {newer} was built of: weights of sha256 {'2' * 64}"
    assert said in run(*asked, "--target", "openvino", fails=True)

    monkeypatch.setattr("benchmarks.tune.gate.together", lambda _: "accepted")
    monkeypatch.setattr(Clock, "__call__", lambda _, every, __: ([2.0, 1.5, 1.0][: len(every)], {}))
    faster = changed_repository(tmp_path / "faster", digest="1" * 64, precision="bf16")
    before = contents(repository)
    asked = (*asked, "--count", 8, "--solver", "ddim", "--steps", 2, "--apply")
    printed = run(*asked, "--also", faster, fails=True)
    assert "ddim 2, onnx bf16 of other weights beside ddim 60, onnx fp32 of other weights, 2 times as fast" in printed
    warned = f"{faster} holds other weights than {newer}: --apply will not put it there\n"
    assert printed.index(warned) < printed.index("ddim 60, onnx fp32 of other weights: accepted")
    assert f"it has weights of sha256 {'2' * 64}, and ddim 2, onnx bf16 of other weights those of {'1' * 64}" in printed
    assert contents(repository) == before
    assert "by default ddim, 2 steps" in run(*asked)


def test_the_papers_sampler_is_timed_where_its_weights_are(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the bundle's own weights, with the seeds of the others."""
    first = Candidate(held(repository, "pig", ""), "ddim", 4)
    assert paper_sampler(first, None) == {}
    shipped, opened = shipped_checkpoint("pig"), []

    class Row:
        def sample(self, seeds: list[int]) -> list[int]:
            return seeds

    def open_row(place: str, case: Case) -> Row:
        opened.append((place.rpartition(":")[2], case.stages[0].checkpoint))
        return Row()

    monkeypatch.setattr("benchmarks.tune.timing.open_row", open_row)
    changed(bundle_folder(repository, "pig"), checkpoint={"digest": load_checkpoint(shipped)[1]["digest"]})
    draws = paper_sampler(Candidate(held(repository, "pig", ""), "ddim", 4), None)
    assert draws["paper-sampler"](range(3, 5)) == [3, 4]
    assert opened == [("PaperSampler", shipped.resolve())]
