"""Networks of MONAI GenerativeModels, and in its layouts, give what they gave there."""

import json
import warnings

import pytest
import torch
from click.testing import CliRunner
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from foreign import MONAI_UNET, MONAI_VAE, SIZE, UNET, monai_bundle, shaken, states
from monai.networks import nets as monai_nets
from monai.networks.nets import ControlNet, DiffusionModelUNet

from training.__main__ import main
from training.checkpoint import load_checkpoint, read_config
from training.family import Family
from training.imports.generative import in_new_layout

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from generative.networks import nets as generative_nets

WIDTHS = (8, 16)
UNET_OPTIONS = {
    "spatial_dims": 2,
    "num_res_blocks": 1,
    "num_channels": WIDTHS,
    "attention_levels": (False, True),
    "num_head_channels": 8,
    "norm_num_groups": 4,
}
ORDER = ["background", "RV", "MYO", "LV"]  # ACDC's
OURS = [0, 3, 2, 1]  # their index of background, LV, MYO, RV
SHAPE = {"size": SIZE, "widths": WIDTHS, "attention": [1], "layers": 1, "head_dim": 8, "norm_groups": 4}
SAID = ["--labels", ",".join(ORDER), "--spacing", "10,10"]
PAINTER = [*SAID, "--range", "-1,1", "--mask-encoding"]


def old(fields: dict, **changes: object) -> dict:
    """A part of a bundle, as of GenerativeModels."""
    renamed = {{"channels": "num_channels"}.get(name, name): value for name, value in fields.items()}
    return {**renamed, "_target_": fields["_target_"].replace("monai.", "generative."), **changes}


def imported(model: str, source, out, *options: str, **fields: object) -> Family:
    words = [word for name, value in fields.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    result = CliRunner().invoke(main, ["import", str(source), "--as", model, "--out", str(out), *options, *words])
    assert result.exit_code == 0, result.output
    return load_checkpoint(out)[0]


def masks() -> tuple[torch.Tensor, torch.Tensor]:
    """The same mask with our classes, and with theirs."""
    mask = torch.randint(0, 4, (3, 1, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return mask, torch.tensor(OURS, dtype=torch.uint8)[mask.long()]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert theirs.std() > 0.1


@torch.no_grad()
def test_a_bundle_with_its_attention(tmp_path):
    """proj_attn is in the files and in none of its sums."""
    unet = old(MONAI_UNET)
    vae = old(MONAI_VAE, attention_levels=[False, True])
    scheduler = {"_target_": "generative.networks.schedulers.DDPMScheduler", "beta_schedule": "scaled_linear"}
    config = {"network_def": unet, "autoencoder_def": vae, "noise_scheduler": scheduler}
    networks = monai_bundle(tmp_path / "theirs", library=generative_nets, **config)
    said = ["--range", "0,1", "--spacing", "unknown", "--steps", "1000", "--scale", "0.9", "--size", f"{SIZE}"]
    family = imported("imported", tmp_path / "theirs", tmp_path / "run", *said)
    noise, t = states()
    close(family.denoiser(noise, t), networks[0](noise, t))
    close(family.decoded(noise), networks[1].decode(noise / 0.9))
    preset = family.preset
    assert (preset.schedule.kind, preset.schedule.spacing, preset.clip) == ("scaled_linear", "leading", 1.0)


@torch.no_grad()
def test_monais_own_loader_is_wrong_where_ours_is_right():
    theirs = shaken(generative_nets.DiffusionModelUNet(in_channels=4, out_channels=4, **UNET_OPTIONS))
    new = {**UNET_OPTIONS, "channels": WIDTHS}
    del new["num_channels"]
    network = DiffusionModelUNet(in_channels=4, out_channels=4, **new).eval()
    noise, t = states(channels=4)
    expected = theirs(noise, t)
    network.load_old_state_dict(dict(theirs.state_dict()))
    assert (network(noise, t) - expected).abs().max() > 1e-2
    network.load_state_dict(in_new_layout(theirs.state_dict(), network.state_dict()))
    close(network(noise, t), expected)


@torch.no_grad()
def test_a_control_net_of_plain_attention_is_read():
    options = {"conditioning_embedding_num_channels": (8,), "in_channels": 1}
    theirs = shaken(generative_nets.ControlNet(**options, **UNET_OPTIONS))
    new = {**UNET_OPTIONS, "channels": WIDTHS}
    del new["num_channels"]
    network = ControlNet(**options, **new).eval()
    with pytest.raises(KeyError, match=r"attn\.to_out\.0\.weight"):
        network.load_old_state_dict(dict(theirs.state_dict()))
    network.load_state_dict(in_new_layout(theirs.state_dict(), network.state_dict()))
    (noise, t), (mask, _) = states(), masks()
    for ours, expected in zip(network(noise, t, mask.float()), theirs(noise, t, mask.float()), strict=True):
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("nets", [generative_nets, None], ids=["generative", "monai"])
def test_masks_in_synthetic_cmr_layout(tmp_path, nets):
    options = dict(UNET_OPTIONS)
    kind = generative_nets.DiffusionModelUNet
    if nets is None:
        kind, options["channels"] = DiffusionModelUNet, options.pop("num_channels")
    theirs = shaken(kind(in_channels=4, out_channels=4, **options))
    torch.save({"model_state_dict": theirs.state_dict()}, tmp_path / "mask.pth")
    key = ["--key", "model_state_dict"]
    family = imported("cmr_mask", tmp_path / "mask.pth", tmp_path / "run", *SAID, *key, **SHAPE, coordinates=False)
    noise, t = states(channels=4)
    close(family.denoiser(noise[:, OURS], t), theirs(noise, t)[:, OURS])


@torch.no_grad()
@pytest.mark.parametrize("encoding", ["one-hot", "index/255"])
def test_images_of_diffusers_under_a_mask(tmp_path, encoding):
    channels = 4 if encoding == "one-hot" else 1
    theirs = shaken(UNet2DModel(**{**UNET, "in_channels": 1 + channels}))
    theirs.save_pretrained(tmp_path / "theirs")
    DDPMScheduler(timestep_spacing="trailing").save_pretrained(tmp_path / "scheduler")
    config = ["--config", str(tmp_path / "scheduler/scheduler_config.json"), "--steps", "100"]
    family = imported("cmr_ddpm_image", tmp_path / "theirs", tmp_path / "run", *PAINTER, encoding, *config)
    (noise, t), (mask, their_mask) = states(), masks()
    one_hot = torch.cat([their_mask == index for index in range(4)], dim=1).float()
    seen = one_hot if encoding == "one-hot" else their_mask / 255
    close(family.denoiser(noise, t, mask), theirs(torch.cat([noise, seen], dim=1), t).sample)
    assert (family.preset.default_solver, family.preset.default_steps) == ("ddpm", 100)
    assert family.preset.schedule.spacing == "trailing"


@torch.no_grad()
def test_images_of_motfm(tmp_path):
    """A UNet and a ControlNet of transformers, under a mask in one channel of class indices."""
    options = {**UNET_OPTIONS, "in_channels": 1, "with_conditioning": True, "cross_attention_dim": 16}
    options |= {"num_head_channels": 16, "resblock_updown": True, "transformer_num_layers": 2}
    unet = shaken(generative_nets.DiffusionModelUNet(out_channels=1, **options))
    control = shaken(generative_nets.ControlNet(conditioning_embedding_num_channels=(8,), **options), seed=1)
    parts = {"unet": unet, "controlnet": control}
    weights = {f"{part}.{name}": weight for part, net in parts.items() for name, weight in net.state_dict().items()}
    torch.save(weights, tmp_path / "flow.pt")
    shape = {**SHAPE, "head_dim": 16, "control_channels": 8, "transformer_layers": 2, "resblock_updown": True}
    family = imported("cmr_flow_image", tmp_path / "flow.pt", tmp_path / "run", *PAINTER, "index", **shape)
    (noise, t), (mask, their_mask) = states(), masks()
    down, middle = control(noise, t, their_mask.float())
    expected = unet(noise, t, down_block_additional_residuals=down, mid_block_additional_residual=middle)
    close(family.denoiser(noise, t, mask), expected)


BREAST = ["--labels", "background,lesion", "--range", "-1,1", "--mask-encoding"]


def lesions() -> torch.Tensor:
    return torch.randint(0, 2, (3, 1, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("encoding", ["one-hot", "index", "index/255"])
def test_breasts_of_segmentation_guided_diffusion(tmp_path, encoding):
    theirs = shaken(UNet2DModel(**{**UNET, "in_channels": 3 if encoding == "one-hot" else 2}))
    theirs.save_pretrained(tmp_path / "theirs")
    DDIMScheduler().save_pretrained(tmp_path / "scheduler")
    config = ["--config", str(tmp_path / "scheduler/scheduler_config.json"), "--steps", "50"]
    family = imported("seg_guided", tmp_path / "theirs", tmp_path / "run", *BREAST, encoding, *config)
    (noise, t), mask = states(), lesions()
    one_hot = torch.cat([mask == 0, mask == 1], dim=1).float()
    seen = {"one-hot": one_hot, "index": mask.float(), "index/255": mask / 255}[encoding]
    close(family.denoiser(noise, t, mask), theirs(torch.cat([noise, seen], dim=1), t).sample)
    assert (family.name, family.labels, family.preset.default_solver) == (
        "seg_guided",
        ("background", "lesion"),
        "ddim",
    )


@torch.no_grad()
@pytest.mark.parametrize("nets", [generative_nets, monai_nets], ids=["generative", "monai"])
@pytest.mark.parametrize("files", [1, 2])
def test_breasts_of_a_control_net(tmp_path, nets, files):
    """As MONAI's tutorial has it: one channel of the mask, and a file for each network."""
    options = {**UNET_OPTIONS, "in_channels": 1}
    if nets is monai_nets:
        options["channels"] = options.pop("num_channels")
    unet = shaken(nets.DiffusionModelUNet(out_channels=1, **options))
    control = shaken(nets.ControlNet(conditioning_embedding_num_channels=(8,), **options), seed=1)
    asked = [tmp_path / "unet.pt", tmp_path / "run", *BREAST, "index"]
    if files == 2:
        torch.save(unet.state_dict(), tmp_path / "unet.pt")
        torch.save(control.state_dict(), tmp_path / "control.pt")
        asked += ["--control", str(tmp_path / "control.pt")]
    else:
        parts = {"unet": unet, "controlnet": control}
        both = {f"{part}.{name}": weight for part, net in parts.items() for name, weight in net.state_dict().items()}
        torch.save(both, tmp_path / "unet.pt")
    schedule = {"kind": "scaled_linear", "num_train_timesteps": 1000}
    family = imported("controlnet", *asked, **SHAPE, control_channels=8, schedule=schedule)
    (noise, t), mask = states(), lesions()
    down, middle = control(noise, t, mask.float())
    expected = unet(noise, t, down_block_additional_residuals=tuple(down), mid_block_additional_residual=middle)
    close(family.denoiser(noise, t, mask), expected)
    assert (family.preset.schedule.kind, family.preset.schedule.prediction) == ("scaled_linear", "epsilon")
    origin = read_config(tmp_path / "run")["imported"]
    assert set(origin["sha256"]) == ({"weights", "control"} if files == 2 else {"weights"})
    assert origin["options"]["mask_encoding"] == "index"
    assert "wanted" not in origin["options"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --labels, --range, --mask-encoding"),
        (
            ["--labels", "background,cyst", "--range", "-1,1", "--mask-encoding", "index"],
            "they must be background, lesion",
        ),
        ([*BREAST, "one-hot"], "--mask-encoding is one-hot, of 2 channels; the network sees 1"),
        ([*BREAST, "index", "--spacing", "1,1"], "--spacing is not for --as controlnet"),
        (["--labels", "background,lesion", "--range", "0,1", "--mask-encoding", "index"], "which takes no ControlNet"),
    ],
)
def test_what_a_control_net_of_breasts_is_not_is_refused(tmp_path, options, message):
    new = {**UNET_OPTIONS, "channels": WIDTHS, "in_channels": 1}
    del new["num_channels"]
    torch.save(DiffusionModelUNet(out_channels=1, **new).state_dict(), tmp_path / "unet.pt")
    torch.save(ControlNet(conditioning_embedding_num_channels=(8,), **new).state_dict(), tmp_path / "control.pt")
    shape = [word for name, value in SHAPE.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    command = ["import", str(tmp_path / "unet.pt"), "--as", "controlnet", "--out", str(tmp_path / "run"), *shape]
    result = CliRunner().invoke(main, [*command, "--control", str(tmp_path / "control.pt"), *options])
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "run").exists()
    if not options:
        alone = CliRunner().invoke(main, [*command, *BREAST, "index"])
        assert "or that one alone and --control the other" in alone.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give --labels, --spacing, --range, --mask-encoding"),
        ([*SAID[:2], "--spacing", "1,1", "--range", "-1,1", "--mask-encoding", "one-hot"], "hearts of medgen's lie 10"),
        ([*PAINTER, "index"], "--mask-encoding is index, of 1 channels; the network sees 4"),
        (["--labels", "background,LV", *SAID[2:], "--range", "-1,1", "--mask-encoding", "index"], "in some order"),
        ([*SAID, "--range", "0,1", "--mask-encoding", "index"], "lie between -1 and 1: use --as imported"),
    ],
)
def test_what_a_family_of_hearts_is_not_is_refused(tmp_path, options, message):
    UNet2DModel(**{**UNET, "in_channels": 5}).save_pretrained(tmp_path / "theirs")
    DDPMScheduler().save_pretrained(tmp_path / "theirs")
    config = ["--config", str(tmp_path / "theirs/scheduler_config.json"), "--steps", "100"]
    command = ["import", str(tmp_path / "theirs"), "--as", "cmr_ddpm_image", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(main, [*command, *options, *config])
    assert result.exit_code == 1
    assert message in result.output
    assert not (tmp_path / "run").exists()


def test_a_unet_of_another_form_is_refused(tmp_path):
    UNet2DModel(**{**UNET, "in_channels": 5, "act_fn": "gelu"}).save_pretrained(tmp_path / "theirs")
    DDPMScheduler().save_pretrained(tmp_path / "theirs")
    config = ["--config", str(tmp_path / "theirs/scheduler_config.json"), "--steps", "100"]
    command = ["import", str(tmp_path / "theirs"), "--as", "cmr_ddpm_image", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(main, [*command, *PAINTER, "one-hot", *config])
    assert "act_fn is 'gelu'; cmr_ddpm_image has 'silu'" in result.output
