"""diffusers' schedulers, set up to do what medgen's solver of that name does."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, Protocol
from unittest.mock import patch

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers import scheduling_ddpm
from torch import Tensor

from serving.sampling.solvers import Schedule, solver_table


class Scheduler(Protocol):
    timesteps: Tensor

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> Any:
        """What it returns has ``prev_sample`` and, where the process is a diffusion, ``pred_original_sample``."""
        ...


def make_scheduler(solver: str, schedule: Schedule, clip: float | None, steps: int, networks: int) -> Scheduler | None:
    """A scheduler at the start of a trajectory, or None where diffusers has none for this solver."""
    makers = FLOWS if schedule.process == "flow" else DIFFUSIONS
    if solver not in makers:
        return None
    return TakingTurns([makers[solver](schedule, clip, steps) for _ in range(networks)])


def trained_on(schedule: Schedule) -> dict[str, Any]:
    betas: dict[str, Any] = {"beta_schedule": schedule.kind}
    if schedule.kind not in ("linear", "scaled_linear"):  # of the others not each of its schedulers knows each
        kept = schedule.alphas_cumprod
        betas = {"trained_betas": (1 - kept / np.append(1.0, kept[:-1])).tolist()}
    return {
        "num_train_timesteps": schedule.num_train_timesteps,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        **betas,
        "prediction_type": {"v": "v_prediction"}.get(schedule.prediction, schedule.prediction),
    }


def ddim(schedule: Schedule, clip: float | None, steps: int) -> Scheduler:
    divides = schedule.num_train_timesteps % steps == 0
    kind = DDIMScheduler if divides or schedule.spacing else EvenDDIM
    return one_step(kind, "ddim", schedule, clip, steps, set_alpha_to_one=schedule.ends_clean)


def ddim_clipped(schedule: Schedule, clip: float | None, steps: int) -> Scheduler:
    return NoiseOfClipped(ddim(schedule, clip, steps))


def ddim_clipped_trailing(schedule: Schedule, clip: float | None, steps: int) -> Scheduler:
    return NoiseOfClipped(one_step(EvenDDIM, "ddim_clipped_trailing", schedule, clip, steps))


def ddpm(schedule: Schedule, clip: float | None, steps: int) -> Scheduler:
    return one_step(DDPMScheduler, "ddpm", schedule, clip, steps)


def one_step(
    kind: type[DDIMScheduler | DDPMScheduler],
    solver: str,
    schedule: Schedule,
    clip: float | None,
    steps: int,
    **more: bool,
) -> Scheduler:
    scheduler = kind(**trained_on(schedule), clip_sample=clip is not None, clip_sample_range=clip or 1.0, **more)
    scheduler.set_timesteps(steps)
    scheduler.timesteps = our_times(solver, schedule, steps).long()  # of a divisor of T they are its own
    made: Scheduler = scheduler
    return made


class EvenDDIM(DDIMScheduler):
    """Steps to its next timestep; diffusers' own to the one T // steps below, also where the next is another."""

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, **options: Any) -> Any:
        following = max((t for t in self.timesteps.tolist() if t < timestep), default=-1)
        # T // this is how far diffusers steps down
        self.num_inference_steps = Fraction(self.config.num_train_timesteps, int(timestep) - following)
        return super().step(model_output, timestep, sample, **options)


def dpm_solver(schedule: Schedule, clip: float | None, steps: int) -> Scheduler:
    scheduler = ClippedDPMSolver(**trained_on(schedule))
    scheduler.clip = clip
    scheduler.set_timesteps(timesteps=our_times("dpmpp_2m", schedule, steps).int().tolist())
    return scheduler


def flow_euler(schedule: Schedule, clip: float | None, steps: int) -> Scheduler:
    """Nothing in Euler's step is clipped."""
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=torch.linspace(1, 0, steps + 1)[:-1].tolist())
    return FromNoise(scheduler, our_times("euler", schedule, steps))


def flow_dpm_solver(schedule: Schedule, clip: float | None, steps: int) -> Scheduler:
    scheduler = ClippedDPMSolver(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.clip = clip
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.linspace(1, 0, steps + 1)  # its own begin below 1
    return FromNoise(scheduler, our_times("dpmpp_2m", schedule, steps))


Maker = Callable[[Schedule, float | None, int], Scheduler]
DIFFUSIONS: dict[str, Maker] = {
    "ddim": ddim,
    "ddim_clipped": ddim_clipped,
    "ddim_clipped_trailing": ddim_clipped_trailing,
    "ddpm": ddpm,
    "dpmpp_2m": dpm_solver,
}
FLOWS: dict[str, Maker] = {"euler": flow_euler, "dpmpp_2m": flow_dpm_solver}


def our_times(solver: str, schedule: Schedule, steps: int) -> Tensor:
    return torch.tensor(solver_table(solver, schedule, steps)[:, 0], dtype=torch.float32)


class FromNoise:
    """diffusers' scheduler of a flow: its time runs from 1, noise, to 0, and its networks predict noise - data."""

    def __init__(self, scheduler: Any, timesteps: Tensor) -> None:
        self.timesteps = timesteps
        self._scheduler = scheduler
        self._theirs = iter(scheduler.timesteps)

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> Any:
        return self._scheduler.step(-model_output, next(self._theirs), sample)


class NoiseOfClipped:
    """diffusers' DDIM, which works out the noise again from the estimate that it clipped."""

    def __init__(self, scheduler: Any) -> None:
        self.timesteps = scheduler.timesteps
        self._scheduler = scheduler

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> Any:
        return self._scheduler.step(model_output, timestep, sample, use_clipped_model_output=True)


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


@contextmanager
def ancestral_noise(noise: Tensor) -> Iterator[None]:
    """Within, diffusers' DDPM takes its noise from [B, C, H, W], the next channels at every call."""
    channels = iter(noise.unbind(1))

    def given(shape: tuple[int, ...], **_: Any) -> Tensor:
        return torch.stack(list(itertools.islice(channels, shape[1])), dim=1)

    with patch.object(scheduling_ddpm, "randn_tensor", given):
        yield
