"""controlnet: mammograms under a mask of the lesion, which steers a frozen UNet.

Zhang, Rao and Agrawala 2023 (arXiv 2302.05543), the row ControlNet of Zhang et al.'s Table 2 (PIG, arXiv 2507.14833).
The first phase trains the UNet on images alone, as `ddpm` does; in the second it is frozen, and a copy of its encoder
learns to add what the mask says. Widths, noise and training are those of one of PIG's networks.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.data import Dataset

from training.breast_families import EPSILON, V, image_output
from training.data.classes import LESION
from training.family import Batch, Preset
from training.painters import ControlledUNet, ControlPreset, Painter

# fmt: off
PRESETS = {
    "paper": ControlPreset(                         # 7.13 M + 2.81 M parameters
        size=512, widths=(32, 32, 64, 64, 128, 128), attention=(5,),   layers=2, head_dim=128, norm_groups=32,
        schedule=EPSILON, clip=None, default_solver="ddim",     default_steps=256,
        batch=6,  steps=(186_000, 186_000), learning_rate=2e-4, lr_schedule="constant",
        weight_decay=0.0, ema_decay=0.9999, mask_dropout=0.0, control_channels=16),
    "small": ControlPreset(                         # 1.82 M + 0.76 M parameters
        size=64,  widths=(16, 32, 64, 96),           attention=(2, 3), layers=1, head_dim=32,  norm_groups=8,
        schedule=V,       clip=1.0,  default_solver="dpmpp_2m", default_steps=20,
        batch=128, steps=(1_430, 1_170),    learning_rate=1.5e-3, lr_schedule="cosine",
        weight_decay=0.0, ema_decay=0.999,  mask_dropout=0.0, control_channels=16),
}
# fmt: on


class SteeredUNet(Painter):
    """The state is the image in [-1, 1]."""

    name: ClassVar[str] = "controlnet"
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    phases: ClassVar[tuple[str, ...]] = ("unet", "control")

    denoiser: ControlledUNet

    def __init__(self, preset: ControlPreset) -> None:
        super().__init__()
        self.describe(preset, LESION, image_output(preset.size))
        self.denoiser = ControlledUNet(preset, len(LESION))

    def trainable(self, phase: str) -> Module:
        return {"unet": self.denoiser.unet, "control": self.denoiser.control}[phase]

    def begin(self, phase: str, dataset: Dataset[Any]) -> None:
        if phase == "control":
            self.denoiser.begin_control()

    def predicted(self, phase: str, state: Tensor, t: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        if phase == "control":
            return super().predicted(phase, state, t, batch, generator)
        alone: Tensor = self.denoiser.unet(state, t)
        return alone
