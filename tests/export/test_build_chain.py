"""Building, listing and checking a chain: its stages together, or none of them."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner
from tiny import contents
from tiny_chain import PRESET, TinyImage, TinyMask, register, write_checkpoint

from export.__main__ import main
from export.parity import measure_parity
from serving.bundle import TEMPLATES, bundle_folder, load_bundle, seal
from serving.client import LocalClient
from serving.triton.served_models import find_models
from training.checkpoint import load_checkpoint, save_checkpoint
from training.family import Preset

STAGES = ("cmr_mask", "cmr_ddpm_image")


class ThreeClasses(TinyMask):
    def __init__(self, preset: Preset) -> None:
        super().__init__(preset, classes=3)


@pytest.fixture(autouse=True)
def families(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, TinyMask, TinyImage)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    return {family.name: write_checkpoint(folder / family.name, family(PRESET)) for family in (TinyMask, TinyImage)}


@pytest.fixture(scope="module")
def built(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that holds the chain."""
    repository = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        register(patch, TinyMask, TinyImage)
        said = build(repository, *reversed(checkpoints.values()))
    for stage in STAGES:
        assert f"{bundle_folder(repository, stage)} is built from {checkpoints[stage]}" in said
    assert said.index("cmr_mask, preset") < said.index("cmr_ddpm_image, preset")
    return repository


@pytest.fixture
def repository(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, where exporting, which takes a while, gives what it gave before."""
    for name in ("step", "finish"):
        monkeypatch.setattr(f"export.build.{name}_graph", exported(built, name))
    return shutil.copytree(built, tmp_path / "repository")


def exported(built: Path, name: str) -> Callable[..., onnx.ModelProto]:
    return lambda family, *_: onnx.load(bundle_folder(built, family.name) / f"{name}.onnx")


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    return result.stderr.strip().splitlines()[-1]


def misused(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    return result.stderr.strip().splitlines()[-1]


def build(repository: Path, *checkpoints: Path, say: Callable[..., str] = run, options: tuple[object, ...] = ()) -> str:
    named = [word for checkpoint in checkpoints for word in ("--checkpoint", checkpoint)]
    command = ("build", "--model", "cmr_ddpm", "--target", "onnx", "--repository", repository)
    return say(*command, *named, *options)


def learnt(data: str, checkpoint: Path, folder: Path, **more: object) -> Path:
    """A copy of a checkpoint that says what it was trained on."""
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"data": data, **more}))
    return folder


def test_a_chain_is_built_from_the_checkpoints_of_its_stages(repository: Path, checkpoints: dict[str, Path]) -> None:
    config = (TEMPLATES / "cmr_ddpm" / "config.pbtxt").read_bytes()
    assert contents(repository / "cmr_ddpm") == {"config.pbtxt": config, "1/.gitkeep": b""}
    assert find_models(repository) == ([*STAGES, "cmr_ddpm"], {})
    samples = LocalClient(repository).sample("cmr_ddpm", 3)
    assert [output.spacing for output in samples.outputs] == [(1.25, 1.25), (1.25, 1.25)]
    assert "all built" in run("list", "--repository", repository)
    assert [stage in run("inspect", "cmr_ddpm", "--repository", repository) for stage in STAGES] == [True, True]
    image = checkpoints["cmr_ddpm_image"]
    checked = run("verify", "cmr_ddpm", "--repository", repository, "--checkpoint", image)
    assert checked.count("digests and graphs are good") == 2
    assert checked.count("end to end") == 2, "the state and the image; the mask model's checkpoint was not given"


def test_stages_that_are_built_already_are_kept(repository: Path, checkpoints: dict[str, Path]) -> None:
    before = load_bundle(bundle_folder(repository, "cmr_mask")).digest
    said = build(repository, checkpoints["cmr_ddpm_image"], options=("--max-batch", 3))
    assert f"{bundle_folder(repository, 'cmr_mask')} is kept as it was" in said
    assert load_bundle(bundle_folder(repository, "cmr_mask")).digest == before
    assert load_bundle(bundle_folder(repository, "cmr_ddpm_image")).manifest.max_batch == 3
    assert build(repository).count("is kept as it was") == 2


NEEDED = (
    "cmr_ddpm needs cmr_ddpm_image, which has not been built: name a checkpoint of it with --checkpoint, such as the "
    "--out of medgen fit --model cmr_ddpm_image"
)


def test_a_stage_without_bundle_and_checkpoint_is_named(
    tmp_path: Path, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.checkpoint.SHIPPED", tmp_path / "nothing")
    repository = tmp_path / "empty"
    assert NEEDED in build(repository, checkpoints["cmr_mask"], say=refused)
    assert not repository.exists()


class TestShipped:
    """A stage that medgen ships a checkpoint of needs none, unless the others have learnt something else."""

    @pytest.fixture(autouse=True)
    def shipped(self, tmp_path: Path, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr("training.checkpoint.SHIPPED", tmp_path / "shipped")
        return learnt("phantom", checkpoints["cmr_ddpm_image"], tmp_path / "shipped" / "cmr_ddpm_image-phantom")

    def test_it_is_taken(self, repository: Path, checkpoints: dict[str, Path], shipped: Path, tmp_path: Path) -> None:
        shutil.rmtree(repository / "cmr_ddpm_image")
        mask = learnt("phantom:64", checkpoints["cmr_mask"], tmp_path / "mask")
        assert f"is built from {shipped}" in build(repository, mask)
        shutil.rmtree(repository / "cmr_ddpm_image")
        assert f"is built from {shipped}" in build(repository)

    def test_a_bundle_of_an_older_medgen_is_built_anew_if_it_was_built_from_it(
        self, repository: Path, shipped: Path, tmp_path: Path
    ) -> None:
        manifest = bundle_folder(repository, "cmr_ddpm_image") / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"schema": 4', '"schema": 3'))
        seal(manifest.parent)
        assert f"is built from {shipped}" in build(repository)
        assert load_bundle(manifest.parent).manifest.model == "cmr_ddpm_image"

        manifest.write_text(
            manifest.read_text().replace('"schema": 4', '"schema": 3').replace('"digest": "', '"digest": "f')
        )
        before = contents(repository)
        said = build(repository, say=refused)
        assert f"{manifest.parent}: manifest.json: schema is 3; this version of medgen reads schema 4" in said
        assert f"medgen export build --model cmr_ddpm_image --repository {repository} (and --checkpoint RUN" in said
        assert contents(repository) == before

    def test_it_is_not_mixed_with_a_stage_of_other_data(
        self, repository: Path, checkpoints: dict[str, Path], tmp_path: Path
    ) -> None:
        shutil.rmtree(repository / "cmr_ddpm_image")
        before = contents(repository)
        other = learnt("data/acdc", checkpoints["cmr_mask"], tmp_path / "other")
        assert f"{NEEDED}; the one that medgen ships learnt phantoms, and cmr_mask learnt data/acdc" in build(
            repository, other, say=refused
        )
        before_it = {"ancestors": [{"digest": "d" * 64, "data": "data/mnms"}]}
        taught = learnt("phantom", checkpoints["cmr_mask"], tmp_path / "taught", **before_it)
        assert "and the weights that cmr_mask comes from learnt data/mnms" in build(repository, taught, say=refused)
        assert (
            f"{NEEDED}; the one that medgen ships learnt phantoms, and cmr_mask learnt what is not recorded"
            in build(repository, say=refused)
        )
        assert contents(repository) == before


@pytest.mark.parametrize(
    ("wrong", "size", "drawn"),
    [(ThreeClasses, 16, "[1, 16, 16] of 3 classes"), (TinyMask, 24, "[1, 24, 24] of 4 classes")],
)
@pytest.mark.parametrize("new", [STAGES[1:], ()], ids=["both new", "second kept"])
def test_stages_that_do_not_fit_change_nothing(
    repository: Path,
    checkpoints: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: type[TinyMask],
    size: int,
    drawn: str,
    new: tuple[str, ...],
) -> None:
    before = contents(repository)
    register(monkeypatch, wrong, TinyImage)
    other = write_checkpoint(tmp_path / "other", wrong(PRESET.replaced({"size": size})))
    said = build(repository, other, *(checkpoints[stage] for stage in new), say=refused)
    assert f"cmr_mask draws mask as uint8 {drawn}; cmr_ddpm_image needs uint8 [1, 16, 16] of 4 classes" in said
    assert contents(repository) == before


def test_a_stage_that_is_not_trained_through_is_refused_given_or_kept(
    repository: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    before = contents(repository)
    mask = tmp_path / "mask"
    family, _ = load_checkpoint(checkpoints["cmr_mask"])
    save_checkpoint(mask, family, family.state_dict(), {"phase": "only", "step": 5})
    so_far = f"was trained to step 5 of {sum(PRESET.steps)}, in phase only"
    assert f"{mask} {so_far}" in build(repository, mask, say=refused)
    assert contents(repository) == before
    build(repository, mask, options=("--unfinished",))
    assert "cmr_mask is unfinished" in run("list", "--repository", repository)
    assert f"{bundle_folder(repository, 'cmr_mask')} {so_far}" in build(repository, say=refused)
    (stages,) = (facts["stages"] for facts in LocalClient(repository).sample("cmr_ddpm", 1).provenance)
    assert ["unfinished" in stage for stage in stages] == [True, False]


def test_a_stage_that_fails_leaves_all_as_they_were(
    repository: Path, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one, when the first is ready."""
    before = contents(repository)

    def spoiled(family, *rest):
        figures = measure_parity(family, *rest)
        return figures if family.name == "cmr_mask" else {**figures, "step": {"sample_next": 1.0}}

    monkeypatch.setattr("export.build.measure_parity", spoiled)
    said = build(repository, *checkpoints.values(), say=refused, options=("--max-batch", 2))
    assert "differs from PyTorch by 1.00e+00" in said
    assert contents(repository) == before


def test_checkpoints_that_belong_to_no_stage_or_twice_to_one(
    repository: Path, checkpoints: dict[str, Path], checkpoint: Path
) -> None:
    said = build(repository, checkpoint, say=refused)
    assert f"{checkpoint} holds a pig; wanted is cmr_mask or cmr_ddpm_image" in said
    mask = checkpoints["cmr_mask"]
    assert f"{mask} and {mask} both hold a cmr_mask; name one" in build(repository, mask, mask, say=refused)
    said = refused("build", "--model", "pig", "--repository", repository, "--checkpoint", mask)
    assert f"{mask} holds a cmr_mask; wanted is pig" in said


def test_a_chain_that_is_not_built(tmp_path: Path) -> None:
    listed = run("list", "--repository", tmp_path)
    assert "cmr_mask is not built" in listed
    assert "cmr_mask" in refused("inspect", "cmr_flow", "--repository", tmp_path)


def test_a_chain_that_only_the_repository_has(repository: Path, checkpoints: dict[str, Path]) -> None:
    (repository / "cmr_ddpm").rename(repository / "hearts")
    assert "hearts" in run("list", "--repository", repository)
    assert "cmr_ddpm_image, preset" in run("inspect", "hearts", "--repository", repository)
    assert "digests and graphs are good" in run("verify", "hearts", "--repository", repository)
    assert run("build", "--model", "hearts", "--repository", repository).count("is kept as it was") == 2
    said = misused("build", "--model", "hurts", "--repository", repository)
    assert "'hurts'" in said
    assert "hearts" in said


def test_the_repository_says_what_a_chain_is(repository: Path) -> None:
    config = repository / "cmr_ddpm" / "config.pbtxt"
    config.write_text(config.read_text().replace("cmr_ddpm_image", "cmr_flow_image"))
    assert "cmr_flow_image" in refused("inspect", "cmr_ddpm", "--repository", repository)


def test_a_broken_chain_is_no_matter_to_others(repository: Path) -> None:
    (repository / "cmr_flow").mkdir()
    broken = repository / "cmr_flow" / "config.pbtxt"
    broken.write_text("platform")
    assert "cmr_mask, preset" in run("inspect", "cmr_ddpm", "--repository", repository)
    listed = run("list", "--repository", repository)
    assert "all built" in listed
    assert "cmr_flow is broken: " in listed
    for asked in (["build", "--model", "cmr_flow"], ["inspect", "cmr_flow"]):
        assert f"{broken} cannot be read" in refused(*asked, "--repository", repository)
    assert "cmr_ddpm" in misused("build", "--model", "hurts", "--repository", repository)


def state_of(repository: Path) -> str:
    """What `list` has in the last column of the chain."""
    (line,) = re.findall(r"^cmr_ddpm  +cmr_mask, cmr_ddpm_image  (.*)$", run("list", "--repository", repository), re.M)
    return str(line).strip()


def test_a_chain_is_not_all_built_whose_stages_are_broken(repository: Path) -> None:
    assert state_of(repository) == "all built"
    (bundle_folder(repository, "cmr_ddpm_image") / "step.onnx").unlink()
    assert state_of(repository) == "cmr_ddpm_image is broken"
    shutil.rmtree(bundle_folder(repository, "cmr_mask"))
    assert state_of(repository) == "cmr_mask is not built"


def test_a_chain_of_bundles_that_do_not_fit_is_not_verified(repository: Path) -> None:
    manifest = bundle_folder(repository, "cmr_mask") / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"RV"', '"RV", "scar"'))
    seal(manifest.parent)
    assert "of 5 classes; cmr_ddpm_image needs" in refused("verify", "cmr_ddpm", "--repository", repository)
    assert state_of(repository) == "they do not fit"
