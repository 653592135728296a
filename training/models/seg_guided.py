"""seg_guided: mammograms under a mask of the lesion, which lies beside the noisy image.

Konz et al. 2024 (arXiv 2402.05210), the row SegGuidedDif of Zhang et al.'s Table 2 (PIG, arXiv 2507.14833), with the
former's mask-ablated training. The mask is one channel for each class, as of `cmr_ddpm_image`, not one of indices; the
network, its noise and its training are those of one of PIG's.
"""

from collections.abc import Mapping
from typing import ClassVar

from training.breast_families import EPSILON, V, image_output
from training.data.classes import LESION
from training.family import Preset
from training.painters import ConcatUNet, Painter, PainterPreset

# fmt: off
PRESETS = {
    "paper": PainterPreset(                         # 7.13 M parameters
        size=512, widths=(32, 32, 64, 64, 128, 128), attention=(5,),   layers=2, head_dim=128, norm_groups=32,
        schedule=EPSILON, clip=None, default_solver="ddim",     default_steps=256,
        batch=6,  steps=(186_000,), learning_rate=2e-4, lr_schedule="constant", weight_decay=0.0, ema_decay=0.9999,
        mask_dropout=0.5),
    "small": PainterPreset(                         # 1.82 M parameters
        size=64,  widths=(16, 32, 64, 96),           attention=(2, 3), layers=1, head_dim=32,  norm_groups=8,
        schedule=V,       clip=1.0,  default_solver="dpmpp_2m", default_steps=20,
        batch=128, steps=(1_460,),  learning_rate=1.5e-3, lr_schedule="cosine",   weight_decay=0.0, ema_decay=0.999,
        mask_dropout=0.5),
}
# fmt: on


class SegGuided(Painter):
    """The state is the image in [-1, 1]."""

    name: ClassVar[str] = "seg_guided"
    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    def __init__(self, preset: PainterPreset) -> None:
        super().__init__()
        self.describe(preset, LESION, image_output(preset.size))
        self.denoiser = ConcatUNet(preset, len(LESION))
