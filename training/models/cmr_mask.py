"""cmr_mask: masks of the heart's structures in short-axis cardiac MRI, drawn by a diffusion model.

Edirisooriya et al., "Balancing Fidelity, Utility, and Privacy in Synthetic Cardiac MRI Generation", section IV.C.1. The
state is a mask as one-hot channels in [-1, 1]; the largest is the class.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from monai.networks.nets import DiffusionModelUNet
from torch import Tensor, nn

from serving.sampling.solvers import Schedule
from training.cardiac_families import CLASSES, mask_output
from training.denoiser import Denoiser
from training.family import Batch, Preset
from training.noising import draw_timesteps
from training.painters import one_hot
from training.unets import UNetPreset, monai_options, placed


@dataclasses.dataclass(frozen=True)
class MaskPreset(UNetPreset):
    coordinates: bool  # the network also sees where each pixel is
    focus: float  # share of the timesteps that are drawn about ``focus_at``
    focus_at: float  # of all of them; whether a thin ring is closed is decided about a quarter

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.focus <= 1:
            raise ValueError(f"preset field 'focus' is {self.focus}; it must be from 0 to 1")
        if not 0 < self.focus_at < 1:
            raise ValueError(f"preset field 'focus_at' is {self.focus_at}; it must be between 0 and 1")


# fmt: off
PRESETS = {
    "paper": MaskPreset(                        # 63.15 M parameters
        size=128, widths=(64, 128, 256, 512), attention=(2, 3), layers=2, head_dim=32, norm_groups=32,
        schedule=Schedule("linear", 1000, 1e-4, 0.02, "epsilon"), clip=1.0, default_solver="ddpm", default_steps=1000,
        batch=8, steps=(135_000,), learning_rate=1e-4, lr_schedule="constant", weight_decay=0.0, ema_decay=0.9999,
        coordinates=False, focus=0.0, focus_at=0.5),
    "small": MaskPreset(                         # 1.82 M parameters
        size=64,  widths=(16, 32, 64, 96),    attention=(2, 3), layers=1, head_dim=32, norm_groups=8,
        schedule=Schedule("linear", 1000, 1e-4, 0.02, "v"),       clip=1.0, default_solver="ddpm", default_steps=100,
        batch=8, steps=(3_500,),   learning_rate=1e-3, lr_schedule="cosine",   weight_decay=0.0, ema_decay=0.999,
        coordinates=True, focus=0.0, focus_at=0.5),
}
# fmt: on


class MaskUNet(nn.Module):
    """The UNet on noisy masks, with their coordinates if the preset says so."""

    def __init__(self, preset: MaskPreset) -> None:
        super().__init__()
        self.coordinates = preset.coordinates
        in_channels = CLASSES + 2 * preset.coordinates
        self.unet = DiffusionModelUNet(in_channels=in_channels, out_channels=CLASSES, **monai_options(preset))

    def forward(self, state: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.unet(placed(state) if self.coordinates else state, t)
        return out


class CmrMask(Denoiser):
    """The state has a channel for each class."""

    name: ClassVar[str] = "cmr_mask"
    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    preset: MaskPreset

    def __init__(self, preset: MaskPreset) -> None:
        super().__init__()
        self.preset = preset
        self.denoiser = MaskUNet(preset)
        self.sample_shape = (CLASSES, preset.size, preset.size)
        self.outputs = (mask_output(preset.size),)

    def timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        return draw_timesteps(
            self.preset.schedule, count, generator, focus=self.preset.focus, focus_at=self.preset.focus_at
        )

    def data(self, batch: Batch) -> Tensor:
        return one_hot(batch["mask"], CLASSES) * 2 - 1

    def finish(self, sample: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        return (sample.argmax(dim=1, keepdim=True).to(torch.uint8),)
