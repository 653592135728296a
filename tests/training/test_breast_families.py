"""PIG and what it is compared with: what they are told, what they are made of, and what they say of themselves."""

import pytest
import torch
from tiny_families import random_batch, random_condition, random_state, tiny_family

from training.models import load_family
from training.models.ddpm import Ddpm


@pytest.mark.parametrize("preset", ["paper", "small"])
@pytest.mark.parametrize("name", ["ddpm", "seg_guided", "controlnet"])
def test_what_pig_is_compared_with_sees_and_draws_what_pig_draws(name, preset):
    def model(name: str, **fields: object):
        family = load_family(name)
        with torch.device("meta"):
            return family(family.presets[preset].replaced(fields))

    pig = model("pig")
    mask, image = pig.outputs
    baseline = model(name)
    assert baseline.outputs == (image,)
    assert baseline.preset.schedule == pig.preset.schedule
    if name == "ddpm":
        assert (baseline.condition, baseline.labels) == (None, ())
        assert model(name, paired=True).outputs == pig.outputs
    else:
        told = baseline.condition
        assert (told.name, told.shape, told.classes, told.labels) == ("mask", mask.shape, 2, mask.labels)
        assert baseline.labels == mask.labels


@pytest.mark.parametrize("paired", [True, False])
def test_a_ddpm_draws_what_it_was_shown(paired):
    family = tiny_family("ddpm", paired=paired)
    assert isinstance(family, Ddpm)
    batch = random_batch(4)
    state = family.data(batch)
    assert state.shape == (4, *family.sample_shape)
    drawn = dict(zip([output.name for output in family.outputs], family.finish(state), strict=True))
    assert drawn.keys() == ({"mask", "image"} if paired else {"image"})
    torch.testing.assert_close(drawn["image"] * 2 - 1, batch["image"])
    if paired:
        assert torch.equal(drawn["mask"], batch["mask"])


@pytest.mark.parametrize("name", ["seg_guided", "controlnet"])
def test_training_sees_masks_without_their_lesions_and_sampling_whole_ones(name):
    batch = random_batch(4)
    seen = [
        tiny_family(name, mask_dropout=share).training_condition(batch, torch.Generator().manual_seed(0))[0]
        for share in (0.0, 1.0)
    ]
    assert torch.equal(seen[0], batch["mask"])
    assert not seen[1].any()


@torch.no_grad()
def test_a_controlnet_begins_as_its_unet_which_has_never_seen_a_mask():
    family = load_family("controlnet")
    preset = tiny_family("controlnet").preset
    model = family(preset).eval()
    unet, control = model.denoiser.unet, model.denoiser.control
    for weight in unet.parameters():
        torch.nn.init.normal_(weight, std=0.1)  # as if it had learnt
    state, t, (mask,) = random_state(model, 2), torch.tensor([3.0, 700.0]), random_condition(model, 2)
    batch = random_batch(2)
    alone = model.predicted("unet", state, t, batch, torch.Generator())
    assert torch.equal(alone, unet(state, t))
    model.begin("unet", None)
    assert not torch.equal(control.conv_in.conv.weight, unet.conv_in.conv.weight)
    model.begin("control", None)
    theirs = unet.state_dict()
    shared = [name for name in control.state_dict() if name in theirs]
    assert len(shared) > 20
    assert all(torch.equal(control.state_dict()[name], theirs[name]) for name in shared)
    torch.testing.assert_close(model.denoiser(state, t, mask), alone)
    torch.testing.assert_close(model.predicted("control", state, t, batch, torch.Generator()), alone)


@torch.no_grad()
def test_a_controlnet_that_has_learnt_is_not_begun_again():
    model = tiny_family("controlnet")  # whose zero convolutions are not 0
    before = {name: weight.clone() for name, weight in model.denoiser.control.state_dict().items()}
    model.begin("control", None)
    assert all(torch.equal(weight, before[name]) for name, weight in model.denoiser.control.state_dict().items())
