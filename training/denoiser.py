"""Families whose step holds one network."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.family import Batch, Family, Network, SteppingPreset
from training.noising import draw_timesteps, noised


class Denoiser(Family):
    """A family with one network, which its last phase trains to predict what ``noised`` says.

    Half of a batch is at timesteps drawn uniformly, the other half mirrors them, whatever the paper: the loss has the
    same mean and less variance.
    """

    phases: ClassVar[tuple[str, ...]] = ("denoiser",)

    preset: SteppingPreset
    denoiser: nn.Module  # (state [B, C, H, W], t [B]) or, with a condition, (state, t, mask uint8 [B, 1, H, W])

    def network(self, sample: Tensor, coeffs: Tensor, condition: Tensor | None = None) -> Tensor:
        out: Tensor = self.denoiser(sample, coeffs[:, 0], *given(condition))
        return out

    def trainable(self, phase: str) -> nn.Module:
        return self.denoiser

    def loss(self, phase: str, batch: Batch, generator: torch.Generator) -> Tensor:
        data = self.data(batch)
        t = self.timesteps(len(data), generator).to(data.device)
        noise = torch.randn(data.shape, generator=generator).to(data.device)
        state, target = noised(self.preset.schedule, data, noise, t)
        out = self.predicted(phase, state, t, batch, generator)
        return F.mse_loss(out.float(), target)

    def timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Those of a batch that the network learns from."""
        return draw_timesteps(self.preset.schedule, count, generator)

    def predicted(self, phase: str, state: Tensor, t: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        """What the network that a phase trains makes of noisy states [B, C, H, W]."""
        out: Tensor = self.denoiser(state, t, *self.training_condition(batch, generator))
        return out

    def networks(self) -> dict[str, nn.Module]:
        return {"denoiser": self.denoiser}

    def scheduler_step(
        self,
        networks: Mapping[str, Network],
        scheduler: Any,
        t: Tensor,
        sample: Tensor,
        condition: Tensor | None = None,
    ) -> Tensor:
        out = networks["denoiser"](sample, t.expand(len(sample)), *given(condition))
        state: Tensor = scheduler.step(out, t, sample).prev_sample
        return state


def given(condition: Tensor | None) -> tuple[Tensor, ...]:
    return () if condition is None else (condition,)
