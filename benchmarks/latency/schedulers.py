"""diffusers' schedulers, set up to do what medgen's solver of that name does."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, Protocol
from unittest.mock import patch

import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from diffusers.schedulers import scheduling_ddpm
from torch import Tensor

from serving.solvers import Schedule, solver_table


class Scheduler(Protocol):
    timesteps: Tensor

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> Any:
        """What it returns has ``prev_sample`` and ``pred_original_sample``."""
        ...


def make_scheduler(solver: str, schedule: Schedule, clip: float | None, steps: int, networks: int) -> Scheduler | None:
    """A scheduler at the start of a trajectory, or None where diffusers has none for this solver."""
    if schedule.process != "diffusion" or solver not in ("ddim", "ddpm", "dpmpp_2m"):
        return None
    training = {
        "num_train_timesteps": schedule.num_train_timesteps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": schedule.kind,
        "prediction_type": {"epsilon": "epsilon", "v": "v_prediction"}[schedule.prediction],
    }
    if solver == "dpmpp_2m":
        timesteps = solver_table(solver, schedule, steps)[:, 0].astype(int).tolist()
        return TakingTurns([clipped_dpm_solver(training, clip, timesteps) for _ in range(networks)])
    scheduler = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[solver](
        **training, clip_sample=clip is not None, clip_sample_range=clip or 1.0
    )
    scheduler.set_timesteps(steps)
    return scheduler


class TakingTurns:
    """One scheduler per network: a multistep scheduler must see the states of its own trajectory alone."""

    def __init__(self, schedulers: Sequence[Scheduler]) -> None:
        self.timesteps = schedulers[0].timesteps
        self._turn = itertools.cycle(schedulers)

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> Any:
        return next(self._turn).step(model_output, timestep, sample)


class ClippedDPMSolver(DPMSolverMultistepScheduler):
    """Clips its estimate of the data, and tells it, as diffusers' other schedulers do."""

    clip: float | None = None

    def convert_model_output(self, *args: Any, **kwargs: Any) -> Tensor:
        x0 = super().convert_model_output(*args, **kwargs)
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> Any:
        prev_sample = super().step(model_output, timestep, sample).prev_sample
        return SimpleNamespace(prev_sample=prev_sample, pred_original_sample=self.model_outputs[-1])


def clipped_dpm_solver(training: dict[str, Any], clip: float | None, timesteps: list[int]) -> Scheduler:
    scheduler = ClippedDPMSolver(**training)
    scheduler.clip = clip
    scheduler.set_timesteps(timesteps=timesteps)
    return scheduler


@contextmanager
def ancestral_noise(noise: Tensor) -> Iterator[None]:
    """Within, diffusers' DDPM takes its noise from [B, C, H, W], the next channels at every call."""
    channels = iter(noise.unbind(1))

    def given(shape: tuple[int, ...], **_: Any) -> Tensor:
        return torch.stack(list(itertools.islice(channels, shape[1])), dim=1)

    with patch.object(scheduling_ddpm, "randn_tensor", given):
        yield
