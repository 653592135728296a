"""diffusers' schedulers, as they are set up here, step as the solvers' tables say."""

import dataclasses
import math

import pytest
import torch
from tiny import FLOW, LINEAR

from benchmarks.latency.diffusers_schedulers import DIFFUSIONS, FLOWS, ancestral_noise, make_scheduler
from kernels.solver_step import reference
from serving.sampling.solvers import Schedule, solver_table

V = dataclasses.replace(LINEAR, prediction="v")
THEIRS = Schedule("sigmoid", 1000, 1e-4, 0.02, "sample", "linspace", ends_clean=False)
DIFFUSING = (LINEAR, V, THEIRS)
CASES = [*((schedule, solver) for schedule in DIFFUSING for solver in DIFFUSIONS), *((FLOW, s) for s in FLOWS)]


def network(x, t):
    return torch.tanh(x + t / 1000)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 20, 30])
@pytest.mark.parametrize(("schedule", "solver"), CASES)
def test_trajectory(schedule, solver, steps, clip):
    torch.manual_seed(0)
    theirs = ours = torch.randn(2, 1, 4, 4)
    scheduler = make_scheduler(solver, schedule, clip, steps, networks=1)
    history = [torch.zeros_like(ours)] * 3
    table = torch.tensor(solver_table(solver, schedule, steps)).float()
    for row, t in zip(table, scheduler.timesteps, strict=True):
        noise = torch.randn_like(ours)
        with ancestral_noise(noise):
            theirs = scheduler.step(network(theirs, t), t, theirs).prev_sample
        out = network(ours, row[0])
        ours, prediction = reference(ours, out, *history, noise, row.expand(2, -1), clip or math.inf)
        history = [prediction, *history[:2]]
    torch.testing.assert_close(theirs, ours, atol=2e-4, rtol=0)
