"""What every family promises, whatever it draws."""

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from PIL import Image
from tiny_families import (
    FAMILIES,
    FIELDS,
    LEARNING,
    SIZE,
    STEPPING,
    classes_of,
    judged_here,
    random_batch,
    random_condition,
    random_state,
    tiny_family,
)
from torch import Tensor
from torch.utils.data import Dataset

from serving.sampling.solvers import SOLVERS, Schedule, solver_table, solvers_for
from training.checkpoint import find_checkpoint
from training.family import Family
from training.fit import Interrupted, Run, fit

STEPS = 8
CONDITIONED = [name for name in STEPPING if tiny_family(name).condition]


def test_every_family_is_tested():
    assert FIELDS.keys() == set(FAMILIES)


@pytest.fixture(params=LEARNING, scope="module")
def family(request: pytest.FixtureRequest) -> Family:
    return tiny_family(request.param)


class OfSteps:
    """What is promised by families that take steps, and learn by one loss in each phase."""

    @pytest.fixture(params=STEPPING)
    def family(self, request: pytest.FixtureRequest) -> Family:
        return tiny_family(request.param)


class ReversedEuler:
    """diffusers' Euler on a flow: its time runs from 1, noise, to 0, and its networks predict noise - data."""

    def __init__(self, steps: int) -> None:
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        self.scheduler.set_timesteps(sigmas=[1 - k / steps for k in range(steps)])
        self.scheduler.sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.double)
        self.timesteps = 999 * torch.arange(steps, dtype=torch.double) / steps
        self.theirs = dict(zip(self.timesteps.tolist(), self.scheduler.timesteps, strict=True))

    def step(self, out: Tensor, t: Tensor, sample: Tensor) -> object:
        return self.scheduler.step(-out, self.theirs[t.item()], sample)


def scheduler_of(schedule: Schedule, clip: float | None) -> tuple[str, DDIMScheduler | ReversedEuler]:
    """A solver and what diffusers has for it, in float64."""
    if schedule.process == "flow":
        return "euler", ReversedEuler(STEPS)
    betas = torch.linspace(schedule.beta_start, schedule.beta_end, schedule.num_train_timesteps, dtype=torch.double)
    scheduler = DDIMScheduler(
        schedule.num_train_timesteps,
        clip_sample=clip is not None,
        clip_sample_range=clip or 1.0,
        prediction_type={"epsilon": "epsilon", "v": "v_prediction"}[schedule.prediction],
    )
    scheduler.alphas_cumprod = (1 - betas).cumprod(0)
    scheduler.set_timesteps(STEPS)
    return "ddim", scheduler


class TestStep(OfSteps):
    @torch.no_grad()
    def test_trajectory_is_that_of_the_diffusers_loop(self, family):
        family = tiny_family(family.name).double()
        solver, scheduler = scheduler_of(family.preset.schedule, family.preset.clip)
        table = torch.tensor(solver_table(solver, family.preset.schedule, STEPS))
        condition = random_condition(family, 3)
        ours = theirs = random_state(family, 3).double()
        zeros = torch.zeros_like(ours)
        for row, t in zip(table, scheduler.timesteps, strict=True):
            ours, _ = family.step(ours, zeros, zeros, zeros, zeros, row.expand(3, -1), *condition)
            theirs = family.scheduler_step(family.networks(), scheduler, t, theirs, *condition)
        # diffusers' Euler rounds every state to float32
        atol = 1e-5 if family.preset.schedule.process == "flow" else 1e-8
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)

    def test_a_row_does_not_depend_on_its_mates(self, family):
        coeffs = torch.tensor(solver_table("dpmpp_2m", family.preset.schedule, 8)).float()[[2, 5, 7]]
        inputs = [random_state(family, 3, seed) for seed in range(5)] + [coeffs, *random_condition(family, 3)]
        others = [random_state(family, 3, seed) for seed in range(10, 15)] + [
            coeffs.flip(0),
            *random_condition(family, 3, seed=1),
        ]
        for mixed, tensor in zip(others, inputs, strict=True):
            mixed[1] = tensor[1]
        with torch.no_grad():
            step, other_step = family.step(*inputs), family.step(*others)
        for tensor, mixed in zip(step, other_step, strict=True):
            assert torch.equal(tensor[1], mixed[1])
            assert not torch.equal(tensor[0], mixed[0])

    def test_every_solver_that_fits_draws_the_outputs_that_are_named(self, family):
        for solver in solvers_for(family.preset.schedule):
            rows = len(solver_table(solver, family.preset.schedule, 3))
            noises = [random_state(family, 2, seed) for seed in range(rows + 1)]
            drawn = family.sample(
                noises if SOLVERS[solver].stochastic else noises[:1], solver, 3, *random_condition(family, 2)
            )
            for tensor, output in zip(drawn, family.outputs, strict=True):
                assert tensor.shape == (2, *output.shape)
                assert str(tensor.dtype) == f"torch.{output.dtype}"
                assert output.low <= tensor.min() <= tensor.max() <= output.high

    @pytest.mark.parametrize("name", CONDITIONED)
    @pytest.mark.parametrize("corner", [(0, 0), (0, -8), (-8, 0), (-8, -8)])
    def test_the_condition_matters_in_every_corner_and_most_there(self, name, corner):
        family = tiny_family(name)
        state, (mask,) = random_state(family, 1), random_condition(family, 1)
        other = mask.clone()
        place = (..., *(slice(start, start + 8 or None) for start in corner))
        other[place] = (other[place] + 1) % family.condition.classes
        t = torch.full((1, 12), 300.0)
        with torch.no_grad():
            changed = (family.network(state, t, other) - family.network(state, t, mask)).abs()
        assert changed.max() > 1e-3
        side = family.sample_shape[-1] // 4
        here = (..., *(slice(start // 8 * side, start // 8 * side + side or None) for start in corner))
        assert changed[here].mean() > 2 * changed.mean()


class TestLoss(OfSteps):
    def loss(self, family: Family, phase: str, seed: int = 0) -> Tensor:
        return family.loss(phase, random_batch(4, 0, classes_of(family)), torch.Generator().manual_seed(seed))

    def test_it_depends_on_the_generator_alone(self, family):
        for phase in family.phases:
            torch.manual_seed(1)
            first = self.loss(family, phase).item()
            torch.manual_seed(2)
            untouched = torch.get_rng_state()
            assert self.loss(family, phase).item() == first
            assert torch.equal(torch.get_rng_state(), untouched)
            draws = phase != "autoencoder"
            assert (self.loss(family, phase, seed=1).item() != first) == draws

    def test_a_phase_has_gradients_for_its_own_network_alone(self, family):
        for phase in family.phases:
            family = tiny_family(family.name)
            family.train().requires_grad_(False)
            learning = list(family.trainable(phase).requires_grad_(True).parameters())
            self.loss(family, phase).backward()
            assert all(weight.grad is not None for weight in learning)
            assert sum(weight.grad is not None for weight in family.parameters()) == len(learning)

    def test_training_lowers_it(self, family):
        family = tiny_family(family.name)
        for phase in family.phases:
            family.begin(phase, Repeated(family))
            family.train().requires_grad_(False)
            learning = family.trainable(phase).requires_grad_(True)
            optimizer = torch.optim.Adam(learning.parameters(), 3e-3)
            before = self.mean_loss(family, phase)
            for seed in range(40):
                optimizer.zero_grad()
                self.loss(family, phase, seed).backward()
                optimizer.step()
            # a UNet that is frozen half trained lacks what a ControlNet cannot add
            assert self.mean_loss(family, phase) < (0.97 if phase == "control" else 0.8) * before, phase

    @torch.no_grad()
    def mean_loss(self, family: Family, phase: str) -> float:
        return sum(self.loss(family, phase, seed).item() for seed in range(100, 120))


class TestFit:
    """Every family trains with the same ``fit``, is stopped and goes on, and shows pictures."""

    def fit(self, family: Family, out: Path, resume: bool = False, stop_at: int | None = None) -> None:
        advance, calls = family.advance, iter(range(99))

        def stopping(phase: str) -> None:
            if next(calls) + 1 == stop_at:
                signal.raise_signal(signal.SIGINT)
            advance(phase)

        family.advance = stopping
        judged_here(family, out / "sites")
        run = Run(out, {"preset_name": "small"}, checkpoint_every=2, log_every=1)
        if stop_at:
            with pytest.raises(Interrupted):
                fit(family, Repeated(family), run, resume)
        else:
            fit(family, Repeated(family), run, resume)

    def test_a_run_that_was_stopped_in_each_phase_ends_where_it_would_have(self, family, tmp_path):
        phases = len(family.phases)
        fields = {"steps": [3] * phases, "batch": 2}
        self.fit(tiny_family(family.name, **fields), tmp_path / "straight")
        self.fit(tiny_family(family.name, **fields), tmp_path / "halting", stop_at=1)
        for phase in range(1, phases):  # at the end of a phase, and then within the next one
            self.fit(tiny_family(family.name, **fields), tmp_path / "halting", resume=True, stop_at=3 * phase - 1)
        self.fit(tiny_family(family.name, **fields), tmp_path / "halting", resume=True)
        ends = [find_checkpoint(tmp_path / name) for name in ("straight", "halting")]
        assert [end.name for end in ends] == [f"{3 * phases:08d}"] * 2
        weights = [(end / "model.safetensors").read_bytes() for end in ends]
        assert weights[0] == weights[1]
        (picture,) = (tmp_path / "halting" / "previews").iterdir()
        with Image.open(picture) as sheet:
            pixels = np.asarray(sheet)
        assert min(pixels.shape[:2]) > 4 * SIZE
        has_masks = any(part.labels for part in (*family.outputs, *filter(None, [family.condition])))
        assert (pixels.max(-1) > pixels.min(-1)).any() == has_masks, "classes have colours, and nothing else has"


class Repeated(Dataset):
    """One batch of random pairs."""

    def __init__(self, family: Family) -> None:
        batch = random_batch(4, 0, classes_of(family))
        self.items = [{name: tensor[k] for name, tensor in batch.items()} for k in range(4)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.items[index]
