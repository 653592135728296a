"""The shape of a UNet as preset fields, and the library's networks of that shape."""

import dataclasses
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor

from training.family import SteppingPreset


@dataclasses.dataclass(frozen=True)
class UNetPreset(SteppingPreset):
    """Adds the shape of a family's UNets, which are trained on the noise of a schedule."""

    widths: tuple[int, ...]
    attention: tuple[int, ...]  # levels of ``widths``, counted from 0
    layers: int
    head_dim: int
    norm_groups: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.widths:
            raise ValueError("preset field 'widths' is (); it must have at least one width")
        levels = range(len(self.widths))
        if self.size % 2**self.halvings:
            raise ValueError(f"preset field 'size' is {self.size}; these widths halve it {self.halvings} times")
        if self.layers < 1:
            raise ValueError(f"preset field 'layers' is {self.layers}; it must be at least 1")
        if self.norm_groups < 1 or any(width % self.norm_groups for width in self.widths):
            raise ValueError(
                f"preset field 'norm_groups' is {self.norm_groups}; it must divide each of the widths {self.widths}"
            )
        if not set(self.attention) <= set(levels):
            raise ValueError(f"preset field 'attention' is {self.attention}; the levels are {tuple(levels)}")
        attending = [self.widths[level] for level in sorted({*self.attention, levels[-1]})]  # the deepest always
        if self.head_dim < 1 or any(width % self.head_dim for width in attending):
            raise ValueError(
                f"preset field 'head_dim' is {self.head_dim}; it must divide the widths of the levels with attention, "
                f"{', '.join(map(str, attending))}"
            )

    @property
    def halvings(self) -> int:
        """How often images are halved on their way to the deepest level."""
        return len(self.widths) - 1

    @property
    def unet_size(self) -> int:
        """Rows and columns of the states."""
        return self.size


def diffusers_unet(preset: UNetPreset, in_channels: int, out_channels: int, **options: Any) -> UNet2DModel:
    """diffusers' UNet of this shape: (input [B, in_channels, H, W], t [B]) -> ``sample`` [B, out_channels, H, W]."""
    kinds = ["Attn" if level in preset.attention else "" for level in range(len(preset.widths))]
    return UNet2DModel(
        sample_size=preset.unet_size,
        in_channels=in_channels,
        out_channels=out_channels,
        block_out_channels=preset.widths,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        layers_per_block=preset.layers,
        attention_head_dim=preset.head_dim,
        norm_num_groups=preset.norm_groups,
        **options,
    )


def placed(state: Tensor) -> Tensor:
    """States [B, C, H, W] with two more channels that say where a pixel is: row and column, from -1 to 1.

    Convolutions hardly know it, and draw a heart anywhere: Liu et al. 2018 (arXiv 1807.03247).
    """
    batch, _, height, width = state.shape
    rows = torch.linspace(-1, 1, height, dtype=state.dtype, device=state.device).view(1, 1, -1, 1)
    columns = torch.linspace(-1, 1, width, dtype=state.dtype, device=state.device).view(1, 1, 1, -1)
    where = [axis.expand(batch, 1, height, width) for axis in (rows, columns)]
    return torch.cat([state, *where], dim=1)


def monai_options(preset: UNetPreset) -> dict[str, Any]:
    """What MONAI's diffusion networks of this shape are made with."""
    return {
        "spatial_dims": 2,
        "num_res_blocks": preset.layers,
        "channels": preset.widths,
        "attention_levels": tuple(level in preset.attention for level in range(len(preset.widths))),
        "num_head_channels": preset.head_dim,
        "norm_num_groups": preset.norm_groups,
    }
