"""Every table against diffusers or the paper's own formula, against exact solutions, and at its edges."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)

from benchmarks.latency.diffusers_schedulers import EvenDDIM
from serving.sampling.solvers import COLUMNS, HISTORY, SOLVERS, Schedule, ddim, longest_table, solver_table, solvers_for

SHAPE = (2, 1, 4, 4)
LINEAR = ("linear", 1000, 1e-4, 0.02)
SCALED = ("scaled_linear", 1000, 0.00085, 0.012)
SCHEDULES = [Schedule(*noise, prediction) for noise in (LINEAR, SCALED) for prediction in ("epsilon", "v")]
FLOW = Schedule("flow", 1000, 0.0, 0.0, "velocity")
SMALL = Schedule("linear", 40, 1e-3, 0.3, "epsilon")
SMALL_V = Schedule("scaled_linear", 40, 1e-3, 0.3, "v")
SMALL_FLOW = Schedule("flow", 40, 0.0, 0.0, "velocity")
STEPS = (1, 2, 3, 5, 8, 16, 50)
CLIPS = (math.inf, 1.0)

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.kind}-{s.prediction}")
every_steps = pytest.mark.parametrize("steps", STEPS)
every_clip = pytest.mark.parametrize("clip", CLIPS)

Network = Callable[[np.ndarray, float], np.ndarray]


def column(table: np.ndarray, name: str) -> np.ndarray:
    return table[:, COLUMNS.index(name)]


def trajectory(
    table: np.ndarray, sample: np.ndarray, network: Network, clip: float = math.inf, noises: np.ndarray | None = None
) -> list[np.ndarray]:
    """The states after each row, by the contract's own arithmetic."""
    history = [np.zeros_like(sample)] * HISTORY
    states = []
    for i, (t, p, q, a, b, c, s, m, n, *d) in enumerate(table):
        out = network(sample, t)
        x0 = np.clip(p * sample + q * out, -clip, clip)
        sample = a * sample + b * x0 + c * out + sum(weight * h for weight, h in zip(d, history, strict=True))
        if s:
            assert noises is not None, f"row {i} draws noise"
            sample = sample + s * noises[i]
        history = [m * x0 + n * out, *history[:-1]]
        states.append(sample)
    return states


def replayed(outs: np.ndarray) -> Network:
    """A network that gives these outputs one after the other, whatever it is asked."""
    remaining = iter(outs)
    return lambda sample, t: next(remaining)


def arbitrary(steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A start, one model output per step and one noise per step: random, and the same on every call."""
    rng = np.random.default_rng(steps)
    return rng.standard_normal(SHAPE), rng.standard_normal((steps, *SHAPE)), rng.standard_normal((steps, *SHAPE))


def assert_same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    assert len(ours) == len(theirs)
    for i, (state, reference) in enumerate(zip(ours, theirs, strict=True)):
        error = np.abs(state - reference).max() / np.abs(reference).max()
        assert error < 1e-5, f"row {i} of {len(ours)} is off by {error:.1e}"


# Against diffusers


def scheduler_for(kind: type, schedule: Schedule, **options: object):
    """A diffusers scheduler computing in float64, as far as it lets itself be told to."""
    scheduler = kind(
        num_train_timesteps=schedule.num_train_timesteps,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        beta_schedule=schedule.kind,
        prediction_type={"epsilon": "epsilon", "v": "v_prediction"}[schedule.prediction],
        **options,
    )
    ends = schedule.beta_start, schedule.beta_end
    if schedule.kind == "linear":
        scheduler.betas = torch.linspace(*ends, schedule.num_train_timesteps, dtype=torch.float64)
    else:
        roots = (end**0.5 for end in ends)
        scheduler.betas = torch.linspace(*roots, schedule.num_train_timesteps, dtype=torch.float64) ** 2
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, dim=0)
    return scheduler


def diffusers_states(scheduler, sample: np.ndarray, outs: np.ndarray, step: Callable) -> list[np.ndarray]:
    state, states = torch.from_numpy(sample), []
    for i, t in enumerate(scheduler.timesteps):
        state = step(torch.from_numpy(outs[i]), t, state, i).prev_sample
        states.append(state.numpy())
    return states


@every_schedule
def test_alphas_cumprod_are_those_of_diffusers(schedule: Schedule) -> None:
    reference = scheduler_for(DDIMScheduler, schedule).alphas_cumprod.numpy()
    np.testing.assert_allclose(schedule.alphas_cumprod, reference, rtol=1e-12)
    shipped = DDIMScheduler(1000, schedule.beta_start, schedule.beta_end, schedule.kind).alphas_cumprod.numpy()
    np.testing.assert_allclose(schedule.alphas_cumprod, shipped, rtol=1e-4)  # float32 betas


def spacing(steps: int) -> str:
    """Of 1000 timesteps."""
    return "leading" if steps > 1 and 1000 % steps == 0 else "trailing"


@every_schedule
@every_clip
@pytest.mark.parametrize("steps", [*STEPS, 256, 1000])
def test_ddpm_is_that_of_diffusers(
    schedule: Schedule, steps: int, clip: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, outs, noises = arbitrary(steps)
    scheduler = scheduler_for(DDPMScheduler, schedule, clip_sample=clip < math.inf, timestep_spacing=spacing(steps))
    scheduler.set_timesteps(steps)
    queue = iter(noises)
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: torch.from_numpy(next(queue))
    )
    theirs = diffusers_states(scheduler, sample, outs, lambda out, t, state, i: scheduler.step(out, t, state))
    table = solver_table("ddpm", schedule, steps)
    assert column(table, "t").tolist() == scheduler.timesteps.tolist()
    assert_same(trajectory(table, sample, replayed(outs), clip, noises), theirs)


@every_schedule
@every_clip
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [*STEPS, 256])
def test_ddim_is_that_of_diffusers(schedule: Schedule, steps: int, clip: float, eta: float) -> None:
    sample, outs, noises = arbitrary(steps)
    kind = DDIMScheduler if spacing(steps) == "leading" else EvenDDIM
    scheduler = scheduler_for(kind, schedule, clip_sample=clip < math.inf, timestep_spacing=spacing(steps))
    scheduler.set_timesteps(steps)
    theirs = diffusers_states(
        scheduler,
        sample,
        outs,
        lambda out, t, state, i: scheduler.step(
            out, t, state, eta=eta, variance_noise=torch.from_numpy(noises[i]) if eta else None
        ),
    )
    table = ddim(schedule, steps, eta)
    assert column(table, "t").tolist() == scheduler.timesteps.tolist()
    assert_same(trajectory(table, sample, replayed(outs), clip, noises if eta else None), theirs)


class ClippedDPMSolver(DPMSolverMultistepScheduler):
    """diffusers clips no x0 here; this one does."""

    def convert_model_output(self, *args: object, **options: object) -> torch.Tensor:
        return super().convert_model_output(*args, **options).clamp(-1, 1)


@every_schedule
@every_clip
@pytest.mark.parametrize("steps", [*STEPS, 14, 15, 200])
@pytest.mark.parametrize("order", [2, 3])
def test_dpmpp_is_that_of_diffusers(schedule: Schedule, steps: int, clip: float, order: int) -> None:
    sample, outs, _ = arbitrary(steps)
    kind = ClippedDPMSolver if clip < math.inf else DPMSolverMultistepScheduler
    scheduler = scheduler_for(kind, schedule, solver_order=order)
    table = solver_table(f"dpmpp_{order}m", schedule, steps)
    scheduler.set_timesteps(timesteps=column(table, "t").astype(int).tolist())
    alphas_cumprod = scheduler.alphas_cumprod[scheduler.timesteps]
    scheduler.sigmas = torch.cat([((1 - alphas_cumprod) / alphas_cumprod).sqrt(), torch.zeros(1)])
    theirs = diffusers_states(scheduler, sample, outs, lambda out, t, state, i: scheduler.step(out, t, state))
    assert_same(trajectory(table, sample, replayed(outs), clip), theirs)


class ClippedUniPC(UniPCMultistepScheduler):
    """diffusers clips no x0 here; this one does."""

    def convert_model_output(self, *args: object, **options: object) -> torch.Tensor:
        return super().convert_model_output(*args, **options).clamp(-1, 1)


@every_schedule
@every_clip
@pytest.mark.parametrize("steps", [*STEPS, 200])
def test_unipc_is_that_of_diffusers(schedule: Schedule, steps: int, clip: float) -> None:
    sample, outs, _ = arbitrary(steps)
    kind = ClippedUniPC if clip < math.inf else UniPCMultistepScheduler
    scheduler = scheduler_for(kind, schedule, solver_order=3)
    table = solver_table("unipc", schedule, steps)
    scheduler.set_timesteps(steps)
    scheduler.timesteps = torch.from_numpy(column(table, "t").astype(int))
    alphas_cumprod = scheduler.alphas_cumprod[scheduler.timesteps]
    scheduler.sigmas = torch.cat([((1 - alphas_cumprod) / alphas_cumprod).sqrt(), torch.zeros(1)])
    theirs = diffusers_states(scheduler, sample, outs, lambda out, t, state, i: scheduler.step(out, t, state))
    assert_same(trajectory(table, sample, replayed(outs), clip), theirs)


@every_clip
@every_steps
def test_dpmpp_of_a_flow_is_that_of_diffusers(steps: int, clip: float) -> None:
    """There the time runs from 1, noise, to 0, and networks predict noise - data."""
    sample, outs, _ = arbitrary(steps)
    scheduler = (ClippedDPMSolver if clip < math.inf else DPMSolverMultistepScheduler)(
        prediction_type="flow_prediction", use_flow_sigmas=True
    )
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    theirs = diffusers_states(scheduler, sample, -outs, lambda out, t, state, i: scheduler.step(out, t, state))
    assert_same(trajectory(solver_table("dpmpp_2m", FLOW, steps), sample, replayed(outs), clip), theirs)


# Against the papers


def adams_bashforth(outs: list[np.ndarray]) -> np.ndarray:
    e0, e1, e2, e3 = [*reversed(outs), None, None, None][:4]
    match min(len(outs), 4):
        case 1:
            return e0
        case 2:
            return (3 * e0 - e1) / 2
        case 3:
            return (23 * e0 - 16 * e1 + 5 * e2) / 12
    return (55 * e0 - 59 * e1 + 37 * e2 - 9 * e3) / 24


@every_schedule
@every_clip
@every_steps
def test_ipndm_is_the_papers_formula(schedule: Schedule, steps: int, clip: float) -> None:
    sample, outs, _ = arbitrary(steps)
    table = solver_table("ipndm", schedule, steps)
    timesteps = column(table, "t").astype(int)
    x, theirs = sample, []
    for i, out in enumerate(outs):
        here = schedule.alphas_cumprod[timesteps[i]]
        there = 1.0 if i == steps - 1 else schedule.alphas_cumprod[timesteps[i + 1]]
        mean = out if i == steps - 1 else adams_bashforth(list(outs[: i + 1]))
        if schedule.prediction == "epsilon":  # Liu et al. 2022, eq. 9
            denominator = math.sqrt(here) * (math.sqrt((1 - there) * here) + math.sqrt((1 - here) * there))
            following = math.sqrt(there / here) * x - (there - here) / denominator * mean
            x0 = (x - math.sqrt(1 - here) * out) / math.sqrt(here)
        else:  # dx/d(angle) = v
            angle, turn = math.acos(math.sqrt(here)), math.acos(math.sqrt(here)) - math.acos(math.sqrt(there))
            first_order = i in (0, steps - 1)
            following = math.cos(turn) * x - math.sin(turn) * mean if first_order else x - turn * mean
            x0 = math.cos(angle) * x - math.sin(angle) * out
        x = following + math.sqrt(there) * (np.clip(x0, -clip, clip) - x0)
        theirs.append(x)
    assert_same(trajectory(table, sample, replayed(outs), clip), theirs)


@pytest.mark.parametrize("schedule", SCHEDULES[::2], ids=lambda s: s.kind)
@every_clip
@every_steps
def test_ipndm_is_ddim_while_the_outputs_stay_the_same(schedule: Schedule, steps: int, clip: float) -> None:
    sample, outs, _ = arbitrary(steps)
    table = solver_table("ipndm", schedule, steps)
    x, theirs = sample, []
    for t, next_t in zip(column(table, "t"), [*column(table, "t")[1:], None], strict=True):
        here = schedule.alphas_cumprod[int(t)]
        there = 1.0 if next_t is None else schedule.alphas_cumprod[int(next_t)]
        x0 = np.clip((x - math.sqrt(1 - here) * outs[0]) / math.sqrt(here), -clip, clip)
        x = math.sqrt(there) * x0 + math.sqrt(1 - there) * outs[0]
        theirs.append(x)
    assert_same(trajectory(table, sample, lambda sample, t: outs[0], clip), theirs)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.kind}-{s.prediction}")
@pytest.mark.parametrize("steps", [2, 5, 12, 20])
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m", "unipc", "ipndm"])
def test_timesteps_are_even_in_log_snr(name: str, schedule: Schedule, steps: int) -> None:
    t = column(solver_table(name, schedule, steps), "t").astype(int)
    log_snr = np.log(schedule.alphas_cumprod / (1 - schedule.alphas_cumprod))
    wanted = np.linspace(log_snr[-1], log_snr[0], steps + 1)[:-1]
    gap_to_neighbours = np.abs(np.diff(log_snr))[np.maximum(t - 1, 0)]
    assert t[0] == schedule.num_train_timesteps - 1
    assert (np.abs(log_snr[t] - wanted) <= gap_to_neighbours).all()


@every_steps
def test_euler_is_the_formula(steps: int) -> None:
    sample, outs, _ = arbitrary(steps)
    x, theirs = sample, []
    for out in outs:
        x = x + out / steps
        theirs.append(x)
    table = solver_table("euler", FLOW, steps)
    assert_same(trajectory(table, sample, replayed(outs)), theirs)
    np.testing.assert_allclose(column(table, "t"), 999 * np.arange(steps) / steps)


@every_steps
def test_euler_is_that_of_diffusers(steps: int) -> None:
    """There the time runs from 1, noise, to 0, and networks predict noise - data."""
    sample, outs, _ = arbitrary(steps)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    x, theirs = torch.from_numpy(sample), []
    for t, out in zip(scheduler.timesteps, outs, strict=True):
        x = scheduler.step(torch.from_numpy(-out), t, x).prev_sample
        theirs.append(x.numpy())
    assert_same(trajectory(solver_table("euler", FLOW, steps), sample, replayed(outs)), theirs)


@every_steps
def test_midpoint_is_the_formula(steps: int) -> None:
    sample, outs, _ = arbitrary(2 * steps)
    x, theirs, h = sample, [], 1 / steps
    for halfway, whole in zip(outs[::2], outs[1::2], strict=True):
        theirs += [x + h / 2 * halfway, x + h * whole]
        x = theirs[-1]
    table = solver_table("midpoint", FLOW, steps)
    assert_same(trajectory(table, sample, replayed(outs)), theirs)
    np.testing.assert_allclose(column(table, "t"), 999 * np.arange(2 * steps) / (2 * steps))


@pytest.mark.parametrize("name", solvers_for(FLOW))
def test_flow_estimates_data_along_the_straight_path(name: str) -> None:
    data, noise, _ = np.random.default_rng(0).standard_normal((3, 16))
    table = solver_table(name, FLOW, 6)
    for t, p, q in zip(column(table, "t") / 999, column(table, "p"), column(table, "q"), strict=True):
        np.testing.assert_allclose(p * (t * data + (1 - t) * noise) + q * (data - noise), data)


# Against the exact solution for Gaussian data

MEAN, SPREAD = 0.3, 0.5
STARTS = np.array([-1.5, -0.2, 0.7, 2.0])


def level(schedule: Schedule, t: float) -> tuple[float, float]:
    """How much data and how much noise there is in a sample at the t that a network sees."""
    if schedule.kind == "flow":
        share = t / (schedule.num_train_timesteps - 1)
        return share, 1 - share
    kept = alphas_cumprod(schedule)[int(t)]
    return math.sqrt(kept), math.sqrt(1 - kept)


@cache
def alphas_cumprod(schedule: Schedule) -> np.ndarray:
    return schedule.alphas_cumprod


def gaussian_network(schedule: Schedule) -> Network:
    """What a perfect network answers when the data are normal with MEAN and SPREAD."""

    def network(x: np.ndarray, t: float) -> np.ndarray:
        alpha, sigma = level(schedule, t)
        surprise = (x - alpha * MEAN) / (alpha**2 * SPREAD**2 + sigma**2)
        noise, data = sigma * surprise, MEAN + alpha * SPREAD**2 * surprise
        return {"epsilon": noise, "v": alpha * noise - sigma * data, "velocity": data - noise}[schedule.prediction]

    return network


def gaussian_solution(x: np.ndarray, here: tuple[float, float], there: tuple[float, float]) -> np.ndarray:
    """The probability flow keeps every x at its quantile; here and there are levels."""
    spread_here, spread_there = (math.hypot(alpha * SPREAD, sigma) for alpha, sigma in (here, there))
    return there[0] * MEAN + (x - here[0] * MEAN) * spread_there / spread_here


def error_after(rows: int, table: np.ndarray, schedule: Schedule) -> float:
    """How far the state is from the exact solution when that many rows have run."""
    state = trajectory(table[:rows], STARTS, gaussian_network(schedule))[-1]
    here = level(schedule, table[0, 0])
    there = level(schedule, table[rows, 0]) if rows < len(table) else (1.0, 0.0)
    return float(np.abs(state - gaussian_solution(STARTS, here, there)).max())


def error_on_the_way(name: str, schedule: Schedule, steps: int) -> float:
    """At three quarters of the rows; halfway the error of dpmpp_3m changes its sign."""
    table = solver_table(name, schedule, steps)
    return error_after(3 * len(table) // 4, table, schedule)


def error_at_the_end(name: str, schedule: Schedule, steps: int) -> float:
    table = solver_table(name, schedule, steps)
    return error_after(len(table), table, schedule)


def fine_schedule(prediction: str) -> Schedule:
    """The usual noise in so many timesteps that rounding to whole ones does not show; every 2^k steps divide 2^16."""
    return Schedule("linear", 2**16 + 1, 0.1 / 2**16, 20 / 2**16, prediction)


def orders(errors: list[float]) -> np.ndarray:
    return np.log2(np.array(errors[:-1]) / errors[1:])


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
@pytest.mark.parametrize(
    ("name", "order"), [("ddim", 1), ("ddim_clipped", 1), ("dpmpp_2m", 2), ("dpmpp_3m", 2), ("unipc", 4), ("ipndm", 2)]
)
def test_diffusion_solver_has_its_order(name: str, order: int, prediction: str) -> None:
    """On the way, for the last row, from wherever the timesteps stop to clean data, is first order in every solver."""
    errors = [error_on_the_way(name, fine_schedule(prediction), steps) for steps in (128, 256, 512, 1024)]
    np.testing.assert_allclose(orders(errors), order, atol=0.15)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("dpmpp_2m", 2), ("midpoint", 3)])
def test_flow_solver_has_its_order_on_gaussian_data(name: str, order: int) -> None:
    """midpoint gains an order here: for dx/dt = x V'/(2V), V quadratic in t, the h^3 of its local error is nought."""
    errors = [error_on_the_way(name, FLOW, steps) for steps in (32, 64, 128, 256)]
    np.testing.assert_allclose(orders(errors), order, atol=0.15)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("midpoint", 2)])
def test_flow_solver_has_its_order(name: str, order: int) -> None:
    """On dx/dt = t*x, x(1) = x(0) * exp(1/2)."""
    errors = []
    for steps in (32, 64, 128, 256):
        end = trajectory(solver_table(name, FLOW, steps), STARTS, lambda x, t: level(FLOW, t)[0] * x)[-1]
        errors.append(float(np.abs(end - STARTS * math.exp(0.5)).max()))
    np.testing.assert_allclose(orders(errors), order, atol=0.15)


def test_third_estimate_of_dpmpp_pays() -> None:
    schedule = fine_schedule("epsilon")
    assert error_on_the_way("dpmpp_3m", schedule, 256) < error_on_the_way("dpmpp_2m", schedule, 256) / 2.5


@pytest.mark.parametrize("schedule", [fine_schedule("epsilon"), FLOW], ids=lambda s: s.kind)
@pytest.mark.parametrize("steps", [32, 64, 128])
def test_correcting_pays(schedule: Schedule, steps: int) -> None:
    assert error_on_the_way("unipc", schedule, steps) < error_on_the_way("dpmpp_2m", schedule, steps) / 5


@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        *product(("ddim", "dpmpp_2m", "dpmpp_3m", "unipc", "ipndm"), ("epsilon", "v")),
        *product(("euler", "midpoint", "dpmpp_2m", "unipc"), ["velocity"]),
    ],
)
def test_samples_approach_the_exact_ones(name: str, prediction: str) -> None:
    schedule = FLOW if prediction == "velocity" else fine_schedule(prediction)
    errors = [error_at_the_end(name, schedule, steps) for steps in (8, 32, 128, 512)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01


def distribution_at_the_end(name: str, schedule: Schedule, steps: int) -> tuple[float, float]:
    """Mean and standard deviation of the samples, exactly: every row is affine in x and adds independent noise."""
    mean, variance, network = 0.0, 1.0, gaussian_network(schedule)
    for row in solver_table(name, schedule, steps):
        offset, gain = trajectory(row[None], np.array([0.0, 1.0]), network, noises=np.zeros((1, 2)))[0] @ [
            [1, -1],
            [0, 1],
        ]
        mean, variance = offset + gain * mean, gain**2 * variance + row[COLUMNS.index("s")] ** 2
    return mean, math.sqrt(variance)


@pytest.mark.parametrize("schedule", SCHEDULES[:2], ids=lambda s: s.prediction)
def test_ddpm_samples_are_distributed_like_the_data(schedule: Schedule) -> None:
    off_by = []
    for steps in (50, 100, 200, 1000):
        mean, spread = distribution_at_the_end("ddpm", schedule, steps)
        off_by.append(abs(spread - SPREAD))
        assert mean == pytest.approx(MEAN, abs=0.02)
    assert off_by == sorted(off_by, reverse=True)
    assert off_by[-1] < 0.01


# Tables


@pytest.mark.parametrize("schedule", [SMALL, SMALL_V, SMALL_FLOW], ids=lambda s: s.prediction)
def test_tables_of_every_length(schedule: Schedule) -> None:
    last = schedule.num_train_timesteps - 1
    for name in solvers_for(schedule):
        for steps in range(1, schedule.num_train_timesteps + 1):
            table = solver_table(name, schedule, steps)
            assert table.shape == (2 * steps if name == "midpoint" else steps, len(COLUMNS))
            assert table.dtype == np.float64
            assert table.flags.c_contiguous
            assert not table.flags.writeable
            assert np.isfinite(table.astype(np.float32)).all()
            t = column(table, "t")
            assert ((t >= 0) & (t <= last)).all()
            assert (np.diff(t) > 0).all() if schedule.process == "flow" else (np.diff(t) < 0).all()
            assert column(table, "s").any() == (SOLVERS[name].stochastic and steps > 1)


@pytest.mark.parametrize("timesteps", [40, 1000, 1024])
@pytest.mark.parametrize("name", [*solvers_for(SMALL), "euler", "midpoint"])
def test_a_trajectory_begins_where_the_state_is_noise(name: str, timesteps: int) -> None:
    """At T - 1, or with T / steps left above (of 2 steps, at T / 2, as in diffusers); a flow at 0."""
    schedule = replace(SMALL if name in solvers_for(SMALL) else SMALL_FLOW, num_train_timesteps=timesteps)
    for steps in (1, 2, 3, 7, 25, timesteps // 2 + 1, 2 * timesteps // 3, timesteps - 1, timesteps):
        first = solver_table(name, schedule, steps)[0, 0]
        if schedule.process == "flow":
            assert first == 0
        elif name in ("ddpm", "ddim", "ddim_clipped") and steps > 1 and timesteps % steps == 0:
            assert first == timesteps - timesteps // steps
        else:
            assert first == timesteps - 1


@pytest.mark.parametrize("name", ["ddpm", "ddim", "ddim_clipped"])
@pytest.mark.parametrize("timesteps", [1000, 1024])
def test_a_count_that_divides_the_timesteps_takes_their_multiples(name: str, timesteps: int) -> None:
    schedule = replace(SMALL, num_train_timesteps=timesteps)
    for steps in (steps for steps in range(2, timesteps + 1) if timesteps % steps == 0):
        multiples = np.arange(0, timesteps, timesteps // steps)
        assert column(solver_table(name, schedule, steps), "t").tolist() == multiples[::-1].tolist()


@pytest.mark.parametrize("schedule", [SMALL, SMALL_V], ids=lambda schedule: schedule.prediction)
def test_of_what_is_not_clipped_ddim_clipped_is_ddim(schedule: Schedule) -> None:
    network = gaussian_network(schedule)
    for steps in (1, 3, 8, 40):
        ends = [
            trajectory(solver_table(name, schedule, steps), STARTS, network)[-1] for name in ("ddim", "ddim_clipped")
        ]
        np.testing.assert_allclose(*ends, rtol=1e-9)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_a_teacher_of_a_multiple_of_the_steps_goes_through_its_students_times(steps: int) -> None:
    for name, schedule in (("ddim_clipped_trailing", SMALL), ("euler", SMALL_FLOW)):
        student = column(solver_table(name, schedule, steps), "t")
        for substeps in (2, 4):
            teacher = column(solver_table(name, schedule, substeps * steps), "t")
            assert teacher[::substeps] == pytest.approx(student)


@pytest.mark.parametrize(
    ("name", "schedule"),
    [*product(solvers_for(SMALL), [SMALL, SMALL_V]), ("dpmpp_2m", SMALL_FLOW)],
    ids=lambda value: getattr(value, "prediction", value),
)
def test_last_row_lands_on_the_clipped_estimate(name: str, schedule: Schedule) -> None:
    for steps in (1, 2, 3, 14, 15, 40):
        last = dict(zip(COLUMNS, solver_table(name, schedule, steps)[-1], strict=True))
        assert last["b"] == pytest.approx(1)
        assert [last[rest] for rest in ("a", "c", "s", "d1", "d2", "d3")] == pytest.approx([0] * 6, abs=1e-12)


def test_last_row_of_euler_lands_on_the_estimate() -> None:
    last = dict(zip(COLUMNS, solver_table("euler", SMALL_FLOW, 7)[-1], strict=True))
    assert (last["a"], last["c"]) == pytest.approx((last["p"], last["q"]))


def test_first_row_needs_no_history_and_no_row_more_than_there_is() -> None:
    for schedule in (SMALL_FLOW, SMALL_V):
        for name in solvers_for(schedule):
            history = solver_table(name, schedule, 6)[:, -HISTORY:]
            assert not np.triu(history[:HISTORY]).any()


def test_all_timesteps_are_used_when_as_many_steps_are_asked_for() -> None:
    for name in solvers_for(SMALL):
        assert column(solver_table(name, SMALL, 40), "t").tolist() == list(range(39, -1, -1))


def test_ddim_with_full_noise_is_ddpm() -> None:
    sample, outs, noises = arbitrary(8)
    for schedule in SCHEDULES:
        ours = trajectory(ddim(schedule, 8, eta=1.0), sample, replayed(outs), noises=noises)
        assert_same(ours, trajectory(solver_table("ddpm", schedule, 8), sample, replayed(outs), noises=noises))


def test_tables_are_cached() -> None:
    assert solver_table("ddim", SMALL, 7) is solver_table("ddim", SMALL, 7)
    assert solver_table("ddim", SMALL, 7) is not solver_table("ddim", SMALL_V, 7)


def test_longest_table() -> None:
    assert longest_table(SMALL) == 40
    assert longest_table(SMALL_FLOW) == 80  # of midpoint


def test_smallest_schedule_works() -> None:
    only = Schedule("linear", 1, 0.5, 0.5, "epsilon")
    for name in solvers_for(only):
        assert solver_table(name, only, 1)[0, COLUMNS.index("b")] == pytest.approx(1)


# Errors


DIFFUSION = "ddpm, ddim, dpmpp_2m, dpmpp_3m, unipc, ipndm, ddim_clipped, ddim_clipped_trailing"


def test_unknown_solver_is_named_and_the_others_listed() -> None:
    with pytest.raises(
        ValueError,
        match=f"linear schedule must be one of {DIFFUSION}, not 'plms'",
    ):
        solver_table("plms", SMALL, 8)


@pytest.mark.parametrize(("name", "schedule"), [("euler", SMALL), ("midpoint", SMALL_V), ("ddim", SMALL_FLOW)])
def test_solver_of_the_other_process_is_refused(name: str, schedule: Schedule) -> None:
    allowed = "dpmpp_2m, unipc, euler, midpoint" if schedule.kind == "flow" else DIFFUSION
    with pytest.raises(ValueError, match=f"{schedule.kind} schedule must be one of {allowed}, not '{name}'"):
        solver_table(name, schedule, 8)
    with pytest.raises(ValueError, match="flow"):
        SOLVERS[name].table(schedule, 8)


@pytest.mark.parametrize("steps", [0, -1, 41, 10**9, 8.0, "8", math.nan, None, True])
@pytest.mark.parametrize(
    ("name", "schedule"),
    [*product(solvers_for(SMALL), [SMALL]), *product(solvers_for(SMALL_FLOW), [SMALL_FLOW])],
    ids=lambda value: getattr(value, "kind", value),
)
def test_steps_out_of_range_are_refused(name: str, schedule: Schedule, steps: object) -> None:
    solver_table(name, schedule, 8)  # a cached answer must not serve 8.0
    with pytest.raises(ValueError, match=f"steps must be an integer from 1 to 40, not {steps!r}"):
        solver_table(name, schedule, steps)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_out_of_range_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match=f"eta must be from 0 to 1, not {eta}"):
        ddim(SMALL, 8, eta)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"kind": "square"},
            "kind must be one of linear, scaled_linear, cosine, sigmoid, betas, flow, descent, not 'square'",
        ),
        ({"prediction": "velocity"}, "linear schedule must be one of epsilon, v, sample, not 'velocity'"),
        ({"kind": "flow"}, "flow schedule must be one of velocity, not 'epsilon'"),
        ({"num_train_timesteps": 0}, "num_train_timesteps must be an integer from 1 to 100000, not 0"),
        ({"num_train_timesteps": 10**12}, "num_train_timesteps must be an integer from 1 to 100000, not 1000000000000"),
        ({"num_train_timesteps": 10.5}, "num_train_timesteps must be an integer from 1 to 100000, not 10.5"),
        ({"beta_start": 0.0}, "not 0.0 and 0.3"),
        ({"beta_start": 0.4}, "not 0.4 and 0.3"),
        ({"beta_end": 1.0}, "not 0.001 and 1.0"),
        ({"beta_end": math.nan}, "not 0.001 and nan"),
    ],
)
def test_impossible_schedule_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule(**{**asdict(SMALL), **changes})


def test_flow_has_no_alphas_cumprod() -> None:
    with pytest.raises(ValueError, match="alphas_cumprod"):
        _ = FLOW.alphas_cumprod


def test_schedule_survives_json() -> None:
    for schedule in (*SCHEDULES, FLOW):
        assert Schedule(**json.loads(json.dumps(asdict(schedule)))) == schedule
