"""Files of diffusers and MONAI become checkpoints that give what the libraries give; what they do not say is asked."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from foreign import MONAI_SCHEDULER, MONAI_UNET, SIZE, diffusers_pipeline, monai_bundle, shaken, states
from monai.networks.schedulers import DDIMScheduler as MonaiDDIM
from torch import Tensor

from training.__main__ import main
from training.checkpoint import load_checkpoint
from training.family import Family
from training.models.imported import Imported

SAID = ["--range", "-1,1", "--spacing", "0.5,0.4", "--steps", "5"]


def run(source: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["import", str(source), "--as", "imported", "--out", str(out), *options])


def imported(source: Path, out: Path, *options: str) -> Family:
    result = run(source, out, *SAID, *options)
    assert result.exit_code == 0, result.output
    return load_checkpoint(out)[0]


@torch.no_grad()
def their_loop(scheduler, network, noise: Tensor, steps: int, first: bool = False) -> Tensor:
    scheduler.set_timesteps(steps)
    state = noise
    for t in scheduler.timesteps:
        stepped = scheduler.step(network(state, t.expand(len(state))), t, state)
        state = stepped[0] if first else stepped.prev_sample
    return state


class TestDiffusers:
    @pytest.mark.parametrize("vae", [False, True])
    def test_a_pipeline_draws_what_diffusers_draws(self, tmp_path, vae):
        pipeline = diffusers_pipeline(tmp_path / "theirs", vae)
        family = imported(tmp_path / "theirs", tmp_path / "run")
        noise, t = states()
        with torch.no_grad():
            torch.testing.assert_close(family.denoiser(noise, t), pipeline.unet(noise, t).sample, rtol=0, atol=1e-5)
            end = their_loop(pipeline.scheduler, lambda x, t: pipeline.unet(x, t).sample, noise, 5)
            picture = pipeline.vae.decode(end / 1.7 + 0.1).sample if vae else end
            image = torch.rand(2, 1, 32, 32) * 2 - 1
            data = (pipeline.vae.encode(image).latent_dist.mean - 0.1) * 1.7 if vae else image
            torch.testing.assert_close(family.data({"image": image}), data)
        (ours,) = family.sample([noise], "ddim", 5)
        assert ours.shape == (3, 1, *(2 * [SIZE * (2 if vae else 1)]))
        torch.testing.assert_close(ours, (picture / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
        assert ours.std() > 0.02

    def test_all_that_was_taken_is_said_and_kept(self, tmp_path):
        diffusers_pipeline(tmp_path / "theirs", vae=True)
        result = run(tmp_path / "theirs", tmp_path / "run", *SAID, "--modality", "MR", "--set", "default_steps=7")
        family, config = load_checkpoint(tmp_path / "run")
        assert isinstance(family, Imported)
        preset, schedule = family.preset, family.preset.schedule
        assert (schedule.kind, schedule.spacing, schedule.prediction) == ("scaled_linear", "leading", "v")
        assert (preset.clip, preset.default_solver, preset.default_steps) == (2.0, "ddim", 7)
        assert (preset.scale, preset.shift, preset.size, preset.state) == (1.7, 0.1, 2 * SIZE, (1, SIZE, SIZE))
        (output,) = family.outputs
        assert (output.spacing, output.modality) == ((0.5, 0.4), "MR")
        origin = config["imported"]
        assert origin["format"] == "diffusers"
        assert origin["options"]["range"] == [-1.0, 1.0]
        assert origin["options"]["set"] == {"default_steps": 7}
        assert sorted(origin["sha256"]) == [f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "vae")]
        assert '"clip": 2.0' in result.output
        assert str(tmp_path) not in json.dumps(config)

    def test_latents_that_are_scaled_one_by_one_are_refused(self, tmp_path):
        diffusers_pipeline(tmp_path / "theirs", vae=True)
        file = tmp_path / "theirs/vae/config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "latents_mean": [0.5]}))
        assert "latents_mean" in run(tmp_path / "theirs", tmp_path / "run", *SAID).output
        assert not (tmp_path / "run").exists()

    def test_channels_that_are_not_drawn_are_said(self, tmp_path):
        diffusers_pipeline(tmp_path / "theirs", in_channels=3, out_channels=3)
        said = run(tmp_path / "theirs", tmp_path / "run", *SAID).output
        assert "pictures have 3 channels: sample writes them to pairs.npz alone" in said

    def test_half_precision_and_pieces_are_read(self, tmp_path):
        pipeline = diffusers_pipeline(tmp_path / "theirs")
        pipeline.unet.half().save_pretrained(tmp_path / "theirs/unet", max_shard_size="20KB")
        (tmp_path / "theirs/unet/diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
        assert len([*(tmp_path / "theirs/unet").glob("*.safetensors")]) > 1
        family = imported(tmp_path / "theirs", tmp_path / "run")
        noise, t = states()
        with torch.no_grad():
            expected = pipeline.unet.float()(noise, t).sample
            torch.testing.assert_close(family.denoiser(noise, t), expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        ("scheduler", "solver", "spacing"),
        [
            (DDPMScheduler(timestep_spacing="trailing", beta_schedule="squaredcos_cap_v2"), "ddpm", "trailing"),
            (DPMSolverMultistepScheduler(solver_order=3), "dpmpp_3m", "linspace"),
            (UniPCMultistepScheduler(solver_order=3, timestep_spacing="trailing"), "unipc", "trailing"),
        ],
    )
    def test_other_schedulers(self, tmp_path, scheduler, solver, spacing):
        diffusers_pipeline(tmp_path / "theirs")
        scheduler.save_pretrained(tmp_path / "theirs/scheduler")
        preset = imported(tmp_path / "theirs", tmp_path / "run").preset
        assert (preset.default_solver, preset.schedule.spacing) == (solver, spacing)
        np.testing.assert_allclose(preset.schedule.alphas_cumprod, scheduler.alphas_cumprod, 2e-3, 1e-6)

    def test_a_sampler_of_none_of_ours_needs_a_solver(self, tmp_path):
        diffusers_pipeline(tmp_path / "theirs")
        PNDMScheduler(trained_betas=np.linspace(0.01, 0.02, 1000)).save_pretrained(tmp_path / "theirs/scheduler")
        theirs, out = tmp_path / "theirs", tmp_path / "run"
        assert "--solver" in run(theirs, out, *SAID).output
        written = theirs / "scheduler/scheduler_config.json"
        written.write_text(json.dumps({**json.loads(written.read_text()), "timestep_spacing": "trailing"}))
        said = run(theirs, tmp_path / "noted", *SAID, "--solver", "ddim").output
        assert "timestep_spacing is 'trailing', which medgen's solvers do not follow" in said
        preset = imported(tmp_path / "theirs", tmp_path / "run", "--solver", "dpmpp_2m").preset
        assert (preset.default_solver, preset.schedule.kind, len(preset.schedule.betas)) == ("dpmpp_2m", "betas", 1000)

    def test_a_network_alone_under_a_mask(self, tmp_path):
        """As segmentation-guided-diffusion (Konz et al. 2024) publishes it: the UNet, and a mask of grey levels."""
        pipeline = diffusers_pipeline(tmp_path / "theirs", in_channels=2)
        out, config = tmp_path / "run", ["--config", str(tmp_path / "theirs/scheduler/scheduler_config.json")]
        assert "--config" in run(tmp_path / "theirs/unet", out, *SAID).output
        assert "--labels" in run(tmp_path / "theirs/unet", out, *SAID, *config).output
        labels = ["--labels", "background,fat,gland", "--mask-encoding", "index/255"]
        family = imported(tmp_path / "theirs/unet", out, *config, *labels)
        assert family.condition.labels == ("background", "fat", "gland")
        (noise, t), mask = states(), torch.randint(0, 3, (3, 1, SIZE, SIZE), dtype=torch.uint8)
        with torch.no_grad():
            expected = pipeline.unet(torch.cat([noise, mask / 255], dim=1), t).sample
            torch.testing.assert_close(family.denoiser(noise, t, mask), expected, rtol=0, atol=1e-5)

    def test_one_that_can_hear_a_text_but_needs_none(self, tmp_path):
        diffusers_pipeline(tmp_path / "theirs")
        shutil.rmtree(tmp_path / "theirs/unet")
        blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
        options = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "mid_block_type": None}
        network = shaken(UNet2DConditionModel(SIZE, 1, 1, **blocks, **options))
        network.save_pretrained(tmp_path / "theirs/unet")
        index = json.loads((tmp_path / "theirs/model_index.json").read_text())
        index["unet"] = ["diffusers", "UNet2DConditionModel"]
        (tmp_path / "theirs/model_index.json").write_text(json.dumps(index))
        family = imported(tmp_path / "theirs", tmp_path / "run")
        noise, t = states()
        with torch.no_grad():
            expected = network(noise, t, None).sample
            torch.testing.assert_close(family.denoiser(noise, t), expected, rtol=0, atol=1e-5)

    def test_one_that_hears_a_text_is_refused_even_where_it_would_run(self, tmp_path):
        """Of equal widths: without a text its attention would turn to the picture."""
        diffusers_pipeline(tmp_path / "theirs")
        shutil.rmtree(tmp_path / "theirs/unet")
        blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("UpBlock2D",)}
        options = {"block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4, "mid_block_type": None}
        network = UNet2DConditionModel(SIZE, 1, 1, **blocks, **options, cross_attention_dim=8, attention_head_dim=8)
        network.save_pretrained(tmp_path / "theirs/unet")
        index = json.loads((tmp_path / "theirs/model_index.json").read_text())
        index["unet"] = ["diffusers", "UNet2DConditionModel"]
        (tmp_path / "theirs/model_index.json").write_text(json.dumps(index))
        said = run(tmp_path / "theirs", tmp_path / "run", *SAID).output
        assert "the UNet2DConditionModel has CrossAttnDownBlock2D: it hears a text" in said

    def test_a_scale_that_is_not_written_is_asked_for(self, tmp_path):
        """The library would take 0.18215, which is another model's."""
        diffusers_pipeline(tmp_path / "theirs", vae=True)
        file = tmp_path / "theirs/vae/config.json"
        written = json.loads(file.read_text())
        del written["scaling_factor"]
        file.write_text(json.dumps(written))
        assert "--scale" in run(tmp_path / "theirs", tmp_path / "run", *SAID).output
        assert imported(tmp_path / "theirs", tmp_path / "run", "--scale", "0.5").preset.scale == 0.5

    def test_a_class_that_the_network_is_told(self, tmp_path):
        pipeline = diffusers_pipeline(tmp_path / "theirs", num_class_embeds=3)
        assert "--classes" in run(tmp_path / "theirs", tmp_path / "run", *SAID).output
        assert "has 3 classes, and 2" in run(tmp_path / "theirs", tmp_path / "run", *SAID, "--classes", "a,b").output
        assert "a class is called '1'" in run(tmp_path / "theirs", tmp_path / "run", *SAID, "--classes", "1,2,5").output
        family = imported(tmp_path / "theirs", tmp_path / "run", "--classes", "BI-RADS 1,BI-RADS 2,BI-RADS 5")
        assert (family.condition.dtype, family.condition.labels[2]) == ("int64", "BI-RADS 5")
        (noise, t), labels = states(), torch.tensor([2, 0, 1])
        with torch.no_grad():
            expected = pipeline.unet(noise, t, class_labels=labels).sample
            torch.testing.assert_close(family.denoiser(noise, t, labels[:, None]), expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        ("file", "change", "message"),
        [
            ("scheduler/scheduler_config.json", {"_class_name": "EDMEulerScheduler"}, "is of a EDMEulerScheduler"),
            ("scheduler/scheduler_config.json", {"thresholding": True}, "thresholding is True; medgen has False alone"),
            ("scheduler/scheduler_config.json", {"prediction_type": "flow"}, "prediction_type is 'flow'"),
            ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "betas must be above 0 and below 1"),
            ("scheduler/scheduler_config.json", {"new": 1}, "has 'new', which DDIMScheduler of this version"),
            (
                "scheduler/scheduler_config.json",
                {"beta_schedule": "sigmoid"},
                "makes no DDIMScheduler of it: ",
            ),
            (
                "scheduler/scheduler_config.json",
                {"num_train_timesteps": "9"},
                "makes no DDIMScheduler of it: ",
            ),
            ("unet/config.json", {"_class_name": "Transformer2DModel"}, "is of a Transformer2DModel"),
            ("unet/config.json", {"class_embed_type": "identity"}, "does not run on states of"),
            ("unet/config.json", {"new": 1}, "has 'new', which UNet2DModel of this version does not know"),
            ("unet/config.json", {"block_out_channels": [8, 32]}, "cannot be read|mismatched"),
            ("unet/config.json", {"layers_per_block": 2}, "cannot be read: .*size mismatch for|weights are missing"),
            ("model_index.json", {"text_encoder": ["transformers", "CLIPTextModel"]}, "has 'text_encoder', a CLIP"),
        ],
    )
    def test_what_is_not_ours_is_refused_by_name(self, tmp_path, file, change, message):
        diffusers_pipeline(tmp_path / "theirs")
        written = json.loads((tmp_path / "theirs" / file).read_text())
        (tmp_path / "theirs" / file).write_text(json.dumps({**written, **change}))
        result = run(tmp_path / "theirs", tmp_path / "run", *SAID)
        assert result.exit_code == 1, result.output
        assert not (tmp_path / "run").exists()
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(result.output)

    def test_a_pickle_in_the_folder_is_not_opened(self, tmp_path):
        pipeline = diffusers_pipeline(tmp_path / "theirs")
        shutil.rmtree(tmp_path / "theirs/unet")
        pipeline.unet.save_pretrained(tmp_path / "theirs/unet", safe_serialization=False)
        said = run(tmp_path / "theirs", tmp_path / "run", *SAID).output
        assert "but config.json, diffusion_pytorch_model.bin" in said
        assert "safe_serialization=True" in said

    def test_what_the_files_do_not_say_is_asked_for_all_at_once(self, tmp_path):
        diffusers_pipeline(tmp_path / "theirs", sample_size=None)
        theirs, out = tmp_path / "theirs", tmp_path / "run"
        said = run(theirs, out).output
        assert all(option in said for option in ("--range", "--spacing", "--steps", "--size"))
        assert "--scale" not in said
        assert "there are no latents" in run(theirs, out, *SAID, "--size", "8", "--scale", "2").output
        assert "must be at least 1" in run(theirs, out, *SAID, "--size", "8,0").output
        imported(tmp_path / "theirs", tmp_path / "run", "--size", "8,16")
        assert "is there already" in run(tmp_path / "theirs", tmp_path / "run", *SAID).output


class TestMonai:
    MORE = ("--scale", "1.3", "--size", str(SIZE))

    def test_a_bundle_draws_what_monai_draws(self, tmp_path):
        """Of latents; at MONAI's own timesteps, which are not diffusers'."""
        unet, vae = monai_bundle(tmp_path / "theirs")
        family = imported(tmp_path / "theirs", tmp_path / "run", *self.MORE)
        noise, t = states()
        options = {key: value for key, value in MONAI_SCHEDULER.items() if not key.startswith("_")}
        with torch.no_grad():
            torch.testing.assert_close(family.denoiser(noise, t), unet(noise, t), rtol=0, atol=1e-5)
            image = torch.rand(2, 1, 32, 32) * 2 - 1
            torch.testing.assert_close(family.data({"image": image}), vae.encode(image)[0] * 1.3)
            picture = vae.decode(their_loop(MonaiDDIM(**options), unet, noise, 5, first=True) / 1.3)
        (ours,) = family.sample([noise], "ddim", 5)
        torch.testing.assert_close(ours, (picture / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-5)
        assert ours.std() > 0.02

    def test_a_class_that_the_network_is_told(self, tmp_path):
        unet, _ = monai_bundle(tmp_path / "theirs", {"num_class_embeds": 2})
        assert "--classes" in run(tmp_path / "theirs", tmp_path / "run", *SAID, *self.MORE).output
        family = imported(tmp_path / "theirs", tmp_path / "run", *self.MORE, "--classes", "dense,fatty")
        (noise, t), labels = states(), torch.tensor([1, 0, 1])
        with torch.no_grad():
            expected = unet(noise, t, class_labels=labels)
            torch.testing.assert_close(family.denoiser(noise, t, labels[:, None]), expected, rtol=0, atol=1e-5)

    def test_a_state_dict_and_a_config(self, tmp_path):
        """Trained on several GPUs, and with more in the file."""
        unet, _ = monai_bundle(tmp_path / "theirs", vae=True)
        weights = {f"module.{name}": tensor for name, tensor in unet.state_dict().items()}
        torch.save({"epoch": 3, "model": weights}, tmp_path / "weights.pt")
        written = json.loads((tmp_path / "theirs/configs/inference.json").read_text())
        del written["autoencoder_def"]
        (tmp_path / "config.json").write_text(json.dumps(written))
        config = ["--config", str(tmp_path / "config.json"), "--size", f"{SIZE},{SIZE}"]
        assert "epoch: int" in run(tmp_path / "weights.pt", tmp_path / "run", *SAID, *config).output
        family = imported(tmp_path / "weights.pt", tmp_path / "run", *config, "--key", "model")
        noise, t = states()
        with torch.no_grad():
            torch.testing.assert_close(family.denoiser(noise, t), unet(noise, t), rtol=0, atol=1e-5)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"latent_channels": "$1 + 0"}, "which would have to be run"),
            ({"latent_channels": "@spatial_dims_"}, "there is no such field"),
            ({"image_dim": "@spatial_dims"}, "lead round in circles"),
            ({"image_dim": 3}, "spatial_dims is 3"),
            ({"other": {"_target_": "DiffusionModelUNet"}}, "it has network_def, other"),
            ({"vq": {"_target_": "monai.networks.nets.VQVAE"}}, "vq is monai.networks.nets.VQVAE; medgen imports"),
            ({"parts": [{"_target_": "ControlNet"}]}, "parts::0 is ControlNet; medgen imports"),
            ({"third": {"_target_": "generative.networks.nets.vqvae.VQVAE"}}, "third is generative"),
            ({"inferer": {"_target_": "LatentDiffusionInferer", "scale_factor": 0.3}}, "--scale is 1.3; the files say"),
            ({"network_def": {**MONAI_UNET, "with_conditioning": True, "cross_attention_dim": 16}}, "hears a text"),
            ({"noise_scheduler": {**MONAI_SCHEDULER, "eta": 1}}, "has 'eta'; medgen knows"),
            ({"noise_scheduler": {**MONAI_SCHEDULER, "_disabled_": True}}, "_disabled_"),
            ({"noise_scheduler": {**MONAI_SCHEDULER, "clip_sample": True, "clip_sample_min": 0}}, "clips evenly"),
        ],
    )
    def test_what_is_not_ours_is_refused_by_name(self, tmp_path, change, message):
        monai_bundle(tmp_path / "theirs")
        file = tmp_path / "theirs/configs/inference.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
        result = run(tmp_path / "theirs", tmp_path / "run", *SAID, *self.MORE)
        assert result.exit_code == 1
        assert message in result.output
        assert not (tmp_path / "run").exists()

    def test_objects_are_named_and_not_made(self, tmp_path):
        monai_bundle(tmp_path / "theirs")
        torch.save({"at": Path("somewhere")}, tmp_path / "theirs/models/model.pt")
        said = run(tmp_path / "theirs", tmp_path / "run", *SAID, *self.MORE).output
        assert "pathlib.PosixPath" in said
        assert "torch.save(model.state_dict(), FILE)" in said

    def test_weights_of_another_network_are_refused(self, tmp_path):
        unet, _ = monai_bundle(tmp_path / "theirs")
        weights = unet.state_dict()
        torch.save({**weights, "more": torch.zeros(1)}, tmp_path / "theirs/models/model.pt")
        assert "it holds more" in run(tmp_path / "theirs", tmp_path / "run", *SAID, *self.MORE).output
        weights["out.2.conv.bias"] = torch.zeros(2)
        torch.save(weights, tmp_path / "theirs/models/model.pt")
        assert "out.2.conv.bias is [2]" in run(tmp_path / "theirs", tmp_path / "run", *SAID, *self.MORE).output

    def test_the_scale_is_asked_for(self, tmp_path):
        monai_bundle(tmp_path / "theirs")
        assert "--scale" in run(tmp_path / "theirs", tmp_path / "run", *SAID).output


def test_options_are_of_a_family(tmp_path):
    said = CliRunner().invoke(main, ["import", "x", "--as", "pig", "--out", str(tmp_path / "run"), "--scale", "1"])
    assert "--scale is not for --as pig" in said.output
    said = CliRunner().invoke(main, ["import", "x", "--as", "cmr_mask", "--out", str(tmp_path / "run"), "--steps", "9"])
    assert "--steps is not for --as cmr_mask" in said.output
    assert "neither model_index.json" in run(tmp_path, tmp_path / "run", *SAID).output
    assert "is not 2 numbers" in run(tmp_path, tmp_path / "run", "--range", "1").output


def test_it_learns_nothing_here(tmp_path):
    out = str(tmp_path / "run")
    result = CliRunner().invoke(main, ["fit", "--model", "imported", "--data", "phantom:8", "--out", out])
    assert "medgen import makes its checkpoints" in result.output
