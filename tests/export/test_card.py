"""What the card beside a bundle says; that `build` writes it is seen in test_build."""

from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from tiny import write_tiny_bundle

from export import ToleranceError
from export.build import check
from export.card import model_card
from export.options import TOLERANCES
from serving.bundle import Condition, Manifest, Output, load_bundle
from serving.sampling.solvers import Schedule
from training.descent import DESCENT


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return load_bundle(write_tiny_bundle(tmp_path, spacing=(1.25, 1.5))).manifest


def test_the_hub_reads_it(manifest: Manifest) -> None:
    card = ModelCard(model_card(replace(manifest, checkpoint={"license": "mit"})))
    assert (card.data.license, card.data.library_name) == ("mit", "medgen")
    assert card.data.pipeline_tag == "unconditional-image-generation"
    conditional = replace(manifest, condition=Condition("mask", (1, 16, 16), 4, ("air", "skin", "fat", "bone")))
    assert ModelCard(model_card(conditional)).data.pipeline_tag == "image-to-image"
    assert "- under a `mask` that is given: 4 classes (air, skin, fat, bone)" in model_card(conditional)
    labelled = replace(manifest, condition=Condition("label", (1,), 2, ("dense", "fatty")))
    assert ModelCard(model_card(labelled)).data.pipeline_tag == "unconditional-image-generation"
    assert "- under a `label` that is given: 2 classes (dense, fatty)" in model_card(labelled)


def test_it_says_what_the_manifest_says(manifest: Manifest) -> None:
    parity = {"end_to_end": {"image": 2e-6}, "tolerance": {"step": 1e-4, "end_to_end": 1e-3}, "note": "On a CPU."}
    checkpoint = {"data": "/home/ada/secret/ACDC", "step": 7, "unfinished": "step 7 of 9", "digest": "d" * 64}
    text = model_card(replace(manifest, checkpoint=checkpoint, parity=parity))
    for line in (
        "- data: `ACDC`",
        "- trained for: 7 steps, and not through: step 7 of 9",
        f"- weights, sha256: `{'d' * 64}`",
        "- `mask`: uint8, 1 x 16 x 16, background, lesion; pixels 1.25 x 1.5 mm",
        "- schedule: linear, 1000 timesteps, beta 0.0001 to 0.02; predicts epsilon",
        "- by default: `dpmpp_2m`, 4 steps",
        "| whole trajectories | image | 2.0e-06 | 1e-03 |",
        "On a CPU.",
        "Of the weights: not stated.",
        "- Its training was not through: step 7 of 9.",
    ):
        assert line in text
    assert "ada" not in text, "a folder of the machine is told to everyone"


def test_whose_pictures_judged_it_is_said(manifest: Manifest) -> None:
    alone = {"data": "mias", "learnt_through": "p" * 64}
    assert f"- learnt from pictures found again through a `pggan`, weights sha256 `{'p' * 64}`" in model_card(
        replace(manifest, checkpoint=alone)
    )
    assert "sites" not in model_card(replace(manifest, checkpoint=alone))
    cut = model_card(replace(manifest, checkpoint={**alone, "sites": 10, "private": {"epsilon": 1}}))
    assert (
        "- judged by discriminators at 10 sites, with pictures of a part of the same data; what they said was " in cut
    )
    assert "noisy (epsilon 1)" in cut
    real = model_card(replace(manifest, checkpoint={**alone, "sites": 3, "elsewhere": True, "vgg16_sha256": "v" * 64}))
    assert "at 3 sites, with pictures of their own, which are not named here\n" in real
    assert f"- VGG16 of its perceptual term, sha256 `{'v' * 64}`" in real


def test_what_was_trained_elsewhere_is_said(manifest: Manifest) -> None:
    origin = {"format": "diffusers", "sha256": {}, "options": {"range": [-1, 1], "spacing": "unknown"}}
    schedule = Schedule("cosine", 1000, 0.0, 0.0, "sample", "leading")
    text = model_card(replace(manifest, checkpoint={"imported": origin}, schedule=schedule))
    assert "- trained elsewhere, and imported from files of diffusers; said of them: range [-1, 1], spacing" in text
    assert "- schedule: cosine, 1000 timesteps, leading timesteps; predicts sample" in text


def test_a_network_that_was_hardly_trained_is_thought_of(manifest: Manifest) -> None:
    figures = {"end_to_end": {"state": 1.0}}
    with pytest.raises(ToleranceError, match=r"tolerance 1.00e-03$"):
        check(figures, TOLERANCES["fp32"], manifest)
    with pytest.raises(ToleranceError, match="predicts noise and was hardly trained"):
        check(figures, TOLERANCES["fp32"], replace(manifest, checkpoint={"imported": {}}))


def test_what_phantoms_are_good_for_is_said(manifest: Manifest) -> None:
    phantoms = model_card(replace(manifest, checkpoint={"data": "phantom:64"}))
    assert "has seen no patient" in phantoms
    assert "has seen no patient" not in model_card(replace(manifest, checkpoint={"data": "phantoms of ours"}))
    for other in ({"ancestors": [{"digest": "d" * 64, "data": "mias"}]}, {"elsewhere": True}, {"init": "d" * 64}):
        assert "no patient" not in model_card(replace(manifest, checkpoint={"data": "phantom:64", **other}))
    assert "- one pass, no steps" in model_card(replace(manifest, schedule=None))


def test_what_goes_down_a_loss_under_a_picture_is_described(manifest: Manifest) -> None:
    text = model_card(
        replace(
            manifest,
            schedule=DESCENT,
            default_solver="heavy_ball",
            outputs=(*manifest.outputs, Output("psnr", "float32", (1,), 0.0, 100.0)),
            condition=Condition("photo", (1, 16, 16), low=-1.0, high=1.0),
            notices=("A near copy of what went in.",),
            checkpoint={"data": "phantom", "prior": "pggan", "facts": {"codes": 3, "loss": "mean squared error alone"}},
            parity={"step": {"gradient": 2e-3}, "tolerance": {"step": 1e-4, "end_to_end": 1e-3, "gradient": 2e-2}},
        )
    )
    for line in (
        "- under a `photo` that is given: float32, 1 x 16 x 16, -1 to 1",
        "- goes down a loss, in up to 10000 steps; predicts gradient",
        "- by default: `heavy_ball`, 4 steps",
        "- `psnr`: float32, one number, 0 to 100",
        "| one step | gradient | 2.0e-03 | 2e-02 |",
        "- made of a trained `pggan`, whose data and steps these are; it learnt nothing more",
        "- codes: 3",
        "- loss: mean squared error alone",
        "- A near copy of what went in.",
    ):
        assert line in text
    for word in ("None", "beta", "has seen no patient"):
        assert word not in text
