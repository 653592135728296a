"""Families that draw a picture under a mask, and networks that see one: beside the picture, or through a ControlNet."""

import dataclasses
from typing import Any

import torch
from monai.networks.nets import ControlNet, DiffusionModelUNet
from torch import Tensor, nn

from serving.bundle import Condition, Output
from training.denoiser import Denoiser
from training.family import Batch
from training.unets import UNetPreset, diffusers_unet, monai_options, placed


def one_hot(mask: Tensor, classes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Class indices uint8 [B, 1, H, W] -> [B, classes, H, W] of 0 and 1."""
    indices = torch.arange(classes, dtype=torch.float32, device=mask.device).view(1, -1, 1, 1)
    return (mask.float() == indices).to(dtype)  # float32, as TensorRT compares no uint8


def without_classes(mask: Tensor, classes: int, share: float, generator: torch.Generator) -> Tensor:
    """The mask uint8 [B, 1, H, W] with each class of each sample turned into background with this probability.

    Konz et al. 2024 (arXiv 2402.05210), mask-ablated training; they draw once for a whole batch.
    """
    kept = torch.rand(len(mask), classes, generator=generator).to(mask.device) >= share
    return mask * kept.gather(1, mask.flatten(1).long()).view(mask.shape)


@dataclasses.dataclass(frozen=True)
class PainterPreset(UNetPreset):
    """Adds the share of classes that training leaves out of the masks."""

    mask_dropout: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mask_dropout <= 1:
            raise ValueError(f"preset field 'mask_dropout' is {self.mask_dropout}; it must be from 0 to 1")


@dataclasses.dataclass(frozen=True)
class ControlPreset(PainterPreset):
    """Adds the ControlNet's part."""

    control_channels: int  # of the mask's embedding

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.control_channels < 1:
            raise ValueError(f"preset field 'control_channels' is {self.control_channels}; it must be at least 1")


class Painter(Denoiser):
    """An image under a mask; its state is the image in [-1, 1], unless the family says otherwise."""

    preset: PainterPreset
    condition: Condition

    @property
    def labels(self) -> tuple[str, ...]:
        return self.condition.labels

    def describe(self, preset: PainterPreset, labels: tuple[str, ...], image: Output) -> None:
        """Say what goes in, a mask of these classes, and what comes out."""
        size = preset.size
        self.preset = preset
        self.sample_shape = (1, size, size)
        self.condition = Condition("mask", (1, size, size), len(labels), labels, image.spacing)
        self.outputs = (image,)

    def data(self, batch: Batch) -> Tensor:
        return batch["image"]

    def training_condition(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, ...]:
        if not self.preset.mask_dropout:
            return (batch["mask"],)
        return (without_classes(batch["mask"], len(self.labels), self.preset.mask_dropout, generator),)

    def finish(self, sample: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        return ((sample / 2 + 0.5).clamp(0, 1),)


class ConcatUNet(nn.Module):
    """diffusers' UNet on [noisy image, one channel for each class]."""

    def __init__(self, preset: UNetPreset, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.unet = diffusers_unet(preset, in_channels=1 + classes, out_channels=1)

    def forward(self, state: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = self.unet(torch.cat([state, one_hot(mask, self.classes, state.dtype)], dim=1), t).sample
        return out


class ControlledUNet(nn.Module):
    """MONAI's UNet and its ControlNet as one network; ``options`` go to both."""

    def __init__(self, preset: ControlPreset, classes: int, coordinates: bool = False, **options: Any) -> None:
        super().__init__()
        options = {**monai_options(preset), **options}
        self.classes, self.coordinates = classes, coordinates
        in_channels = 1 + 2 * coordinates
        self.unet = DiffusionModelUNet(in_channels=in_channels, out_channels=1, **options)
        self.control = ControlNet(
            in_channels=in_channels,
            conditioning_embedding_in_channels=classes,
            conditioning_embedding_num_channels=(preset.control_channels,),  # one entry: it keeps the mask's size
            **options,
        )
        self.control.load_state_dict(self.unet.state_dict(), strict=False)

    def begin_control(self) -> None:
        """The ControlNet begins as the UNet's encoder: Zhang et al. 2023 (arXiv 2302.05543), section 3.1.

        One that has learnt, whose zero convolutions are no longer 0, stays as it is.
        """
        ends = (self.control.controlnet_down_blocks, self.control.controlnet_mid_block)
        if not any(weight.any() for end in ends for weight in end.parameters()):
            self.control.load_state_dict(self.unet.state_dict(), strict=False)

    def forward(self, state: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        if self.coordinates:
            state = placed(state)
        down, middle = self.control(state, t, one_hot(mask, self.classes, state.dtype))
        out: Tensor = self.unet(
            state, t, down_block_additional_residuals=tuple(down), mid_block_additional_residual=middle
        )
        return out
