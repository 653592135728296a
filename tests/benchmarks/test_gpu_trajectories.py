"""The trajectories' half of `medgen benchmarks gpu`: on a CPU the same code runs, for the ways that can."""

import itertools
import json
import math
import sys
import time
from functools import cache
from types import SimpleNamespace

import fake_engines
import pytest
import torch
from click.testing import CliRunner
from fake_engines import FakeCudaSession, FakeRtx
from fake_tensorrt import tensorrt_recorded
from tiny_pig import SIZE, tiny_pig
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu import command, contenders, kernel_timing, options, trajectory_timing
from benchmarks.gpu.contenders import (
    WAYS,
    Captured,
    Diffusers,
    DiffusersChannelsLast,
    FusedStep,
    FusedStepChannelsLast,
    Parts,
    Served,
    ServedByTensorRT,
    ServedByTensorRTForRTX,
    ServedByTensorRTUnfused,
    Work,
)
from export import BuildError
from serving.engines import EngineError

CPU = torch.device("cpu")
BATCH, STEPS = 2, 3
DISTANCES = {"fp32": 1e-4, "fp16": 2e-3, "bf16": 2e-2}


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(trajectory_timing, "random_pig", of_size)
    monkeypatch.setattr(trajectory_timing, "STEPS", 2)
    monkeypatch.setattr(trajectory_timing, "ROUNDS", 1)
    monkeypatch.setattr(trajectory_timing, "FEWEST_ROUNDS", 1)


def measured(*arguments):
    (rows,) = trajectory_timing.measure_all(*arguments)
    return rows


@pytest.fixture
def engines(monkeypatch, tmp_path):
    """TensorRT and ONNX Runtime's CUDA provider on a GPU that is ordinary memory; what TensorRT was asked for."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with tensorrt_recorded([BATCH]) as recording:
        monkeypatch.setattr(FakeCudaSession, "cuda", sys.modules["cuda.bindings.driver"], raising=False)
        monkeypatch.setattr("onnxruntime.InferenceSession", FakeCudaSession)
        monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
        yield recording


@pytest.fixture
def on_cpu(monkeypatch):
    """A "graph" that is called again."""
    monkeypatch.setattr(contenders, "captured", lambda function: (function, function()))


family = cache(tiny_pig)  # the same, so that its graphs are exported once


@cache
def of_size(size):
    return tiny_pig(size=size)


def work(precision="fp32", deadline=None):
    start = torch.randn(BATCH, *family().sample_shape, generator=torch.Generator().manual_seed(0))
    return Work(family(), precision, start, STEPS, deadline=deadline or time.monotonic() + 600)


@torch.no_grad()
@pytest.mark.parametrize("precision", options.PRECISIONS)
def test_all_ways_draw_the_same(precision, engines, on_cpu):
    expected = trajectory_timing.host(Diffusers(work()).run())
    served = [] if precision == "bf16" else [Served, ServedByTensorRT]  # no CPU runs bf16 graphs
    layouts = DiffusersChannelsLast, FusedStepChannelsLast
    for way in (Diffusers, FusedStep, Captured, *layouts, *served):
        state = torch.as_tensor(way(work(precision)).run())
        assert state.dtype == torch.float32
        found = trajectory_timing.differences(trajectory_timing.host(state), expected, precision)
        assert found["distance"] < DISTANCES[precision]
        assert precision == "fp32" or found["distance"] > 1e-6  # it was computed in half precision
        assert (found["off"], found["wrong"]) == (0, False)


@torch.no_grad()
@pytest.mark.parametrize("way", [DiffusersChannelsLast, FusedStepChannelsLast])
def test_convolutions_in_channels_last_are_in_channels_last(way, monkeypatch):
    layouts = []

    class Layouts(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            if operator is torch.ops.aten.convolution.default:
                layouts.append(args[1].is_contiguous(memory_format=torch.channels_last))
            return operator(*args, **(kwargs or {}))

    made = way(work())
    with Layouts():
        made.run()
    assert layouts
    assert all(layouts)


class Counted:
    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, *arguments):
        self.calls += 1
        return self.function(*arguments)


def parts_in_calls(way, counted):
    """A way's parts where the time of a call is how often it calls ``counted``, once it is warm."""
    parts, took = way.parts(), {}
    for name, call in parts.calls.items():
        call()
        counted.calls = 0
        call()
        took[name] = counted.calls
    return parts.step(took), parts.networks(took)


@torch.no_grad()
def test_steps_are_timed_and_networks_alone_and_as_often_as_in_a_trajectory(monkeypatch, on_cpu):
    eager, fused, graph = Diffusers(work()), FusedStep(work()), Captured(work())
    eager.run()
    guider = eager.loop["guider"] = Counted(eager.loop["guider"])
    assert parts_in_calls(eager, guider) == (1, STEPS)
    for step, way in ((fused, fused), (graph.step, graph)):
        whole, networks = Counted(step.step), Counted(step.only_networks)
        monkeypatch.setattr(step, "step", whole)
        monkeypatch.setattr(step, "only_networks", networks)
        assert parts_in_calls(way, whole) == (1, 0)
        assert parts_in_calls(way, networks) == (0, STEPS)


@torch.no_grad()
@pytest.mark.parametrize("kind", [Served, ServedByTensorRT])
def test_engines_time_networks_without_the_update(kind, monkeypatch, engines):
    def run(cuda, session, addresses, shapes):
        kinds.add(tuple(node.name for node in session.get_inputs()))
        return run_step(cuda, session, addresses, shapes)

    kinds, run_step = set(), fake_engines.run
    steps = Counted(lambda *given: run(*given))
    way = kind(work())
    monkeypatch.setattr(fake_engines, "run", steps)
    assert parts_in_calls(way, steps) == (1, STEPS)
    assert {("sample", "coeffs"), ("sample",)} < kinds  # networks, and the finish
    assert len(kinds) == 3
    if kind is ServedByTensorRT:
        operators = [{node.op_type for node in model.graph.node} for model in engines.models]
        assert ["SolverStep" in found for found in operators] == [True, False, False, False]
        assert operators[0] - operators[2] == {"SolverStep"}


@torch.no_grad()
def test_fused_and_unfused_plans_are_ways_of_their_own(engines):
    ServedByTensorRTUnfused(work())
    assert not any(node.domain == "medgen" for model in engines.models for node in model.graph.node)


@torch.no_grad()
@pytest.mark.parametrize("capability", [(8, 9), (9, 0)])
def test_tensorrt_for_rtx_is_a_way_where_it_has_plans_for_the_gpu(engines, monkeypatch, capability):
    """Where it has none nothing is built for it."""

    def built(graphs, *_):
        return {f"{name}.plan": graph.SerializeToString() for name, graph in graphs.items()}

    monkeypatch.setattr(contenders, "engine_files", built)
    fake = FakeRtx(engines.cuda, [BATCH])
    fake.ComputeCapability = SimpleNamespace(__members__=["SM86", "SM89"])
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    engines.cuda.capability = capability
    if capability == (8, 9):
        assert ServedByTensorRTForRTX(work()).run().shape == work().start.shape
        return
    monkeypatch.setattr(contenders, "exported", None)
    with pytest.raises(EngineError, match=r"capability 8\.6, 8\.9, and here is NVIDIA H200 \(9\.0\)"):
        ServedByTensorRTForRTX(work())


@torch.no_grad()
def test_plans_are_for_the_batch_that_is_measured(engines):
    ServedByTensorRT(work())
    assert [[profile["sample"] for profile in config.profiles] for config in engines.configs] == [
        [(BATCH, 2, SIZE, SIZE)]
    ] * 2


class Clock:
    """Time that passes where a test says so."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(trajectory_timing.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(trajectory_timing.time, "perf_counter", lambda: self.now)

    def way(self, preparing, running, networks):
        """One that takes so many seconds for each."""

        def passes(seconds):
            self.now += seconds

        class Timed:
            def __init__(self, work):
                self.work = work
                passes(preparing)

            def run(self):
                passes(running)
                return self.work.start

            def parts(self):
                return Parts({"step": lambda: passes(running / 10), "networks": lambda: passes(networks)})

        return Timed


@pytest.fixture
def clock(monkeypatch):
    clock = Clock(monkeypatch)
    monkeypatch.setitem(WAYS, "diffusers-eager", clock.way(0, 2, 1.5))
    monkeypatch.setitem(WAYS, "medgen-pytorch", clock.way(100, 0.5, 0.4))
    return clock


@pytest.mark.usefixtures("clock", "tiny")
def test_shares_and_ratios_are_of_what_was_timed():
    eager, fused = measured(["medgen-pytorch"], [(32, 4, "fp32")], CPU, math.inf)
    assert (eager["ms_per_sample"], fused["ms_per_sample"]) == (500, 125)
    assert (eager["step_ms_per_sample"], fused["step_ms_per_sample"]) == pytest.approx((50, 12.5))
    assert (eager["ratio_to_eager"], fused["ratio_to_eager"]) == (1, 4)
    assert (eager["outside_networks"], fused["outside_networks"]) == pytest.approx((0.25, 0.2))


@pytest.mark.usefixtures("tiny")
def test_what_could_not_be_prepared_in_time_is_not_begun(clock):
    *_, (eager, fused) = trajectory_timing.measure_all(["medgen-pytorch"], [(32, 4, "fp32"), (32, 1, "fp32")], CPU, 200)
    assert clock.now < 200
    assert eager["ms_per_sample"] == 2000
    assert fused["note"] == "there was no time left"


@pytest.mark.usefixtures("tiny")
def test_after_the_deadline_there_is_one_round_and_no_timing_of_networks(clock, monkeypatch):
    monkeypatch.setattr(trajectory_timing, "ROUNDS", 7)
    rows = measured(["medgen-pytorch"], [(32, 4, "fp32")], CPU, 101)
    assert clock.now == 2 + 2 + 100 + 0.5 + 2 * (2 + 0.5)  # the reference, both prepared, warm-up and round
    for row in rows:
        assert row["ms_per_sample"] > 0
        assert row["rounds"] == 1
        assert (row["step_ms_per_sample"], row["outside_networks"]) == (None, None)
    assert "diffusers-eager: 1 steps and networks not measured, as there was no time left" in trajectory_timing.notes(
        {"trajectories": rows}
    )
    report = {"gpu": "NVIDIA Test", "trajectories": rows}
    assert trajectory_timing.table(report).row_count == 2


@pytest.mark.usefixtures("tiny")
def test_networks_that_cannot_be_timed_cost_nothing_else(clock, monkeypatch):
    def fail(self):
        raise RuntimeError("out of memory\nand more")

    monkeypatch.setattr(WAYS["medgen-pytorch"], "parts", fail)
    eager, fused = measured(["medgen-pytorch"], [(32, 4, "fp32")], CPU, math.inf)
    assert eager["outside_networks"] == pytest.approx(0.25)
    assert (fused["ms_per_sample"], fused["outside_networks"]) == (125, None)
    assert fused["note"] == "RuntimeError: out of memory"


@torch.no_grad()
def test_tensorrt_gives_up_at_the_deadline(engines):
    with pytest.raises(BuildError, match="there was no time left to build the step plan"):
        ServedByTensorRT(work(deadline=time.monotonic()))
    assert engines.went_on == [False]


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
def test_networks_are_timed_in_the_same_rounds_as_the_whole(clock, monkeypatch):
    """Else what slows all down for a while is taken for a difference between them."""
    monkeypatch.setattr(trajectory_timing, "ROUNDS", 5)
    monkeypatch.setattr(trajectory_timing, "FEWEST_ROUNDS", 5)
    slow = itertools.cycle([1, 1, 1.5, 3, 2, 1])

    class Slowed(clock.way(0, 0, 0)):
        def run(self):
            self.factor = next(slow)
            clock.now += 2 * self.factor
            return self.work.start

        def parts(self):
            def networks():
                clock.now += 1.5 * self.factor

            return Parts({"step": lambda: None, "networks": networks})

    monkeypatch.setitem(WAYS, "diffusers-eager", Slowed)
    (eager,) = measured([], [(32, 1, "fp32")], CPU, math.inf)
    assert eager["rounds"] == 5
    assert (eager["outside_networks"], eager["outside_networks_spread"]) == pytest.approx((0.25, 0))


@pytest.mark.usefixtures("tiny")
def test_rounds_of_slow_ways_are_few(clock, monkeypatch):
    monkeypatch.setattr(trajectory_timing, "ROUNDS", 7)
    monkeypatch.setattr(trajectory_timing, "FEWEST_ROUNDS", 3)
    (eager,) = measured([], [(32, 1, "fp32")], CPU, math.inf)
    assert eager["rounds"] == 3


def test_a_share_that_does_not_stand_out_is_not_said():
    assert trajectory_timing.share(0.07, 0.01) == "7.0% ± 1.0%"
    assert trajectory_timing.share(-0.1, 0.03) == "< 3.0%"
    assert trajectory_timing.share(0.01, 0.03) == "< 4.0%"
    assert trajectory_timing.share(0.07, None) == ""
    assert trajectory_timing.spread([0.1, 0.2]) is None
    assert trajectory_timing.spread([0.0, 0.1, 0.2, 0.3, 9.0]) == pytest.approx(0.1)


def test_the_most_telling_groups_come_first():
    groups = trajectory_timing.groups((512, 256), (1, 16), ("fp16", "fp32"))
    assert groups[:3] == [(512, 1, "fp16"), (512, 16, "fp16"), (256, 1, "fp16")]
    assert options.PRECISIONS[-1] == "bf16"


def test_every_way_can_be_asked_for():
    assert tuple(WAYS) == options.WAYS


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
    assert list(trajectory_timing.notes({"trajectories": [failed, *late]})) == [
        "medgen-pytorch: 1 not measured, as RuntimeError: no such engine",
        "diffusers-eager: 1 not measured, as there was no time left",
        "medgen-pytorch: 1 not measured, as there was no time left",
    ]


@pytest.mark.usefixtures("tiny")
def test_a_reference_that_fails_costs_its_own_group_alone(monkeypatch):
    def fail(work):
        if len(work.start) > 1:
            raise RuntimeError("out of memory\nand more")
        return Diffusers(work)

    monkeypatch.setitem(WAYS, "diffusers-eager", fail)
    groups = [(32, 2, "fp32"), (32, 1, "fp32")]
    failed, measured = trajectory_timing.measure_all(["medgen-pytorch"], groups, CPU, time.monotonic() + 600)
    reason = "the float32 that it is compared with was not: RuntimeError: out of memory"
    assert [row["note"] for row in failed] == [reason] * 2
    assert all(row["ms_per_sample"] > 0 for row in measured)


def test_float64_is_made_on_the_host():
    """On the device it would be part of a way's peak memory."""
    copies = []

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            if operator is not torch.ops.aten._to_copy.default:
                return operator(*args, **(kwargs or {}))
            copies.append((args[0].device.type, kwargs["dtype"]))
            return torch.zeros(args[0].shape)

    on_device = torch.empty(2, device="meta")
    with Copies():
        trajectory_timing.host(on_device)
    assert copies == [("meta", torch.float32), ("cpu", torch.float64)]


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("bad", [math.nan, 0.5])
def test_what_is_off_everywhere_and_nan_are_failures(monkeypatch, bad):
    class Drifting(FusedStep):
        def run(self):
            state = super().run()
            return state + bad * state

    monkeypatch.setitem(WAYS, "medgen-pytorch", Drifting)
    eager, drifting = measured(["medgen-pytorch"], [(32, 1, "bf16")], CPU, time.monotonic() + 600)
    assert not eager["wrong"]
    assert drifting["wrong"]


def test_a_region_on_the_other_side_of_a_threshold_is_no_failure():
    """The distance alone would be one: two correct ways may cut the guide differently."""
    reference = torch.randn(2, 2, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    state = reference + 1e-4 * reference
    state[1, 1, 4:9, 4:9] += 0.5
    found = trajectory_timing.differences(state, reference, "fp16")
    assert found["distance"] > 0.02
    assert (found["off"], found["wrong"]) == (pytest.approx(25 / 2048), False)
    state[1, 1, :16] += 0.5
    assert trajectory_timing.differences(state, reference, "fp16")["wrong"]


def test_what_could_not_be_measured_again_stays_in_the_file(tmp_path):
    key = {"name": "diffusers-eager", "size": 32, "precision": "fp32"}
    measured = [key | {"batch": 1, "ms_per_sample": 2.0}, key | {"batch": 4, "ms_per_sample": None, "note": "old"}]
    late = [key | {"batch": batch, "ms_per_sample": None, "note": "new"} for batch in (1, 4)]
    out = tmp_path / "gpu.json"
    for rows in (measured, late):
        command.write({"trajectories": rows}, out)
    assert json.loads(out.read_text())["trajectories"] == [measured[0], late[1]]
    again = [key | {"batch": batch, "ms_per_sample": 1.0} for batch in (1, 4)]
    command.write({"trajectories": again}, out)
    assert json.loads(out.read_text())["trajectories"] == again


def test_figures_of_two_gpus_are_not_mixed(monkeypatch, tmp_path):
    out = tmp_path / "gpu.json"
    out.write_text('{"gpu": "NVIDIA H200"}')
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr("kernels.language.INSTALLED", True)
    result = CliRunner().invoke(command.gpu, ["--out", str(out)])
    assert result.exit_code == 1
    assert "has the figures of NVIDIA H200, and here is NVIDIA H100 80GB HBM3: give another --out" in result.output
    assert out.read_text() == '{"gpu": "NVIDIA H200"}'


@pytest.mark.parametrize(("only", "share"), [([], 1 / 3), (["attention"], 1)])
def test_kernels_leave_time_for_trajectories(monkeypatch, tmp_path, only, share):
    def kernels_until(names, deadline):
        deadlines.append(deadline)
        nothing = {"kernels_without_time": 0, "copy_bytes_per_second": 1, "kernels": []}
        return nothing

    def trajectories_until(names, groups, device, deadline):
        deadlines.append(deadline)
        yield []

    deadlines = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Test")
    monkeypatch.setattr("kernels.language.INSTALLED", True)
    monkeypatch.setattr(command.time, "monotonic", lambda: 1000.0)
    monkeypatch.setattr(kernel_timing, "measure_all", kernels_until)
    monkeypatch.setattr(trajectory_timing, "measure_all", trajectories_until)
    chosen = [word for name in only for word in ("--only", name)]
    result = CliRunner().invoke(command.gpu, [*chosen, "--minutes", "9", "--out", str(tmp_path / "gpu.json")])
    assert result.exit_code == 0, result.output
    assert deadlines == [1000 + 540 * share, *([] if only else [1540])]


@pytest.mark.usefixtures("tiny")
def test_what_was_measured_before_stays_in_the_file(monkeypatch, tmp_path):
    out = tmp_path / "gpu.json"
    kernel = {"kernel": "attention", "shape": [1], "detail": "", "dtype": "float32", "ours": 1e-6}
    eager = {"name": "diffusers-eager", "size": 32, "batch": 1, "precision": "fp32", "ms_per_sample": -1.0}
    other = eager | {"size": 64}
    out.write_text(json.dumps({"gpu": "NVIDIA Test", "kernels": [kernel], "trajectories": [eager, other]}))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA Test")
    monkeypatch.setattr("kernels.language.INSTALLED", True)
    monkeypatch.setattr(torch, "device", lambda name: CPU)

    chosen = ["--only", "diffusers-eager", "--size", "32", "--batch", "1", "--precision", "fp32", "--out", str(out)]
    result = CliRunner().invoke(command.gpu, chosen)

    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    assert report["kernels"] == [kernel]
    assert [row["ms_per_sample"] == -1 for row in report["trajectories"]] == [False, True]
    assert "diffusers-eager" in result.output
