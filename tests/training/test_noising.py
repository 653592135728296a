import math

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from serving.sampling.solvers import COLUMNS, Schedule, solver_table
from training.noising import FOCUS_SCALE, draw_timesteps, estimate, noised

LINEAR = Schedule("linear", 1024, 1e-4, 0.02, "epsilon")
SCALED_V = Schedule("scaled_linear", 1000, 0.00085, 0.012, "v")
FLOW = Schedule("flow", 1000, 0.0, 0.0, "velocity")


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def normal(seed: int) -> Tensor:
    return torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


class TestTimesteps:
    @pytest.mark.parametrize("antithetic", [True, False])
    def test_they_are_integers_over_the_whole_schedule(self, antithetic):
        t = draw_timesteps(LINEAR, 100_000, generator(), antithetic)
        assert t.dtype == torch.int64
        assert t.unique().tolist() == list(range(1024))
        assert (torch.bincount(t) - 100_000 / 1024).abs().max() < 7 * math.sqrt(100_000 / 1024)

    @pytest.mark.parametrize("antithetic", [True, False])
    def test_a_flow_has_any_number_in_between(self, antithetic):
        t = draw_timesteps(FLOW, 100_000, generator(), antithetic)
        assert t.dtype == torch.float32
        assert 0 <= t.min() < 0.1
        assert 998.9 < t.max() <= 999
        assert (torch.histc(t, 10, 0, 999) - 10_000).abs().max() < 700

    @pytest.mark.parametrize("schedule", [LINEAR, FLOW], ids=lambda s: s.kind)
    @pytest.mark.parametrize(("focus", "share"), [(0.0, 0.42), (0.5, 0.61), (1.0, 0.80)])
    @pytest.mark.parametrize("antithetic", [True, False])
    def test_a_share_is_drawn_about_the_middle(self, schedule, focus, share, antithetic):
        t = draw_timesteps(schedule, 100_000, generator(), antithetic, focus)
        last = schedule.num_train_timesteps - 1
        assert t.dtype == (torch.int64 if schedule is LINEAR else torch.float32)
        assert 0 <= t.min() < t.max() <= last
        assert ((t / last - 0.5).abs() < 0.21).float().mean() == pytest.approx(share, abs=0.01)
        assert t.float().mean() == pytest.approx(last / 2, rel=0.01)

    @pytest.mark.parametrize("schedule", [LINEAR, FLOW], ids=lambda s: s.kind)
    @pytest.mark.parametrize("antithetic", [True, False])
    def test_or_about_another_timestep(self, schedule, antithetic):
        t = draw_timesteps(schedule, 100_000, generator(), antithetic, focus=1.0, focus_at=0.25)
        last = schedule.num_train_timesteps - 1
        assert (t / last).float().median() == pytest.approx(0.25, abs=0.005)
        logits = torch.logit((t[t > 0] / last).double(), eps=1e-4)
        assert logits.std() == pytest.approx(FOCUS_SCALE, rel=0.02)

    @pytest.mark.parametrize(("schedule", "focus"), [(LINEAR, 0.0), (LINEAR, 0.7), (FLOW, 0.0)])
    def test_antithetic_halves_mirror_each_other(self, schedule, focus):
        last = schedule.num_train_timesteps - 1
        t = draw_timesteps(schedule, 8, generator(), focus=focus)
        assert (t[:4] + t[4:] == last).all()
        odd = draw_timesteps(schedule, 5, generator())
        assert len(odd) == 5
        assert (odd[:2] + odd[3:] == last).all()

    @pytest.mark.parametrize(("at", "odds"), [(0.5, 1), (0.25, 1 / 3)])
    def test_those_in_focus_mirror_each_other_about_where_that_is(self, at, odds):
        share = draw_timesteps(FLOW, 8, generator(), focus=1.0, focus_at=at) / (FLOW.num_train_timesteps - 1)
        logits = torch.logit(share)
        assert logits[:4] + logits[4:] == pytest.approx(torch.full((4,), 2 * math.log(odds)), abs=1e-4)

    def test_others_do_not(self):
        t = draw_timesteps(LINEAR, 8, generator(), antithetic=False)
        assert not (t[:4] + t[4:] == 1023).any()


@pytest.mark.parametrize("schedule", [LINEAR, SCALED_V], ids=lambda s: s.prediction)
def test_diffusion_is_that_of_diffusers(schedule):
    scheduler = DDPMScheduler(schedule.num_train_timesteps, schedule.beta_start, schedule.beta_end, schedule.kind)
    data, noise, t = normal(0), normal(1), draw_timesteps(schedule, 6, generator())
    state, target = noised(schedule, data, noise, t)
    torch.testing.assert_close(state, scheduler.add_noise(data, noise, t), rtol=0, atol=1e-4)
    expected = noise if schedule.prediction == "epsilon" else scheduler.get_velocity(data, noise, t)
    torch.testing.assert_close(target, expected, rtol=0, atol=1e-4)


def test_a_flow_is_the_straight_path_and_its_velocity():
    data, noise = normal(0), normal(1)
    t = torch.tensor([0.0, 999.0, 499.5, 249.75, 1.0, 998.0])
    state, target = noised(FLOW, data, noise, t)
    assert torch.equal(state[0], noise[0])
    assert torch.equal(state[1], data[1])
    torch.testing.assert_close(state[2], (data[2] + noise[2]) / 2)
    torch.testing.assert_close(state + (1 - t.view(-1, 1, 1, 1) / 999) * target, data)


@pytest.mark.parametrize("schedule", [LINEAR, SCALED_V, FLOW], ids=lambda s: s.prediction)
def test_the_data_are_estimated_from_what_is_predicted_as_a_solver_does(schedule):
    data, noise = normal(0), normal(1)
    table = torch.tensor(solver_table("dpmpp_2m", schedule, 6))
    t, p, q = (table[:, COLUMNS.index(name)] for name in "tpq")
    t = t.float() if schedule.kind == "flow" else t.long()
    state, target = noised(schedule, data, noise, t)
    found = estimate(schedule, state, target, t)
    by_solver = p.view(-1, 1, 1, 1) * state + q.view(-1, 1, 1, 1) * target
    torch.testing.assert_close(found, by_solver.float(), rtol=0, atol=1e-3)
    torch.testing.assert_close(found, data, rtol=0, atol=1e-3)


def test_a_network_may_predict_the_data() -> None:
    schedule = Schedule("cosine", 100, 0.0, 0.0, "sample")
    data, t = normal(0), torch.arange(0, 100, 17)
    state, target = noised(schedule, data, normal(1), t)
    assert torch.equal(target, data)
    torch.testing.assert_close(estimate(schedule, state, target, t), data)
