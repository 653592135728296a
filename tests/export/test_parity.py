"""What two correct engines may differ in, and what they may not, where PIG's guide is cut at a threshold."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from tiny_families import tiny_family
from tiny_pig import tiny_pig

from export.options import TOLERANCES
from export.parity import (
    ALLOWED,
    compare_batches,
    compare_engines,
    compare_random,
    compare_trajectory,
    finished,
    largest_difference,
    measure_parity,
    random_condition,
    run,
)
from serving.engines import StepEngine
from serving.sampling.solvers import COLUMNS
from training.models import pig


class TorchEngine(StepEngine):
    """A family in PyTorch."""

    def __init__(self, family):
        self.family = family

    @torch.inference_mode()
    def step(self, sample, history, noise, coeffs, condition=None):
        tensors = map(torch.from_numpy, (sample, *history, noise, coeffs))
        return tuple(out.numpy() for out in self.family.step(*tensors))

    @torch.inference_mode()
    def finish(self, sample, condition=None):
        outputs = self.family.finish(torch.from_numpy(sample))
        return {output.name: out.numpy() for output, out in zip(self.family.outputs, outputs, strict=True)}


class EngineThatFlipsAPixel(TorchEngine):
    """Puts one value of each guide on the other side of the threshold, as the rounding of the cut itself may."""

    def step(self, *arrays):
        whole = pig.binarise

        def flipped(x0):
            guide = whole(x0).clone()
            guide[..., 0, 0] *= -1
            return guide

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pig, "binarise", flipped)
            return super().step(*arrays)


@pytest.fixture
def cut():
    return tiny_pig(size=64, binarise_guide="sampling")


def rounded(family):
    """The same model, its weights changed as much as half precision does."""
    other = copy.deepcopy(family)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in other.parameters():
            weights.mul_(1 + 3e-4 * torch.randn(weights.shape, generator=random))
    return other


@pytest.fixture
def figures_of(cut):
    def measure(engine, *solvers):
        figures = [compare_trajectory(cut, engine, solver, 6, None, 1) for solver in solvers or ("ddim",)]
        step = max(row[name] for each in figures for row in each["rows"] for name in ("sample_next", "prediction"))
        return step, *(max(each["end_to_end"][name] for each in figures) for name in ("state", "image", "mask"))

    return measure


def test_the_threshold_does_not_decide_what_half_precision_may_differ(cut, figures_of, monkeypatch):
    limits = TOLERANCES["fp16"]
    engine = TorchEngine(rounded(cut))
    step, state, image, mask = figures_of(engine, "ddim", "ddpm")
    assert (step < limits.step, state < limits.end_to_end, image < limits.end_to_end, mask < limits.mask) == (True,) * 4
    monkeypatch.setattr(type(cut), "has_threshold", False)
    step, state, *_ = figures_of(engine)
    assert step > limits.step
    assert state > limits.end_to_end


def test_a_value_on_the_other_side_of_the_threshold_is_no_fault(figures_of, cut):
    step, state, image, mask = figures_of(EngineThatFlipsAPixel(cut))
    assert (step < 2e-3, state < 5e-3, image < 5e-3, mask < 1e-3) == (True,) * 4


@pytest.mark.parametrize("tensor", ["guider.conv_in.bias", "generator.conv_out.weight"])
def test_other_weights_are_noticed(cut, figures_of, tensor):
    other = copy.deepcopy(cut)
    with torch.no_grad():
        other.get_parameter(tensor).add_(0.1)
    step, state, *_ = figures_of(TorchEngine(other))
    assert step > TOLERANCES["fp16"].step
    assert state > TOLERANCES["fp16"].end_to_end


def test_batches_of_plans_are_compared_where_that_is_defined(cut):
    """Beside another engine's samples both are too far from each other, by the threshold alone."""
    limits, engine = TOLERANCES["fp16"], TorchEngine(rounded(cut))
    assert compare_engines(cut, engine, TorchEngine(cut), [2])["state"] > limits.end_to_end
    figures = compare_batches(cut, engine, [1, 2])
    assert figures["state"] < limits.end_to_end
    assert figures["image"] < limits.end_to_end
    assert figures["mask"] < limits.mask


def test_a_batch_that_is_wrong_is_noticed_in_any_row(cut):
    class WrongInOne(TorchEngine):
        def generate(self, trajectory):
            state, outputs = super().generate(trajectory)
            if len(state) == 4:
                state[3, 1] += 0.1
            return state, outputs

    assert compare_batches(cut, WrongInOne(cut), [2])["state"] < 1e-5
    assert compare_batches(cut, WrongInOne(cut), [2, 4])["state"] > 0.09


def test_what_is_allowed_is_a_share_of_each_sample_and_never_nan():
    expected = np.zeros((2, 1, 10, 10), np.float32)
    got = expected.copy()
    got[1, 0, 0, :2] = 5
    assert largest_difference(got, expected) == 5
    assert largest_difference(got, expected, ALLOWED) == 0
    got[1, 0, 0, 2] = 5
    assert largest_difference(got, expected, ALLOWED) == 5
    got[0, 0, 0, 0] = np.nan
    assert largest_difference(got, expected, ALLOWED) == float("inf")


def test_the_report_says_what_was_allowed(cut):
    assert measure_parity(cut, TorchEngine(cut), batch=1)["allowed"] == ALLOWED
    assert tiny_pig(binarise_guide="never").has_threshold is False


class TorchDescent(TorchEngine):
    """A family whose steps are gradients, in PyTorch."""

    def step(self, sample, history, noise, coeffs, condition=None):
        return tuple(run(self.family.step, sample, *history, noise, coeffs, condition))

    def finish(self, sample, condition=None):
        return finished(self.family, sample, condition)


class Lazy(TorchDescent):
    def generate(self, trajectory):
        return trajectory.start, self.finish(trajectory.start, trajectory.condition)


class Impatient(TorchDescent):
    def generate(self, trajectory):
        return super().generate(
            dataclasses.replace(trajectory, lengths=trajectory.lengths - 1, coeffs=trajectory.coeffs[:-1])
        )


class Careless(TorchDescent):
    def generate(self, trajectory):
        state, _ = super().generate(trajectory)
        return state, self.finish(trajectory.start, trajectory.condition)


@pytest.mark.parametrize(
    ("kind", "beyond"),
    [
        (TorchDescent, set()),
        (Lazy, {"state", "loss"}),
        (Impatient, {"state", "loss"}),
        (Careless, {"reconstruction", "psnr"}),
    ],
)
def test_a_descent_is_followed_to_its_end(kind, beyond):
    family = tiny_family("mganprior")
    figures = compare_trajectory(family, kind(family), "heavy_ball", 4, random_condition(family, 2), 2)["end_to_end"]
    assert {name for name, value in figures.items() if value > TOLERANCES["fp32"].end_to_end} == beyond


@pytest.mark.parametrize("column", ["a", "b", "c", "s", "m", "n", "d1", "d2", "d3"])
def test_every_coefficient_and_what_it_is_of_are_asked_for(column):
    """The model's default solver, ddpm, has c, m, n and those of the history at 0 in every row."""

    class Without(TorchEngine):
        def step(self, sample, history, noise, coeffs, condition=None):
            coeffs = coeffs.copy()
            coeffs[:, COLUMNS.index(column)] = 0
            return super().step(sample, history, noise, coeffs)

    family = tiny_family("cmr_mask")
    assert max(compare_random(family, TorchEngine(family), None, 2).values()) < 1e-5
    assert max(compare_random(family, Without(family), None, 2).values()) > 0.1
