import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from tiny_pig import SIZE, random_batch, tiny_pig
from torch import Tensor, nn

from serving.sampling.solvers import solver_table
from training.checkpoint import build_family
from training.models.pig import PRESETS, Pig, binarise

FLOW = {"kind": "flow", "prediction": "velocity"}


@pytest.fixture(scope="module")
def pig() -> Pig:
    return tiny_pig()


def state(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


class TestPaperPreset:
    preset = PRESETS["paper"]

    def test_each_network_has_the_papers_number_of_parameters(self):
        pig = Pig(self.preset)
        for network in (pig.guider, pig.generator):
            assert sum(parameter.numel() for parameter in network.parameters()) == 7_125_409

    def test_fields_are_the_papers(self):
        assert self.preset.size == 512
        assert self.preset.widths == (32, 32, 64, 64, 128, 128)
        assert [self.preset.size >> level for level in self.preset.attention] == [16]
        schedule = self.preset.schedule
        assert (schedule.kind, schedule.num_train_timesteps, schedule.prediction) == ("linear", 1024, "epsilon")
        assert (schedule.beta_start, schedule.beta_end) == (1e-4, 0.02)
        assert (self.preset.default_solver, self.preset.default_steps) == ("ddim", 256)

    def test_time_embedding_is_that_of_ho_et_al(self):
        t, half = torch.tensor([0.0, 3.0, 501.0, 1023.0]), self.preset.widths[0] // 2
        angles = t[:, None] * 10_000 ** (-torch.arange(half) / (half - 1))
        with torch.device("meta"):
            guider = Pig(self.preset).guider
        torch.testing.assert_close(guider.time_proj(t), torch.cat([angles.sin(), angles.cos()], 1), rtol=0, atol=1e-4)


def test_a_checkpoint_older_than_the_field_keeps_the_time_embedding_it_was_trained_with():
    fields = dataclasses.asdict(PRESETS["paper"])
    assert build_family({"model": "pig", "preset": fields}).preset == PRESETS["paper"]
    del fields["time_embedding"]
    assert build_family({"model": "pig", "preset": fields}).preset.time_embedding == "diffusers"


class TestStep:
    STEPS = 8

    def scheduler(self, pig: Pig, dtype: torch.dtype) -> DDIMScheduler:
        schedule, clip = pig.preset.schedule, pig.preset.clip
        betas = torch.linspace(schedule.beta_start, schedule.beta_end, schedule.num_train_timesteps, dtype=torch.double)
        scheduler = DDIMScheduler(
            schedule.num_train_timesteps,
            clip_sample=clip is not None,
            clip_sample_range=clip or 1.0,
            prediction_type={"epsilon": "epsilon", "v": "v_prediction"}[schedule.prediction],
        )
        scheduler.alphas_cumprod = (1 - betas).cumprod(0).to(dtype)
        scheduler.set_timesteps(self.STEPS)
        return scheduler

    def step(self, pig: Pig, row: int, sample: Tensor) -> Tensor:
        coeffs = torch.tensor(solver_table("ddim", pig.preset.schedule, self.STEPS))[row].to(sample)
        zeros = torch.zeros_like(sample)
        return pig.step(sample, zeros, zeros, zeros, zeros, coeffs.expand(len(sample), -1))[0]

    @torch.no_grad()
    @pytest.mark.parametrize(("prediction", "clip"), [("epsilon", 1.0), ("epsilon", None), ("v", 1.0)])
    def test_trajectory_is_that_of_the_diffusers_loop(self, prediction, clip):
        # In float64, where rounding (1e-16 a step on states of up to 300) cannot hide a difference: an untrained
        # network makes three of one error at every step, 3**8 = 7e3 in all.
        pig = tiny_pig(clip=clip, schedule={"prediction": prediction}).double()
        scheduler = self.scheduler(pig, torch.double)
        ours = theirs = state(3).double()
        for row, t in enumerate(scheduler.timesteps):
            ours = self.step(pig, row, ours)
            theirs = pig.scheduler_step(pig.networks(), scheduler, t, theirs)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-8)

    @torch.no_grad()
    @pytest.mark.parametrize(("prediction", "clip"), [("epsilon", 1.0), ("epsilon", None), ("v", 1.0)])
    def test_a_float32_step_differs_from_the_diffusers_step_by_rounding_alone(self, prediction, clip):
        # x0, the direction and their sum: a handful of operations on values of the state's size, each rounded once.
        pig = tiny_pig(clip=clip, schedule={"prediction": prediction})
        scheduler = self.scheduler(pig, torch.float)
        sample = state(3)
        for row, t in enumerate(scheduler.timesteps):
            expected = pig.scheduler_step(pig.networks(), scheduler, t, sample)
            rounding = torch.finfo(torch.float).eps * max(sample.abs().max().item(), 1.0)
            sample = self.step(pig, row, sample)
            torch.testing.assert_close(sample, expected, rtol=0, atol=32 * rounding)

    @torch.no_grad()
    def test_on_a_flow_the_generator_is_guided_by_where_the_velocity_leads(self):
        pig = tiny_pig(schedule=FLOW, clip=None).double()
        h, last = 1 / self.STEPS, pig.preset.schedule.num_train_timesteps - 1
        ours = theirs = by_hand = state(3).double()
        euler = SimpleNamespace(step=lambda out, _t, x: SimpleNamespace(prev_sample=x + h * out))
        zeros = torch.zeros_like(ours)
        for k, row in enumerate(torch.tensor(solver_table("euler", pig.preset.schedule, self.STEPS))):
            t = torch.tensor(k * h * last, dtype=torch.double)
            ours, _ = pig.step(ours, zeros, zeros, zeros, zeros, row.expand(3, -1))
            theirs = pig.scheduler_step(pig.networks(), euler, t, theirs)
            x, y = by_hand.chunk(2, dim=1)
            v_x = pig.guider(by_hand, t).sample
            v_y = pig.generator(torch.cat([y, x + (1 - k * h) * v_x], dim=1), t).sample
            by_hand = by_hand + h * torch.cat([v_x, v_y], dim=1)
        torch.testing.assert_close(ours, by_hand, rtol=0, atol=1e-8)
        torch.testing.assert_close(theirs, by_hand, rtol=0, atol=1e-8)

    def test_sample_passes_the_latest_predictions_and_the_rows_noise(self, pig, monkeypatch):
        calls, predictions = [], []
        step = pig.step

        def recorded(*inputs: Tensor) -> tuple[Tensor, Tensor]:
            calls.append(inputs)
            sample, prediction = step(*inputs)
            predictions.append(prediction)
            return sample, prediction

        monkeypatch.setattr(pig, "step", recorded)
        noises = [state(2, seed) for seed in range(6)]
        pig.sample(noises, "dpmpp_3m", 5)
        zeros = torch.zeros_like(noises[0])
        for k, (_, *history, noise, _coeffs, _condition) in enumerate(calls):
            assert torch.equal(noise, noises[k + 1])
            latest = [*reversed(predictions[:k]), zeros, zeros, zeros]
            assert all(torch.equal(given, expected) for given, expected in zip(history, latest, strict=False))

    def test_finish_gives_the_outputs_it_names(self, pig):
        final = torch.tensor([[-0.1, -3.0], [0.0, -1.0], [0.1, 0.5], [1.0, 3.0]])[:, :, None, None]
        mask, image = pig.finish(final)
        assert mask.flatten().tolist() == [0, 0, 1, 1]
        assert image.flatten().tolist() == [0, 0, 0.75, 1]


class TestBinarise:
    def square(self, top: int, left: int, side: int) -> Tensor:
        x = -torch.ones(1, 1, SIZE, SIZE)
        x[..., top : top + side, left : left + side] = 1
        return x

    def test_a_square_loses_its_margin_where_less_than_seven_eighths_of_the_window_is_lesion(self):
        expected = self.square(11, 7, 10)
        expected[..., [11, 11, 20, 20], [7, 16, 7, 16]] = -1
        assert torch.equal(binarise(self.square(10, 6, 12)), expected)

    def test_the_pictures_edge_costs_nothing(self):
        assert torch.equal(binarise(self.square(0, 0, SIZE // 2))[..., 0, : SIZE // 2 - 1], torch.ones(1, 1, 15))

    def test_the_cut_is_relative_to_each_pictures_range(self):
        x = self.square(10, 6, 12)
        assert torch.equal(binarise(0.125 * x - 0.5), binarise(x))

    def test_values_beyond_the_data_count_as_its_bounds(self):
        x = state(1)[:, :1]
        assert torch.equal(binarise(5 * x), binarise((5 * x).clamp(-1, 1)))

    @pytest.mark.parametrize("value", [-1.0, 1.0])
    def test_nothing_stands_out_of_a_flat_picture(self, value):
        assert (binarise(torch.full((1, 1, SIZE, SIZE), value)) == -1).all()

    def test_pictures_do_not_depend_on_their_mates(self):
        x = torch.cat([0.1 * state(1, 1), state(1, 2), 3 * state(1, 3)])[:, :1]
        whole = binarise(x)
        assert set(whole.unique().tolist()) == {-1, 1}
        for k in range(3):
            assert torch.equal(whole[k], binarise(x[k : k + 1])[0])

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("when", ["never", "sampling", "always"])
    def test_the_preset_says_when(self, when, training):
        pig = tiny_pig(binarise_guide=when).train(training)
        x0 = 2 * state(2)[:, :1]
        expected = binarise(x0) if when == "always" or (when == "sampling" and not training) else x0.clamp(-1, 1)
        assert torch.equal(pig.guide(x0), expected)


class Oracle(nn.Module):
    """A network that knows the data, is wrong by ``error`` in all it predicts, and keeps what it was given."""

    def __init__(self, pig: Pig, data: Tensor, error: float) -> None:
        super().__init__()
        self.schedule, self.data, self.error = pig.preset.schedule, data, error

    def forward(self, noisy: Tensor, t: Tensor) -> "Oracle":
        self.noisy, self.t = noisy, t
        if self.schedule.kind == "flow":
            alpha = (t / (self.schedule.num_train_timesteps - 1)).view(-1, 1, 1, 1)
            sigma = 1 - alpha
        else:
            alpha_bar = torch.tensor(self.schedule.alphas_cumprod).float()[t].view(-1, 1, 1, 1)
            alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        self.noise = (noisy[:, :1] - alpha * self.data) / sigma
        right = {
            "epsilon": self.noise,
            "v": alpha * self.noise - sigma * self.data,
            "velocity": self.data - self.noise,
        }
        self.sample = right[self.schedule.prediction] + self.error
        return self


@pytest.mark.parametrize("prediction", ["epsilon", "v", "velocity"])
class TestLoss:
    batch = random_batch(6)
    x0 = batch["mask"] * 2.0 - 1.0

    def oracles(self, prediction: str, guider_error: float, generator_error: float, **fields: object) -> Pig:
        schedule = FLOW if prediction == "velocity" else {"prediction": prediction}
        pig = tiny_pig(schedule=schedule, **fields).train()
        pig.guider = Oracle(pig, self.x0, guider_error)
        pig.generator = Oracle(pig, self.batch["image"], generator_error)
        return pig

    def loss(self, pig: Pig, phase: str, seed: int = 0) -> float:
        return pig.loss(phase, self.batch, torch.Generator().manual_seed(seed)).item()

    def test_the_guiders_loss_is_its_mean_squared_error_on_the_mask(self, prediction):
        assert self.loss(self.oracles(prediction, 2, 0), "guider") == pytest.approx(4, rel=1e-3)

    def test_the_generators_loss_is_weighted_by_the_sigmoid_of_the_mask_estimate(self, prediction):
        weight = self.x0.sigmoid().mean().item()
        weighted, plain = self.oracles(prediction, 0, 2), self.oracles(prediction, 0, 2, lesion_weight=False)
        assert self.loss(weighted, "generator") == pytest.approx(4 * weight, rel=1e-3)
        assert self.loss(plain, "generator") == pytest.approx(4, rel=1e-3)

    def test_the_generator_sees_the_guiders_estimate_at_the_same_timestep(self, prediction):
        pig = self.oracles(prediction, 0, 0)
        self.loss(pig, "generator")
        assert torch.equal(pig.guider.t, pig.generator.t)
        assert torch.equal(pig.guider.noisy[:, 1:], pig.generator.noisy[:, :1])
        torch.testing.assert_close(pig.generator.noisy[:, 1:], self.x0, atol=1e-3, rtol=0)

    def test_mask_and_image_have_standard_normal_noise_of_their_own(self, prediction):
        pig = self.oracles(prediction, 0, 0)
        self.loss(pig, "generator")
        noises = torch.stack([pig.guider.noise.flatten(), pig.generator.noise.flatten()]).double()
        few = 5 / math.sqrt(noises.shape[1])
        torch.testing.assert_close(torch.cov(noises), torch.eye(2).double(), atol=2 * few, rtol=0)
        assert (noises.mean(1).abs() < few).all()
