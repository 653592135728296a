"""What config.pbtxt says of a chain, and what cannot be a chain."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from live import CHAINS, SPACING, add_chains
from tiny import LABELS, write_tiny_bundle

from serving.bundle import TEMPLATES, Condition, Output, bundle_folder, load_bundle
from serving.chain import ChainError, Stage, check_stages, read_chain
from serving.client import LocalClient, SamplingError


@pytest.fixture
def edited(tmp_path: Path):
    """cmr_flow's configuration with one piece of text replaced."""

    def edit(old: str, new: str) -> Path:
        shutil.copytree(TEMPLATES / "cmr_flow", tmp_path / "cmr_flow", dirs_exist_ok=True)
        text = (TEMPLATES / "cmr_flow" / "config.pbtxt").read_text()
        assert old in text
        (tmp_path / "cmr_flow" / "config.pbtxt").write_text(text.replace(old, new))
        return tmp_path

    return edit


def test_this_checkout_has_these_chains() -> None:
    for name in CHAINS:
        chain = read_chain(TEMPLATES, name)
        assert chain.model == name
        assert chain.outputs == ("mask", "image", "mask_provenance", "provenance")
        assert chain.stages == (
            Stage("cmr_mask", {"seed": "seed"}, {"mask": "mask", "provenance": "mask_provenance"}),
            Stage(f"{name}_image", {"seed": "seed", "mask": "mask"}, {"image": "image", "provenance": "provenance"}),
        )


def test_what_is_no_chain() -> None:
    assert read_chain(TEMPLATES, "pig") is None
    assert read_chain(TEMPLATES, "nobody") is None


def test_fields_of_a_newer_triton_do_no_harm(edited) -> None:
    chain = read_chain(edited("max_batch_size: 0", "max_batch_size: 0 warp_factor: 9"), "cmr_flow")
    assert chain == read_chain(TEMPLATES, "cmr_flow")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('input_map { key: "mask" value: "mask" }', 'input_map { key: "mask" value: "musk" }',
         "chain cmr_flow: cmr_flow_image takes 'musk', which nothing before it gives"),
        ('input_map { key: "seed" value: "seed" }', "", "chain cmr_flow: cmr_mask must take 'seed' as its 'seed'"),
        ('output_map { key: "provenance" value: "mask_provenance" }', "",
         "chain cmr_flow: the provenance of cmr_mask is none of its outputs"),
        ('{ name: "provenance"', '{ name: "origin"',
         "the provenance of cmr_flow_image is none of its outputs"),
        ('output_map { key: "image" value: "image" }', 'output_map { key: "image" value: "mask" }',
         "chain cmr_flow: cmr_flow_image gives 'mask', which is there already"),
        ('platform: "ensemble"', 'platform: "ensemble', r"config\.pbtxt cannot be read: 3:11"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_chain_is_explained(edited, old: str, new: str, message: str) -> None:
    with pytest.raises(ChainError, match=message):
        read_chain(edited(old, new), "cmr_flow")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"outputs": (Output("mask", "uint8", (1, 16, 16), 0, 1, ("background", "LV")),)},
         r"chain cmr_flow: cmr_mask draws mask as uint8 \[1, 16, 16\] of 2 classes .*; cmr_flow_image needs uint8 "
         r"\[1, 16, 16\] of 4 classes"),
        ({"outputs": (Output("mask", "uint8", (1, 32, 32), 0, 3, tuple("abcd")),)}, r"uint8 \[1, 32, 32\] of 4 "),
        ({"outputs": (Output("mask", "int16", (1, 16, 16), 0, 3, tuple("abcd")),)}, r"int16 \[1, 16, 16\] of 4 "),
        ({"outputs": (Output("shape", "uint8", (1, 16, 16), 0, 3, tuple("abcd")),)},
         "no stage draws the mask that cmr_flow_image needs"),
        ({"outputs": (Output("mask", "uint8", (1, 16, 16), 0, 3, ("background", "RV", "MYO", "LV"), SPACING),)},
         r"as uint8 \[1, 16, 16\] of 4 classes \(background, RV, MYO, LV\), 1.25 x 1.5 mm; cmr_flow_image needs uint8 "
         r"\[1, 16, 16\] of 4 classes \(background, LV, MYO, RV\), 1.25 x 1.5 mm"),
        ({"outputs": (Output("mask", "uint8", (1, 16, 16), 0, 3, LABELS, (1.25, 1.25)),)},
         r", 1.25 x 1.25 mm; .*, 1.25 x 1.5 mm"),
        ({"outputs": (Output("mask", "uint8", (1, 16, 16), 0, 3, LABELS),)},
         r"RV\), pixels of unknown size; .*, 1.25 x 1.5 mm"),
        ({"condition": Condition("torso", (1, 16, 16), 4)}, "no stage draws the torso that cmr_mask needs"),
    ],
)  # fmt: skip
def test_stages_that_do_not_fit_are_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    add_chains(tmp_path)
    chain = read_chain(tmp_path, "cmr_flow")
    manifests = {stage.model: load_bundle(bundle_folder(tmp_path, stage.model)).manifest for stage in chain.stages}
    check_stages(chain, manifests)
    manifests["cmr_mask"] = replace(manifests["cmr_mask"], **changes)
    with pytest.raises(ChainError, match=message):
        check_stages(chain, manifests)


def test_a_condition_without_labels_or_spacing_takes_any(tmp_path: Path) -> None:
    add_chains(tmp_path)
    chain = read_chain(tmp_path, "cmr_flow")
    manifests = {stage.model: load_bundle(bundle_folder(tmp_path, stage.model)).manifest for stage in chain.stages}
    condition = Condition("mask", (1, 16, 16), 4)
    check_stages(chain, {**manifests, "cmr_flow_image": replace(manifests["cmr_flow_image"], condition=condition)})


def test_a_client_here_does_not_draw_from_stages_that_do_not_fit(tmp_path: Path) -> None:
    add_chains(tmp_path)
    write_tiny_bundle(bundle_folder(tmp_path, "cmr_mask"), model="cmr_mask", sample_shape=(3, 16, 16))
    with pytest.raises(SamplingError, match=r"of 3 classes .*; cmr_ddpm_image needs"):
        LocalClient(tmp_path).sample("cmr_ddpm", 1)
    shutil.rmtree(bundle_folder(tmp_path, "cmr_mask"))
    with pytest.raises(SamplingError, match=r"no bundle at .*cmr_mask/1/bundle; build it with"):
        LocalClient(tmp_path).sample("cmr_ddpm", 1)


@pytest.mark.parametrize(
    ("digest", "facts", "message"),
    [
        ("a", {"codes": 10, "layer": 4}, None),
        ("a", {}, None),
        (
            "b",
            {"codes": 10, "layer": 4},
            "dmgan_image has learnt from what mganprior draws with weights a; this one has ",
        ),
        ("a", {"codes": 20, "layer": 4}, "draws with codes 10; this one has codes 20"),
    ],
)
def test_a_stage_that_learnt_from_another_one_is_refused(
    tmp_path: Path, digest: str, facts: dict, message: str
) -> None:
    chain = read_chain(TEMPLATES, "dmgan")
    tiny = load_bundle(write_tiny_bundle(tmp_path)).manifest
    picture = Condition("image", (1, 16, 16), low=0.0, high=1.0)
    found = replace(picture, name="reconstruction")
    manifests = {
        "mganprior": replace(
            tiny, model="mganprior", condition=picture, outputs=(found.as_output(),),
            checkpoint={"digest": digest, "facts": facts},
        ),
        "dmgan_image": replace(
            tiny, model="dmgan_image", condition=found, outputs=(picture.as_output(),),
            checkpoint={"learnt_through": "a", "facts": {"learnt_from": {"codes": 10, "layer": 4, "steps": 9}}},
        ),
    }  # fmt: skip
    if message is None:
        check_stages(chain, manifests)
    else:
        with pytest.raises(ChainError, match=message):
            check_stages(chain, manifests)
