"""ddpm: images alone, or mask and image as two channels of one network, drawn by one diffusion model.

Ho et al. 2020 (arXiv 2006.11239), the rows DDPM and, sampled with ``ddim`` (Song et al. 2021, arXiv 2010.02502), DDIM
of Zhang et al.'s Table 1 (PIG, arXiv 2507.14833). How large theirs is was not found out: `paper` has the shape, the
noise and the training of one of PIG's two networks. With ``paired`` it draws pairs as PIG does, without a guide.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from training.breast_families import EPSILON, V, image_output, mask_output
from training.denoiser import Denoiser
from training.family import Batch, Preset
from training.unets import UNetPreset, diffusers_unet


@dataclasses.dataclass(frozen=True)
class DdpmPreset(UNetPreset):
    paired: bool  # the state is [mask, image], and both are drawn


# fmt: off
PRESETS = {
    "paper": DdpmPreset(                         # 7.13 M parameters
        size=512, widths=(32, 32, 64, 64, 128, 128), attention=(5,),   layers=2, head_dim=128, norm_groups=32,
        schedule=EPSILON, clip=None, default_solver="ddpm",     default_steps=1024,
        batch=6,  steps=(186_000,), learning_rate=2e-4, lr_schedule="constant", weight_decay=0.0, ema_decay=0.9999,
        paired=False),
    "small": DdpmPreset(                         # 1.82 M parameters
        size=64,  widths=(16, 32, 64, 96),           attention=(2, 3), layers=1, head_dim=32,  norm_groups=8,
        schedule=V,       clip=1.0,  default_solver="dpmpp_2m", default_steps=20,
        batch=128, steps=(1_350,),  learning_rate=1.5e-3, lr_schedule="cosine",   weight_decay=0.0, ema_decay=0.999,
        paired=False),
}
# fmt: on


class PlainUNet(nn.Module):
    """diffusers' UNet on the noisy state alone."""

    def __init__(self, preset: DdpmPreset) -> None:
        super().__init__()
        channels = 1 + preset.paired
        self.unet = diffusers_unet(preset, in_channels=channels, out_channels=channels)

    def forward(self, state: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.unet(state, t).sample
        return out


class Ddpm(Denoiser):
    """The state is the image in [-1, 1], or the mask in {-1, 1} and the image."""

    name: ClassVar[str] = "ddpm"
    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    preset: DdpmPreset

    def __init__(self, preset: DdpmPreset) -> None:
        super().__init__()
        self.preset = preset
        self.denoiser = PlainUNet(preset)
        image = image_output(preset.size)
        self.outputs = (mask_output(preset.size), image) if preset.paired else (image,)
        self.sample_shape = (len(self.outputs), preset.size, preset.size)

    def data(self, batch: Batch) -> Tensor:
        if not self.preset.paired:
            return batch["image"]
        return torch.cat([batch["mask"] * 2.0 - 1.0, batch["image"]], dim=1)

    def finish(self, sample: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        image = (sample[:, -1:] / 2 + 0.5).clamp(0, 1)
        return ((sample[:, :1] > 0).to(torch.uint8), image) if self.preset.paired else (image,)
