"""What the cardiac families have in common: the classes of their masks, and what they take and give.

Edirisooriya et al., "Balancing Fidelity, Utility, and Privacy in Synthetic Cardiac MRI Generation": a mask model draws
the classes, and one of three image models the picture under them.
"""

import dataclasses

import torch
from torch import Tensor

from serving.bundle import Condition, Output
from training.data.classes import FIELD_OF_VIEW, HEART
from training.denoiser import Denoiser
from training.family import Batch
from training.unets import UNetPreset

CLASSES = len(HEART)


def one_hot(mask: Tensor, dtype: torch.dtype = torch.float32, classes: int = CLASSES) -> Tensor:
    """Class indices uint8 [B, 1, H, W] -> [B, classes, H, W] of 0 and 1."""
    indices = torch.arange(classes, dtype=torch.float32, device=mask.device).view(1, -1, 1, 1)
    return (mask.float() == indices).to(dtype)  # float32, as TensorRT compares no uint8


def without_classes(mask: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """The mask uint8 [B, 1, H, W] with each class of each sample turned into background with this probability.

    Konz et al. 2024 (arXiv 2402.05210), mask-ablated training; they draw once for a whole batch.
    """
    kept = torch.rand(len(mask), CLASSES, generator=generator).to(mask.device) >= share
    return mask * kept.gather(1, mask.flatten(1).long()).view(mask.shape)


def mask_output(size: int) -> Output:
    """Class indices uint8 [1, size, size]."""
    return Output("mask", "uint8", (1, size, size), low=0, high=CLASSES - 1, labels=HEART, spacing=spacing(size))


def image_output(size: int) -> Output:
    """Grey levels float32 [1, size, size] in [0, 1]."""
    return Output("image", "float32", (1, size, size), low=0.0, high=1.0, spacing=spacing(size), modality="MR")


def spacing(size: int) -> tuple[float, float]:
    """Millimetres between the pixels of a heart that is drawn in ``size`` rows and columns."""
    pixel = FIELD_OF_VIEW / size
    return pixel, pixel


@dataclasses.dataclass(frozen=True)
class PainterPreset(UNetPreset):
    """Adds the share of classes that training leaves out of the masks."""

    mask_dropout: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mask_dropout <= 1:
            raise ValueError(f"preset field 'mask_dropout' is {self.mask_dropout}; it must be from 0 to 1")


class HeartPainter(Denoiser):
    """An image under a mask; its state is the image in [-1, 1], unless the family says otherwise."""

    preset: PainterPreset

    @property
    def labels(self) -> tuple[str, ...]:
        return HEART

    def describe(self, preset: PainterPreset) -> None:
        """Say what goes in and what comes out."""
        size = preset.size
        self.preset = preset
        self.sample_shape = (1, size, size)
        self.condition = Condition("mask", (1, size, size), CLASSES, HEART, spacing(size))
        self.outputs = (image_output(size),)

    def data(self, batch: Batch) -> Tensor:
        return batch["image"]

    def training_condition(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, ...]:
        if not self.preset.mask_dropout:
            return (batch["mask"],)
        return (without_classes(batch["mask"], self.preset.mask_dropout, generator),)

    def finish(self, sample: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        return ((sample / 2 + 0.5).clamp(0, 1),)
