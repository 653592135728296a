"""Trained generators as other libraries save them: tiny, random, and every parameter shaken."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMPipeline, DDIMScheduler, UNet2DModel
from torch import Tensor, nn

from serving.user import have_a_name

have_a_name()  # MONAI asks for it
from monai.networks import nets as monai_nets  # noqa: E402

SIZE = 16
UNET = {
    "sample_size": SIZE,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
    "norm_num_groups": 4,
}
VAE = {
    "in_channels": 1,
    "out_channels": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 8),
    "latent_channels": 1,
    "norm_num_groups": 4,
    "scaling_factor": 1.7,
    "shift_factor": 0.1,
}
SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195, "clip_sample_range": 2.0}
MONAI_UNET = {
    "_target_": "monai.networks.nets.DiffusionModelUNet",
    "spatial_dims": "@spatial_dims",
    "in_channels": "@latent_channels",
    "out_channels": "@latent_channels",
    "channels": [8, 16],
    "attention_levels": [False, True],
    "num_head_channels": [0, 8],
    "num_res_blocks": 1,
    "norm_num_groups": 4,
}
MONAI_VAE = {
    "_target_": "monai.networks.nets.AutoencoderKL",
    "spatial_dims": "@spatial_dims",
    "latent_channels": "@latent_channels",
    "channels": [8, 16],
    "num_res_blocks": 1,
    "norm_num_groups": 4,
    "attention_levels": [False, False],
}
MONAI_SCHEDULER = {
    "_target_": "monai.networks.schedulers.DDIMScheduler",
    "_requires_": ["@load_diffusion", "@load_autoencoder"],
    "num_train_timesteps": 1000,
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "schedule": "scaled_linear_beta",
    "prediction_type": "v_prediction",
    "clip_sample": False,
}


def shaken(network: nn.Module, seed: int = 0) -> Any:
    """No layer that begins as zeros, or as ones, may hide a wrong mapping."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return network.eval()


def states(count: int = 3, channels: int = 1, size: int = SIZE) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(count, channels, size, size, generator=generator), torch.tensor([3.0, 501.0, 999.0])[:count]


def diffusers_pipeline(folder: Path, vae: bool = False, scheduler: Any = None, **unet: Any) -> Any:
    """Save a pipeline; returns it, with ``unet``, ``scheduler`` and, in a latent one, ``vae``."""
    torch.manual_seed(0)
    network = shaken(UNet2DModel(**{**UNET, **unet}))
    pipeline = DDIMPipeline(network, scheduler or DDIMScheduler(prediction_type="v_prediction", **SCHEDULER))
    pipeline.save_pretrained(folder)
    if vae:
        pipeline.register_modules(vae=shaken(AutoencoderKL(**VAE), seed=1))
        pipeline.vae.save_pretrained(folder / "vae")
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps({**index, "vae": ["diffusers", "AutoencoderKL"]}))
    return pipeline


def monai_bundle(folder: Path, unet: Any = None, vae: bool = True, library: Any = None, **config: Any) -> list[Any]:
    """Save a bundle, by default of MONAI's own networks; returns them, the denoiser first."""
    torch.manual_seed(0)
    written = {
        "imports": ["$import torch"],
        "bundle_root": ".",
        "device": "$torch.device('cpu')",
        "image_dim": 2,
        "spatial_dims": "@image_dim",
        "latent_channels": 1,
        "network_def": {**MONAI_UNET, **(unet or {})},
        **({"autoencoder_def": MONAI_VAE} if vae else {}),
        "load_diffusion": "$@network_def.load_state_dict(torch.load('models/model.pt'))",
        "noise_scheduler": MONAI_SCHEDULER,
        **config,
    }
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs/inference.json").write_text(json.dumps(written))
    networks = []
    for field, file in {"network_def": "model", "autoencoder_def": "model_autoencoder"}.items():
        if field not in written:
            continue
        looked_up = {"@spatial_dims": 2, "@latent_channels": 1}
        config = {key: looked_up.get(str(value), value) for key, value in written[field].items() if key != "_target_"}
        kind = getattr(library or monai_nets, written[field]["_target_"].rpartition(".")[2])
        networks.append(shaken(kind(**config), seed=len(networks)))
        torch.save(networks[-1].state_dict(), folder / f"models/{file}.pt")
    return networks
