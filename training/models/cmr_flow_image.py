"""cmr_flow_image: short-axis cardiac MRI under a mask, drawn by flow matching.

Edirisooriya et al., "Balancing Fidelity, Utility, and Privacy in Synthetic Cardiac MRI Generation", section IV.C.2.c: a
velocity network on the straight path from noise to image (Lipman et al. 2023, arXiv 2210.02747), steered by a
ControlNet (Zhang et al. 2023, arXiv 2302.05543). The authors give it the mask as one channel of class indices, we as
one channel for each class; and time as they do, as 0 .. 999, but not rounded.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from serving.sampling.solvers import Schedule
from training.cardiac_families import CLASSES, HeartPainter
from training.family import Preset
from training.painters import ControlledUNet, ControlPreset


@dataclasses.dataclass(frozen=True)
class FlowPreset(ControlPreset):
    """Adds the form of both networks."""

    coordinates: bool  # the networks also see where each pixel is
    transformer_layers: int  # of each attention, which is MONAI's spatial transformer; 0: plain self-attention
    resblock_updown: bool  # residual blocks change the resolution, not convolutions

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.transformer_layers < 0:
            raise ValueError(f"preset field 'transformer_layers' is {self.transformer_layers}; it must be at least 0")
        if self.transformer_layers and len({self.widths[level] for level in self.attention}) != 1:
            raise ValueError(
                f"preset field 'attention' is {self.attention}; transformers need levels of one and the same width"
            )


FLOW = Schedule(kind="flow", num_train_timesteps=1000, beta_start=0.0, beta_end=0.0, prediction="velocity")

# fmt: off
PRESETS = {
    "paper": FlowPreset(                        # 63.09 M + 30.12 M parameters
        size=128, widths=(32, 64, 128, 256), attention=(3,),   layers=2, head_dim=256, norm_groups=32,
        schedule=FLOW, clip=None, default_solver="midpoint", default_steps=50,
        batch=8, steps=(34_000,), learning_rate=2.5e-5, lr_schedule="constant", weight_decay=0.0, ema_decay=0.9999,
        mask_dropout=0.0, coordinates=False, control_channels=16, transformer_layers=6, resblock_updown=True),
    "small": FlowPreset(                        # 1.82 M + 0.76 M parameters
        size=64,  widths=(16, 32, 64, 96),   attention=(2, 3), layers=1, head_dim=32,  norm_groups=8,
        schedule=FLOW, clip=1.0,  default_solver="midpoint", default_steps=12,
        batch=8, steps=(1_800,),  learning_rate=1e-3,   lr_schedule="cosine",   weight_decay=0.0, ema_decay=0.999,
        mask_dropout=0.0, coordinates=True,  control_channels=16, transformer_layers=0, resblock_updown=False),
}
# fmt: on


def options(preset: FlowPreset) -> dict[str, Any]:
    """What both networks have beside the preset's shape."""
    if not preset.transformer_layers:
        return {"resblock_updown": preset.resblock_updown}
    return {
        "resblock_updown": preset.resblock_updown,
        "with_conditioning": True,  # without a text to attend to, cross-attention is to the features themselves
        "cross_attention_dim": preset.widths[preset.attention[0]],
        "transformer_num_layers": preset.transformer_layers,
    }


class CmrFlowImage(HeartPainter):
    """The state is the image in [-1, 1]."""

    name: ClassVar[str] = "cmr_flow_image"
    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    def __init__(self, preset: FlowPreset) -> None:
        super().__init__()
        self.describe_heart(preset)
        self.denoiser = ControlledUNet(preset, CLASSES, preset.coordinates, **options(preset))
