"""Families of one convolution each, under the names of a chain's stages."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from serving.bundle import Condition, Output
from training.checkpoint import save_checkpoint
from training.family import Family
from training.models.pig import PRESETS

LABELS = ("background", "LV", "MYO", "RV")
PRESET = PRESETS["small"].replaced({"size": 16, "default_steps": 2})


class OneConvolution(Family):
    presets: ClassVar = {"tiny": PRESET}
    phases: ClassVar = ("only",)

    def __init__(self, preset, channels: int, seen: int) -> None:
        super().__init__()
        self.preset = preset
        self.convolution = nn.Conv2d(seen, channels, 3, padding=1)
        self.sample_shape = (channels, preset.size, preset.size)

    def network(self, sample: Tensor, coeffs: Tensor, condition: Tensor | None = None) -> Tensor:
        seen = sample if condition is None else torch.cat([sample, condition.to(sample.dtype)], dim=1)
        return torch.tanh(self.convolution(seen) + coeffs[:, :1, None, None] / 1000)


class TinyMask(OneConvolution):
    name: ClassVar[str] = "cmr_mask"

    def __init__(self, preset, classes: int = 4) -> None:
        super().__init__(preset, classes, classes)
        self.outputs = (
            Output("mask", "uint8", (1, *self.sample_shape[1:]), 0, classes - 1, LABELS[:classes], (1.25, 1.25)),
        )

    def finish(self, sample: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        return (sample.argmax(dim=1, keepdim=True).to(torch.uint8),)


class TinyImage(OneConvolution):
    name: ClassVar[str] = "cmr_ddpm_image"

    def __init__(self, preset) -> None:
        super().__init__(preset, 1, 2)
        self.condition = Condition("mask", self.sample_shape, 4)
        self.outputs = (Output("image", "float32", self.sample_shape, 0.0, 1.0, (), (1.25, 1.25)),)

    def finish(self, sample: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        return ((sample / 2 + 0.5).clamp(0, 1),)


def register(patch: pytest.MonkeyPatch, *families: type[Family]) -> None:
    """Checkpoints of these families can be loaded."""
    patch.setattr("training.checkpoint.load_family", {family.name: family for family in families}.__getitem__)


def write_checkpoint(folder: Path, family: Family) -> Path:
    save_checkpoint(folder, family, family.state_dict(), {"preset_name": "tiny"})
    return folder
