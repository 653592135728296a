"""cmr_ddpm_image: short-axis cardiac MRI under a mask, drawn by a diffusion model in pixels.

Edirisooriya et al., "Balancing Fidelity, Utility, and Privacy in Synthetic Cardiac MRI Generation", section IV.C.2.a,
after Konz et al. 2024 (arXiv 2402.05210): the mask lies beside the noisy image as one channel for each class. In one
channel of grey levels, as the latter have it, classes are easily overlooked.
"""

from collections.abc import Mapping
from typing import ClassVar

from serving.sampling.solvers import Schedule
from training.cardiac_families import CLASSES, HeartPainter
from training.family import Preset
from training.painters import ConcatUNet, PainterPreset

# fmt: off
PRESETS = {
    "paper": PainterPreset(                        # 113.67 M parameters
        size=128, widths=(128, 128, 256, 256, 512, 512), attention=(4,), layers=2, head_dim=8, norm_groups=32,
        schedule=Schedule("linear", 1000, 1e-4, 0.02, "epsilon"), clip=1.0, default_solver="ddpm", default_steps=1000,
        batch=8, steps=(150_000,), learning_rate=1e-4, lr_schedule="cosine", weight_decay=0.01, ema_decay=0.9999,
        mask_dropout=0.0),
    "small": PainterPreset(                        # 1.82 M parameters
        size=64,  widths=(16, 32, 64, 96),             attention=(2, 3), layers=1, head_dim=32, norm_groups=8,
        schedule=Schedule("linear", 1000, 1e-4, 0.02, "v"), clip=1.0, default_solver="dpmpp_2m", default_steps=20,
        batch=8, steps=(6_000,),   learning_rate=1e-3, lr_schedule="cosine", weight_decay=0.0,  ema_decay=0.999,
        mask_dropout=0.0),
}
# fmt: on


class CmrDdpmImage(HeartPainter):
    """The state is the image in [-1, 1]."""

    name: ClassVar[str] = "cmr_ddpm_image"
    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    def __init__(self, preset: PainterPreset) -> None:
        super().__init__()
        self.describe_heart(preset)
        self.denoiser = ConcatUNet(preset, CLASSES)
