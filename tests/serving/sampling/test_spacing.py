"""Schedules as others write them down: each table against the sampler of diffusers or MONAI at its own timesteps."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from monai.networks.schedulers import DDIMScheduler as MonaiDDIM
from monai.networks.schedulers import DDPMScheduler as MonaiDDPM

from serving.sampling.solvers import COLUMNS, HISTORY, Schedule, longest_table, solver_table, solvers_for

T = 1000
GIVEN = tuple(float(beta) for beta in np.geomspace(1e-4, 0.03, T))
LINEAR = Schedule("linear", T, 1e-4, 0.02, "epsilon")
SCALED = Schedule("scaled_linear", T, 0.0015, 0.0195, "v")
COSINE = Schedule("cosine", T, 0.0, 0.0, "v")
SIGMOID = Schedule("sigmoid", T, 1e-4, 0.02, "sample")
BETAS = Schedule("betas", T, 0.0, 0.0, "epsilon", betas=GIVEN)
SCHEDULES = [LINEAR, SCALED, COSINE, SIGMOID, BETAS]
THEIR_PREDICTION = {"epsilon": "epsilon", "v": "v_prediction", "sample": "sample"}
MEAN, SPREAD = 0.3, 0.5  # of the data of which the denoiser is the exact one

every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
# Of diffusers only DDPM has sigmoid.
not_sigmoid = pytest.mark.parametrize("schedule", [s for s in SCHEDULES if s != SIGMOID], ids=lambda s: s.kind)
not_given = pytest.mark.parametrize("schedule", [s for s in SCHEDULES if s != BETAS], ids=lambda s: s.kind)
every_spacing = pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
every_steps = pytest.mark.parametrize("steps", [1, 7, 50, 300])


def diffusers_options(schedule: Schedule) -> dict:
    return {
        "num_train_timesteps": T,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": {"cosine": "squaredcos_cap_v2", "betas": "linear"}.get(schedule.kind, schedule.kind),
        "trained_betas": list(schedule.betas) or None,
        "prediction_type": THEIR_PREDICTION[schedule.prediction],
    }


def monai_options(schedule: Schedule) -> dict:
    kind = schedule.kind if schedule.kind == "cosine" else f"{schedule.kind}_beta"
    ends = {} if kind == "cosine" else {"beta_start": schedule.beta_start, "beta_end": schedule.beta_end}
    prediction = THEIR_PREDICTION[schedule.prediction]
    return {"num_train_timesteps": T, "schedule": kind, "prediction_type": prediction, **ends}


def in_float64(scheduler, schedule: Schedule):
    """Theirs compute betas in float32; how far that is from ours is a test of its own."""
    kept = torch.from_numpy(schedule.alphas_cumprod)
    scheduler.alphas_cumprod = kept
    scheduler.alphas = kept / torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    scheduler.betas = 1 - scheduler.alphas
    if hasattr(scheduler, "final_alpha_cumprod") and scheduler.final_alpha_cumprod != 1:
        scheduler.final_alpha_cumprod = kept[0]
    return scheduler


def denoiser(schedule: Schedule):
    """The exact one of normal data: state, timestep -> prediction."""

    def network(x: np.ndarray, t: float) -> np.ndarray:
        kept = schedule.alphas_cumprod[int(t)]
        alpha, sigma = math.sqrt(kept), math.sqrt(1 - kept)
        surprise = (x - alpha * MEAN) / (alpha**2 * SPREAD**2 + sigma**2)
        noise, data = sigma * surprise, MEAN + alpha * SPREAD**2 * surprise
        return {"epsilon": noise, "v": alpha * noise - sigma * data, "sample": data}[schedule.prediction]

    return network


def starts(steps: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(steps)
    return 1.5 * rng.standard_normal((2, 1, 4, 4)), rng.standard_normal((steps, 2, 1, 4, 4))


def ours(name: str, schedule: Schedule, steps: int, clip: float = math.inf) -> np.ndarray:
    x, noises = starts(steps)
    history = [np.zeros_like(x)] * HISTORY
    for noise, (t, p, q, a, b, c, s, m, n, *d) in zip(noises, solver_table(name, schedule, steps), strict=True):
        out = denoiser(schedule)(x, t)
        x0 = np.clip(p * x + q * out, -clip, clip)
        x = a * x + b * x0 + c * out + sum(w * h for w, h in zip(d, history, strict=True)) + s * noise
        history = [m * x0 + n * out, *history[:-1]]
    return x


def theirs(scheduler, schedule: Schedule, steps: int) -> np.ndarray:
    state = torch.from_numpy(starts(steps)[0])
    for t in scheduler.timesteps:
        stepped = scheduler.step(torch.from_numpy(denoiser(schedule)(state.numpy(), float(t))), t, state)
        state = stepped[0] if isinstance(stepped, tuple) else stepped.prev_sample
    return state.numpy()


def t_of(name: str, schedule: Schedule, steps: int) -> list[float]:
    return solver_table(name, schedule, steps)[:, COLUMNS.index("t")].tolist()


def noise_from(monkeypatch: pytest.MonkeyPatch, steps: int, function: str) -> None:
    queue = iter(starts(steps)[1])
    monkeypatch.setattr(function, lambda *_, **__: torch.from_numpy(next(queue)))


def begin_at_noise(library, spacing: str, steps: int) -> None:
    """One step of diffusers' "linspace" takes noise for a picture of timestep 0; MONAI's and ours begins at T - 1."""
    if (spacing, steps) == ("linspace", 1):
        library.timesteps[:] = T - 1


@every_schedule
def test_betas_are_those_of_the_libraries(schedule: Schedule) -> None:
    """They compute in float32: a beta near its end is what is left of two cosines that hardly differ."""
    libraries = [DDPMScheduler(**diffusers_options(schedule))]
    libraries += [] if schedule.kind == "betas" else [MonaiDDPM(**monai_options(schedule))]
    for library in libraries:
        np.testing.assert_allclose(schedule.alphas_cumprod, library.alphas_cumprod, rtol=2e-3, atol=1e-6)


@not_sigmoid
@every_spacing
@every_steps
@pytest.mark.parametrize(("offset", "ends_clean"), [(0, True), (1, False)])
def test_ddim_is_diffusers(schedule: Schedule, spacing: str, steps: int, offset: int, ends_clean: bool) -> None:
    offset = 0 if spacing == "linspace" else offset  # diffusers ignores it there
    chosen = replace(schedule, spacing=spacing, offset=offset, ends_clean=ends_clean)
    options = {"timestep_spacing": spacing, "steps_offset": offset, "set_alpha_to_one": ends_clean}
    library = in_float64(DDIMScheduler(**diffusers_options(schedule), **options), schedule)
    library.set_timesteps(steps)
    begin_at_noise(library, spacing, steps)
    assert t_of("ddim", chosen, steps) == library.timesteps.tolist()
    np.testing.assert_allclose(ours("ddim", chosen, steps, clip=1.0), theirs(library, schedule, steps), atol=1e-8)


@every_schedule
@every_spacing
@every_steps
def test_ddpm_is_diffusers(schedule: Schedule, spacing: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    noise_from(monkeypatch, steps, "diffusers.schedulers.scheduling_ddpm.randn_tensor")
    chosen = replace(schedule, spacing=spacing)
    library = in_float64(DDPMScheduler(**diffusers_options(schedule), timestep_spacing=spacing), schedule)
    library.set_timesteps(steps)
    begin_at_noise(library, spacing, steps)
    assert t_of("ddpm", chosen, steps) == library.timesteps.tolist()
    # Its variance is 1e-20 where ours is 0.
    np.testing.assert_allclose(ours("ddpm", chosen, steps, clip=1.0), theirs(library, schedule, steps), atol=1e-8)


@not_sigmoid
@every_spacing
@pytest.mark.parametrize("steps", [1, 7, 50])
@pytest.mark.parametrize(
    ("name", "kind", "order"),
    [
        ("dpmpp_2m", DPMSolverMultistepScheduler, 2),
        ("dpmpp_3m", DPMSolverMultistepScheduler, 3),
        ("unipc", UniPCMultistepScheduler, 3),
    ],
)
def test_multistep_is_diffusers(
    schedule: Schedule, spacing: str, steps: int, name: str, kind: type, order: int
) -> None:
    chosen = replace(schedule, spacing=spacing)
    options = {"timestep_spacing": spacing, "solver_order": order}
    library = in_float64(kind(**diffusers_options(schedule), **options), schedule)
    library.set_timesteps(steps)
    kept = library.alphas_cumprod[library.timesteps]
    exact = torch.cat([((1 - kept) / kept).sqrt(), torch.zeros(1)])
    torch.testing.assert_close(library.sigmas, exact.float())
    library.sigmas = exact
    assert t_of(name, chosen, steps) == library.timesteps.tolist()
    np.testing.assert_allclose(
        ours(name, chosen, steps), theirs(library, schedule, steps), atol=1e-5
    )  # its states are float32


@not_given
@every_steps
@pytest.mark.parametrize("offset", [0, 1])
def test_ddim_is_monai(schedule: Schedule, steps: int, offset: int) -> None:
    chosen = replace(schedule, spacing="linspace", offset=offset)
    library = in_float64(MonaiDDIM(**monai_options(schedule), steps_offset=offset), schedule)
    library.set_timesteps(steps)
    assert t_of("ddim", chosen, steps) == library.timesteps.tolist()
    np.testing.assert_allclose(ours("ddim", chosen, steps, clip=1.0), theirs(library, schedule, steps), atol=1e-8)


@not_given
def test_ddpm_is_monai(schedule: Schedule, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all timesteps; with fewer MONAI's steps from each to the one just below, and so never arrives."""
    noise_from(monkeypatch, T, "monai.networks.schedulers.ddpm.torch.randn")
    chosen = replace(schedule, spacing="linspace")
    library = in_float64(MonaiDDPM(**monai_options(schedule)), schedule)
    np.testing.assert_allclose(ours("ddpm", chosen, T, clip=1.0), theirs(library, schedule, T), atol=1e-8)


@every_spacing
@pytest.mark.parametrize("prediction", ["epsilon", "v", "sample"])
def test_tables_of_every_length(spacing: str, prediction: str) -> None:
    schedule = Schedule(
        "cosine", 40, 0.0, 0.0, prediction, spacing, 0 if spacing == "trailing" else 2, ends_clean=False
    )
    for name in solvers_for(schedule):
        for steps in range(1, 41):
            table = solver_table(name, schedule, steps)
            t = table[:, COLUMNS.index("t")]
            assert np.isfinite(table.astype(np.float32)).all()
            assert len(t) == steps
            assert ((t >= 0) & (t < 40)).all()
            assert (np.diff(t) < 0).all()
    assert longest_table(schedule) == 40


def test_no_history_of_data_is_adams_bashforth() -> None:
    assert "ipndm" not in solvers_for(SIGMOID)
    assert "ipndm" in solvers_for(COSINE)


def test_schedule_survives_json() -> None:
    for schedule in (*SCHEDULES, replace(COSINE, spacing="leading", offset=1, ends_clean=False)):
        assert Schedule(**json.loads(json.dumps(asdict(schedule)))) == schedule


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spacing": "even"}, "spacing must be one of leading, trailing, linspace, or None, not 'even'"),
        ({"spacing": "leading", "offset": -1}, "offset must be an integer from 0 to 999, not -1"),
        ({"spacing": "leading", "offset": 1000}, "offset must be an integer from 0 to 999, not 1000"),
        ({"offset": 1}, "offset and ends_clean are of a spacing"),
        ({"ends_clean": False}, "offset and ends_clean are of a spacing"),
        ({"kind": "flow", "prediction": "velocity", "spacing": "leading"}, "spacing is of a diffusion"),
        ({"kind": "betas"}, "betas are 0; a schedule of 1000 betas has as many"),
        ({"betas": (0.1,)}, "betas are 1; a schedule of 1000 betas has as many, any other none"),
        ({"kind": "betas", "betas": (0.1,) * 999 + (1.0,)}, "betas must be above 0 and below 1, not 1.0"),
        ({"kind": "flow", "prediction": "sample"}, "flow schedule must be one of velocity, not 'sample'"),
    ],
)
def test_impossible_schedule_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(LINEAR, **changes)
