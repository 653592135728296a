"""dcgan: images from a latent by transposed convolutions.

Radford et al. 2016 (arXiv 1511.06434), at 256 pixels as Jiao et al. 2023 (dm-GAN, doi 10.3934/mbe.2023863) compare with
it: they do not say how they enlarged it, here two more layers halve the features again. Latents are normal, as medgen's
noise is, the authors' uniform; kernels have 4 x 4 pixels, theirs 5 x 5, which stride 2 covers unevenly.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import ClassVar

from torch import nn

from training.adversarial import Adversarial, AdversarialPreset, frozen_statistics
from training.family import Preset

SMALLEST = 4  # rows and columns that the first layer makes of a latent


@dataclasses.dataclass(frozen=True, kw_only=True)
class DcganPreset(AdversarialPreset):
    """Adds the networks' shape."""

    latent: int
    widths: tuple[int, ...]  # of the generator's features at 4 x 4, 8 x 8, ...; the discriminator has them backwards

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent < 1 or min(self.widths, default=0) < 1:
            raise ValueError(
                f"preset fields 'latent' and 'widths' are {self.latent} and {self.widths}; all must be at least 1"
            )
        if self.size != (size := SMALLEST << len(self.widths)):
            raise ValueError(f"preset field 'size' is {self.size}; {len(self.widths)} widths make {size}")
        if self.batch < 2:
            raise ValueError(f"preset field 'batch' is {self.batch}; batch norms need at least 2")


# fmt: off
PRESETS = {
    "paper": DcganPreset(                       # 12.82 M parameters, and 11.19 M of the discriminator
        size=256, latent=100, widths=(1024, 512, 256, 128, 64, 32), objective="non_saturating", penalty=0.0,
        batch=128, steps=(25_000,), learning_rate=2e-4, betas=(0.5, 0.999), lr_schedule="constant",
        weight_decay=0.0, ema_decay=0.0),
    "small": DcganPreset(                       # 0.58 M parameters, and 0.39 M of the discriminator
        size=64,  latent=64,  widths=(192, 96, 48, 24), objective="non_saturating", penalty=0.0,
        batch=16, steps=(8_000,),   learning_rate=2e-4, betas=(0.5, 0.999), lr_schedule="constant",
        weight_decay=0.0, ema_decay=0.995),
}
# fmt: on


def generator(latent: int, widths: Sequence[int]) -> nn.Sequential:
    """Latents [B, latent, 1, 1] -> pictures [B, 1, S, S] in (-1, 1)."""
    layers: list[nn.Module] = [nn.ConvTranspose2d(latent, widths[0], SMALLEST, bias=False)]
    for width, following in pairwise(widths):
        layers += [frozen_statistics(width), nn.ReLU(), nn.ConvTranspose2d(width, following, 4, 2, 1, bias=False)]
    return nn.Sequential(
        *layers, frozen_statistics(widths[-1]), nn.ReLU(), nn.ConvTranspose2d(widths[-1], 1, 4, 2, 1), nn.Tanh()
    )


def discriminator(widths: Sequence[int]) -> nn.Sequential:
    """Pictures [B, 1, S, S] -> scores [B, 1, 1, 1]; ``widths`` from the largest features to those of 4 x 4 pixels."""
    layers: list[nn.Module] = [nn.Conv2d(1, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
    for width, following in pairwise(widths):
        norm = nn.BatchNorm2d(following, track_running_stats=False)
        layers += [nn.Conv2d(width, following, 4, 2, 1, bias=False), norm, nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, SMALLEST))


def begin_small(module: nn.Module) -> None:
    """Section 4: normal weights with a deviation of 0.02."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


class Dcgan(Adversarial):
    """The state is the latent."""

    name: ClassVar[str] = "dcgan"
    presets: ClassVar[Mapping[str, Preset]] = PRESETS

    preset: DcganPreset

    def __init__(self, preset: DcganPreset) -> None:
        super().__init__()
        self.describe(preset, preset.latent)
        self.generator = generator(preset.latent, preset.widths)
        self.discriminator = discriminator(preset.widths[::-1])
        self.apply(begin_small)
