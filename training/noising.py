"""What a denoiser is trained on: data at a random noise level, and what it is to predict there."""

import math

import torch
from torch import Tensor

from serving.sampling.solvers import Schedule, data_weights

FOCUS_SCALE = 0.7  # about a quarter of 1000 timesteps four fifths are then from 120 to 450


def draw_timesteps(
    schedule: Schedule,
    count: int,
    generator: torch.Generator,
    antithetic: bool = True,
    focus: float = 0.0,
    focus_at: float = 0.5,
) -> Tensor:
    """What a network is told of ``count`` noise levels: uniform int64 on 0 .. T-1, for a flow float32 from 0 to T-1.

    antithetic: half of them are drawn, the other half lie as far from the other end, which evens out the loss.
    focus: the share, from 0 to 1, of those that are rather drawn about ``focus_at`` of T, inside 0 to 1: logit-normal
    with that median and scale ``FOCUS_SCALE`` (Esser et al. 2024, arXiv 2403.03206, eq. 19).
    """
    drawn = (count + 1) // 2 if antithetic else count
    last = schedule.num_train_timesteps - 1
    if schedule.process == "flow":
        t = torch.rand(drawn, generator=generator) * last
    else:
        t = torch.randint(last + 1, (drawn,), generator=generator)
    pair = [t, last - t]
    if focus:
        away = FOCUS_SCALE * torch.randn(drawn, generator=generator)
        is_focused = torch.rand(drawn, generator=generator) < focus
        median = math.log(focus_at / (1 - focus_at))
        for k, logit in enumerate([median + away, median - away]):
            share = torch.sigmoid(logit)
            about = share * last if schedule.process == "flow" else (share * (last + 1)).long()
            pair[k] = torch.where(is_focused, about, pair[k])
    return torch.cat(pair)[:count] if antithetic else pair[0]


def noised(schedule: Schedule, data: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """The states of data [B, C, H, W] at t [B], and the output that is right there, both [B, C, H, W].

    Diffusion: Ho et al. 2020 (arXiv 2006.11239), eq. 4, with noise or the data as the target, or v of Salimans and Ho
    2022 (arXiv 2202.00512), appendix D. A flow: the straight path of Lipman et al. 2023 (arXiv 2210.02747), eq. 22 and
    23, with no noise left in the data.
    """
    alpha, sigma = levels(schedule, t.to(data.device))
    state = alpha * data + sigma * noise
    targets = {
        "epsilon": noise,
        "v": alpha * noise - sigma * data,
        "sample": data,
        "velocity": data - noise,
    }
    return state, targets[schedule.prediction]


def estimate(schedule: Schedule, state: Tensor, out: Tensor, t: Tensor) -> Tensor:
    """The data [B, C, H, W], given states at t [B] and what a network predicted there: as a solver's step has it."""
    p, q = data_weights(schedule.prediction, *levels(schedule, t))
    return p * state + q * out


def levels(schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of t [B], each float32 [B, 1, 1, 1]."""
    if schedule.process == "flow":
        alpha = (t / (schedule.num_train_timesteps - 1)).view(-1, 1, 1, 1)
        return alpha, 1 - alpha
    alpha_bar = torch.from_numpy(schedule.alphas_cumprod).to(t.device)[t].view(-1, 1, 1, 1)
    return alpha_bar.sqrt().float(), (1 - alpha_bar).sqrt().float()
