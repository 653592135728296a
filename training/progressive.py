"""The networks of progressive growing: Karras et al. 2018 (arXiv 1710.10196), section 2 to 4 and appendix A.

Their parameters have the names, shapes and scale that genforce publishes (github.com/genforce/genforce), so its weights
can be loaded: ``layer0`` .. and ``output0`` .. of a generator, counted from 4 x 4 up, ``input0`` .. and ``layer0`` ..
of a discriminator, counted from the largest size down. ``widths`` are the features at 4 x 4, 8 x 8 and so on to the
size of the pictures. ``stage`` k draws or judges pictures of 4 * 2^k pixels; while it is faded in, it has the share
``fade`` of 0 to 1, and the stage before has the rest.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST = 4  # rows and columns of stage 0
GAIN = math.sqrt(2)  # He's, of layers with a leaky ReLU


def pixel_norm(features: Tensor) -> Tensor:
    """Each pixel's features [B, C, H, W] over their root mean square: section 4.2."""
    return features / (features.square().mean(1, keepdim=True) + 1e-8).sqrt()


def doubled(pictures: Tensor) -> Tensor:
    """Nearest neighbours, [B, C, 2H, 2W]."""
    return F.interpolate(pictures, scale_factor=2.0, mode="nearest")


def halved(pictures: Tensor) -> Tensor:
    """Averages, [B, C, H/2, W/2]."""
    return F.avg_pool2d(pictures, 2)


def minibatch_deviation(features: Tensor, group: int) -> Tensor:
    """Features [B, C, H, W] with one more channel: how far a group's samples differ, the same for all of its pixels.

    The mean over features and pixels of the standard deviation over the group: section 3. Sample k is in the group with
    those at k plus multiples of B / group; ``group`` becomes the largest divisor of B that is not above it.
    """
    count, channels, height, width = features.shape
    size = next(size for size in range(min(group, count), 0, -1) if count % size == 0)
    grouped = features.view(size, -1, channels, height, width)
    deviation = (grouped.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
    return torch.cat([features, deviation.repeat(size).view(-1, 1, 1, 1).expand(-1, 1, height, width)], dim=1)


class Scaled(nn.Module):
    """A layer of equalised learning rate, section 4.1: standard normal weights, times He's constant at each use."""

    def __init__(self, shape: Sequence[int], gain: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape))
        self.bias = nn.Parameter(torch.zeros(shape[0]))
        self.scale = gain / math.sqrt(math.prod(shape[1:]))


class Conv(Scaled):
    """[B, C, H, W], padded to keep its size unless ``padding`` says otherwise."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 3, gain: float = GAIN, padding: int | None = None
    ) -> None:
        super().__init__((out_channels, in_channels, kernel, kernel), gain)
        self.padding = kernel // 2 if padding is None else padding

    def forward(self, features: Tensor) -> Tensor:
        return F.conv2d(features, self.weight * self.scale, self.bias, padding=self.padding)


class Dense(Scaled):
    """[B, C]."""

    def __init__(self, in_features: int, out_features: int, gain: float = GAIN) -> None:
        super().__init__((out_features, in_features), gain)

    def forward(self, features: Tensor) -> Tensor:
        return F.linear(features, self.weight * self.scale, self.bias)


class Generator(nn.Module):
    """Latents [B, latent] -> pictures [B, channels, S, S], without a bound; data are in [-1, 1].

    ``head`` and ``tail`` cut it after any of its layers, of which each stage has two: a composing layer in the sense of
    Gu et al. 2020 (arXiv 1912.07116), whose layer 8 of 256 x 256 pixels has features [B, 512, 32, 32].
    """

    def __init__(self, latent: int, widths: Sequence[int], channels: int = 1) -> None:
        super().__init__()
        self.stages = len(widths)
        self.layers = 2 * self.stages
        for stage, width in enumerate(widths):
            below = widths[stage - 1] if stage else latent
            first = Conv(below, width) if stage else Conv(below, width, SMALLEST, padding=SMALLEST - 1)
            self.add_module(f"layer{2 * stage}", first)
            self.add_module(f"layer{2 * stage + 1}", Conv(width, width))
            self.add_module(f"output{stage}", Conv(width, channels, 1, gain=1.0))

    def head(self, latents: Tensor, layers: int) -> Tensor:
        """Latents [B, latent] -> the features [B, C, H, W] after the first so many layers, 1 to ``self.layers``."""
        return self.between(pixel_norm(latents[:, :, None, None]), 0, layers)

    def tail(self, features: Tensor, layers: int) -> Tensor:
        """The features after so many layers -> pictures of the last stage."""
        return self.picture(self.between(features, layers, self.layers), self.stages - 1)

    def between(self, features: Tensor, start: int, end: int) -> Tensor:
        """Features after ``start`` layers -> features after ``end`` of them."""
        for number in range(start, end):
            features = pixel_norm(features)
            if number and number % 2 == 0:
                features = doubled(features)
            features = F.leaky_relu(self.get_submodule(f"layer{number}")(features), 0.2)
        return features

    def picture(self, features: Tensor, stage: int) -> Tensor:
        """The features at the end of a stage as pictures of its size."""
        shown: Tensor = self.get_submodule(f"output{stage}")(pixel_norm(features))
        return shown

    def forward(self, latents: Tensor, stage: int | None = None, fade: float = 1.0) -> Tensor:
        """Pictures of a stage's size, of the last one if None."""
        stage = self.stages - 1 if stage is None else stage
        if stage == 0 or fade == 1:
            return self.picture(self.head(latents, 2 * stage + 2), stage)
        before = self.head(latents, 2 * stage)
        coarse = doubled(self.picture(before, stage - 1))
        return torch.lerp(coarse, self.picture(self.between(before, 2 * stage, 2 * stage + 2), stage), fade)


class Discriminator(nn.Module):
    """Pictures [B, channels, S, S] of a stage's size -> scores [B, 1] without a bound: more is more real."""

    def __init__(self, widths: Sequence[int], channels: int = 1, group: int = 16) -> None:
        super().__init__()
        self.stages, self.group = len(widths), group
        for stage, width in enumerate(widths):
            place = self.stages - 1 - stage
            self.add_module(f"input{place}", Conv(channels, width, 1))
            if stage:
                self.add_module(f"layer{2 * place}", Conv(width, width))
                self.add_module(f"layer{2 * place + 1}", Conv(width, widths[stage - 1]))
            else:
                self.add_module(f"layer{2 * place}", Conv(width + 1, width))
                self.add_module(f"layer{2 * place + 1}", Dense(width * SMALLEST**2, width))
                self.add_module(f"layer{2 * place + 2}", Dense(width, 1, gain=1.0))

    def layer(self, number: int, features: Tensor) -> Tensor:
        return F.leaky_relu(self.get_submodule(f"layer{number}")(features), 0.2)

    def seen(self, pictures: Tensor, stage: int) -> Tensor:
        """Pictures as the features that a stage begins with."""
        return F.leaky_relu(self.get_submodule(f"input{self.stages - 1 - stage}")(pictures), 0.2)

    def forward(self, pictures: Tensor, stage: int | None = None, fade: float = 1.0) -> Tensor:
        stage = self.stages - 1 if stage is None else stage
        features = self.seen(pictures, stage)
        for level in range(stage, 0, -1):
            place = self.stages - 1 - level
            features = halved(self.layer(2 * place + 1, self.layer(2 * place, features)))
            if level == stage and fade != 1:
                features = torch.lerp(self.seen(halved(pictures), stage - 1), features, fade)
        last = 2 * (self.stages - 1)
        features = self.layer(last, minibatch_deviation(features, self.group)).flatten(1)
        scores: Tensor = self.get_submodule(f"layer{last + 2}")(self.layer(last + 1, features))
        return scores
