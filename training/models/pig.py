"""PIG: paired image generation by two diffusion processes that guide each other.

Zhang et al., "Paired Image Generation with Diffusion-Guided Diffusion Models", MICCAI 2025 (arXiv 2507.14833). x is the
lesion mask, y the image; both are one channel in [-1, 1]. At every step the guider denoises x with y_t beside it, and
its estimate of x_0 guides the generator, which denoises y at the same t.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from torch import Tensor, nn

from training.breast_families import EPSILON, V, image_output, mask_output
from training.family import Batch, Family, Network, Preset
from training.noising import draw_timesteps, estimate, noised
from training.unets import UNetPreset, diffusers_unet


@dataclasses.dataclass(frozen=True)
class PigPreset(UNetPreset):
    """Adds what the paper leaves open."""

    binarise_guide: Literal["never", "sampling", "always"]  # the authors' code does it only when sampling
    antithetic: bool  # half of a batch at t, the other half at T-1-t
    lesion_weight: bool  # weigh the generator's loss by the sigmoid of the mask estimate
    time_embedding: Literal["ddpm", "diffusers"] = "diffusers"  # the first is the authors'; see ``TIME_EMBEDDINGS``


# [sin, cos] of frequencies 10000**(-i / (half - 1)), as in Ho et al. 2020, or [cos, sin] of 10000**(-i / half).
TIME_EMBEDDINGS: Mapping[str, Mapping[str, Any]] = {
    "ddpm": {"flip_sin_to_cos": False, "freq_shift": 1},
    "diffusers": {"flip_sin_to_cos": True, "freq_shift": 0},
}

# `small` predicts v (Salimans and Ho 2022, appendix D): a short run learns where things are from the noisiest states,
# and there an estimate of the data taken from predicted noise is the network's error times a hundred. Its batches are
# large because where a mass is, and that it is one, is decided within a fifth of the noise levels: of a batch of 8 one
# or two samples told of it, and after 112,000 samples a quarter of the pairs had two masses or none; with batches of
# 128, after 77,000, one in twelve.
# fmt: off
PRESETS = {
    "paper": PigPreset(                         # 7,125,409 parameters a network
        size=512, widths=(32, 32, 64, 64, 128, 128), attention=(5,),   layers=2, head_dim=128, norm_groups=32,
        schedule=EPSILON, clip=None, default_solver="ddim",     default_steps=256,
        batch=6,  steps=(186_000, 186_000), learning_rate=2e-4, lr_schedule="constant",
        weight_decay=0.0, ema_decay=0.9999,
        binarise_guide="sampling", antithetic=True, lesion_weight=True, time_embedding="ddpm"),
    "small": PigPreset(                         # 1,818,465 parameters a network
        size=64,  widths=(16, 32, 64, 96),           attention=(2, 3), layers=1, head_dim=32,  norm_groups=8,
        schedule=V,       clip=1.0,  default_solver="unipc",    default_steps=16,
        batch=128, steps=(1_350, 1_030),    learning_rate=1.5e-3, lr_schedule="cosine",
        weight_decay=0.0, ema_decay=0.999,
        binarise_guide="never",    antithetic=True, lesion_weight=True),
}
# fmt: on


def unet(preset: PigPreset) -> UNet2DModel:
    """One of the two networks: [noisy, guide] [B, 2, H, W] and t [B] -> noise or v [B, 1, H, W]."""
    # pads right and below only, as the authors' stride-2 convolutions do
    embedding = TIME_EMBEDDINGS[preset.time_embedding]
    return diffusers_unet(preset, in_channels=2, out_channels=1, norm_eps=1e-6, downsample_padding=0, **embedding)


def binarise(x0: Tensor) -> Tensor:
    """A mask estimate [B, 1, H, W] -> {-1, 1}, as the authors do: smooth, then cut at 3/4 of each image's own range."""
    smooth = F.avg_pool2d(x0.clamp(-1, 1), kernel_size=5, stride=1, padding=2, count_include_pad=False)
    threshold = 0.75 * smooth.amax((1, 2, 3), keepdim=True) + 0.25 * smooth.amin((1, 2, 3), keepdim=True)
    return torch.where(smooth > threshold, 1.0, -1.0)


class Pig(Family):
    """The state stacks [mask, image] as channels."""

    name: ClassVar[str] = "pig"
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    phases: ClassVar[tuple[str, ...]] = ("guider", "generator")

    preset: PigPreset

    def __init__(self, preset: PigPreset) -> None:
        super().__init__()
        self.preset = preset
        self.guider = unet(preset)
        self.generator = unet(preset)
        self._given: Tensor | None = None
        self.sample_shape = (2, preset.size, preset.size)
        self.outputs = (mask_output(preset.size), image_output(preset.size))

    # --- one denoising step (the paper's Algorithm 2) ---

    def guide(self, x0: Tensor) -> Tensor:
        """What the generator sees of the guider's estimate of the mask."""
        if self._given is not None:
            x0 = self._given
        if self.preset.clip is not None:
            x0 = x0.clamp(-self.preset.clip, self.preset.clip)
        wanted = ("always",) if self.training else ("always", "sampling")
        return binarise(x0) if self.preset.binarise_guide in wanted else x0

    @property
    def has_threshold(self) -> bool:
        return self.preset.binarise_guide != "never"

    @contextmanager
    def deciding_by(self, estimate: Tensor) -> Iterator[None]:
        self._given = estimate.chunk(2, dim=1)[0]
        try:
            yield
        finally:
            self._given = None

    def network(self, sample: Tensor, coeffs: Tensor, condition: Tensor | None = None) -> Tensor:
        x, y = sample.chunk(2, dim=1)
        t = coeffs[:, 0]
        p, q = coeffs[:, 1].view(-1, 1, 1, 1), coeffs[:, 2].view(-1, 1, 1, 1)
        out_x = self.guider(torch.cat([x, y], dim=1), t).sample
        guide = self.guide(p * x + q * out_x)
        out_y = self.generator(torch.cat([y, guide], dim=1), t).sample
        return torch.cat([out_x, out_y], dim=1)

    def finish(self, sample: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        x, y = sample.chunk(2, dim=1)
        return (x > 0).to(torch.uint8), (y / 2 + 0.5).clamp(0, 1)

    # --- training ---

    def trainable(self, phase: str) -> nn.Module:
        return {"guider": self.guider, "generator": self.generator}[phase]

    def data(self, batch: Batch) -> Tensor:
        return torch.cat([batch["mask"] * 2.0 - 1.0, batch["image"]], dim=1)

    def loss(self, phase: str, batch: Batch, generator: torch.Generator) -> Tensor:
        """The guider's loss is Algorithm 1; the generator learns on the frozen guider's estimate at the same t."""
        schedule = self.preset.schedule
        data = self.data(batch)
        t = draw_timesteps(schedule, len(data), generator, self.preset.antithetic).to(data.device)
        noise = torch.randn(data.shape, generator=generator).to(data.device)
        state, target = noised(schedule, data, noise, t)
        (x, y), (target_x, target_y) = state.chunk(2, dim=1), target.chunk(2, dim=1)
        if phase == "guider":
            return F.mse_loss(self.guider(state, t).sample.float(), target_x)
        with torch.no_grad():
            guide = self.guide(estimate(schedule, x, self.guider(state, t).sample.float(), t))
        out = self.generator(torch.cat([y, guide], dim=1), t).sample.float()
        error = (out - target_y).square()
        return (error * guide.sigmoid()).mean() if self.preset.lesion_weight else error.mean()

    # --- the loop as users write it by hand ---

    def networks(self) -> dict[str, nn.Module]:
        return {"guider": Sample(self.guider), "generator": Sample(self.generator)}

    def scheduler_step(
        self,
        networks: Mapping[str, Network],
        scheduler: Any,
        t: Tensor,
        sample: Tensor,
        condition: Tensor | None = None,
    ) -> Tensor:
        x, y = sample.chunk(2, dim=1)
        out_x = networks["guider"](torch.cat([x, y], dim=1), t)
        step_x = scheduler.step(out_x, t, x)
        is_flow = self.preset.schedule.process == "flow"  # whose schedulers do not tell their estimate of the data
        guide = self.guide(estimate(self.preset.schedule, x, out_x, t) if is_flow else step_x.pred_original_sample)
        step_y = scheduler.step(networks["generator"](torch.cat([y, guide], dim=1), t), t, y)
        return torch.cat([step_x.prev_sample, step_y.prev_sample], dim=1)


class Sample(nn.Module):
    """A diffusers network that returns its tensor bare."""

    def __init__(self, network: UNet2DModel) -> None:
        super().__init__()
        self.network = network

    def forward(self, noisy: Tensor, t: Tensor) -> Tensor:
        return self.network(noisy, t).sample
