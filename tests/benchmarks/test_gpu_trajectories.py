"""The trajectories' half of `python -m benchmarks gpu`: on a CPU the same code runs, for the ways that can."""

import json
import math
import time

import pytest
import torch
from click.testing import CliRunner
from tiny_pig import tiny_pig

from benchmarks.gpu import command, trajectories
from benchmarks.gpu.ways import WAYS, Diffusers, FusedStep, Served, Work

CPU = torch.device("cpu")


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(trajectories, "random_pig", lambda size: tiny_pig(size=size))
    monkeypatch.setattr(trajectories, "STEPS", 2)
    monkeypatch.setattr(trajectories, "ROUNDS", 1)


def measured(*arguments):
    (rows,) = trajectories.measure_all(*arguments)
    return rows


def work(precision="fp32", **fields):
    family = tiny_pig(**fields)
    return Work(family, precision, torch.randn(2, *family.sample_shape, generator=torch.Generator().manual_seed(0)), 3)


@torch.no_grad()
@pytest.mark.parametrize("precision", trajectories.PRECISIONS)
def test_all_ways_draw_the_same(precision):
    expected = trajectories.host(Diffusers(work()).run())
    for way in (Diffusers, FusedStep, *([] if precision == "bf16" else [Served])):  # no CPU runs bf16 graphs
        state = torch.as_tensor(way(work(precision)).run())
        assert state.dtype == torch.float32
        off = trajectories.distance(trajectories.host(state), expected)
        assert off < trajectories.DRIFT[precision]
        assert precision == "fp32" or off > 1e-6  # it was computed in half precision


@pytest.mark.usefixtures("tiny")
def test_figures():
    (eager, fused) = measured(["medgen-pytorch"], [(32, 2, "fp32")], CPU, time.monotonic() + 600)
    assert [eager["name"], fused["name"]] == ["diffusers-eager", "medgen-pytorch"]
    assert eager["ratio_to_eager"] == 1
    assert eager["distance"] == 0
    assert not fused["wrong"]
    assert fused["ms_per_sample"] > 0
    assert math.isfinite(fused["outside_networks"])


@pytest.mark.usefixtures("tiny")
def test_what_fails_or_comes_too_late_has_a_reason(monkeypatch):
    def fail(work):
        raise RuntimeError("no such engine\nand more")

    monkeypatch.setitem(WAYS, "medgen-pytorch", fail)
    eager, failed = measured(["medgen-pytorch"], [(32, 1, "fp32")], CPU, time.monotonic() + 600)
    assert eager["ms_per_sample"] > 0
    assert failed["note"] == "RuntimeError: no such engine"

    late = measured(["medgen-pytorch"], [(32, 1, "fp32")], CPU, time.monotonic() - 1)
    assert [row["note"] for row in late] == ["there was no time left"] * 2
    assert list(trajectories.notes({"trajectories": [failed, *late]})) == [
        "medgen-pytorch: 1 not measured, as RuntimeError: no such engine",
        "diffusers-eager: 1 not measured, as there was no time left",
        "medgen-pytorch: 1 not measured, as there was no time left",
    ]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("bad", [math.nan, 0.5])
def test_drift_and_nan_are_failures(monkeypatch, bad):
    class Drifting(FusedStep):
        def run(self):
            state = super().run()
            return state + bad * state

    monkeypatch.setitem(WAYS, "medgen-pytorch", Drifting)
    eager, drifting = measured(["medgen-pytorch"], [(32, 1, "bf16")], CPU, time.monotonic() + 600)
    assert not eager["wrong"]
    assert drifting["wrong"]


@pytest.mark.usefixtures("tiny")
def test_what_was_measured_before_stays_in_the_file(monkeypatch, tmp_path):
    out = tmp_path / "gpu.json"
    kernel = {"kernel": "attention", "shape": [1], "detail": "", "dtype": "float32", "ours": 1e-6}
    eager = {"name": "diffusers-eager", "size": 32, "batch": 1, "precision": "fp32", "ms_per_sample": -1.0}
    other = eager | {"size": 64}
    out.write_text(json.dumps({"gpu": "NVIDIA Test", "kernels": [kernel], "trajectories": [eager, other]}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Test")
    monkeypatch.setattr(command, "INSTALLED", True)
    monkeypatch.setattr(torch, "device", lambda name: CPU)

    options = ["--only", "diffusers-eager", "--size", "32", "--batch", "1", "--precision", "fp32", "--out", str(out)]
    result = CliRunner().invoke(command.gpu, options)

    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert report["kernels"] == [kernel]
    assert [row["ms_per_sample"] == -1 for row in report["trajectories"]] == [False, True]
    assert "diffusers-eager" in result.output
