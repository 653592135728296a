"""The ways to draw the same samples from the same weights on a GPU."""

import copy
import dataclasses
import functools
import math
import tempfile
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import GraphModule

from benchmarks.latency.diffusers_schedulers import make_scheduler
from export.build import describe, describe_target, engine_files, write_bundle
from export.fuse import fuse
from export.graphs import Step, export_graph, finish_graph, step_graph
from export.options import Options, PlanOptions
from export.precision import DTYPES, in_half_precision
from serving.engines import EngineError, Trajectory, open_engine
from serving.engines.gpu import GpuEngine
from serving.sampling.solvers import COLUMNS, HISTORY, solver_table
from training.family import Family, Network

Timed = Callable[[Callable[[], Any]], float]  # the seconds of a call
Export = Callable[[Family, int, bool, str], onnx.ModelProto]


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """What every way does: ``steps`` of a deterministic solver from ``start`` [B, C, H, W], float32 on the device.

    family: float32, in eval mode, on the device. precision: "fp32", "fp16" or "bf16", of the networks. deadline: by
    ``time.monotonic``, when TensorRT is to give up what it builds.
    """

    family: Family
    precision: str
    start: Tensor
    steps: int
    solver: str = "ddim"
    deadline: float = math.inf

    @cached_property
    def table(self) -> Tensor:
        """[rows, B, 12] on the device."""
        table = solver_table(self.solver, self.family.preset.schedule, self.steps)
        return torch.tensor(table).to(self.start)[:, None].expand(-1, len(self.start), -1).contiguous()


class Way(Protocol):
    """One way, ready to go."""

    def run(self) -> Tensor | NDArray[np.float32]:
        """The last state; the outputs are computed too. On a GPU the work may still be under way."""
        ...

    def step_seconds(self, timed: Timed) -> float:
        """What one step takes, with the update of the solver or scheduler."""
        ...

    def network_seconds(self, timed: Timed) -> float:
        """What the networks alone take, run as often as in ``run`` and in the same way.

        They begin with states and end with their results in float32. Whatever else is in ``run`` is outside of them:
        the solver's or scheduler's update, the finish, and for engines the transfers from and to the host.
        """
        ...


class Diffusers:
    """A loop in Python around diffusers' scheduler: what one has today."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}
        dtype = DTYPES.get(work.precision, torch.float32)
        self.loop = {
            name: self.watched(name, self.prepared(copy.deepcopy(network).to(dtype)), dtype)
            for name, network in work.family.networks().items()
        }

    def prepared(self, network: nn.Module) -> Network:
        return network

    def watched(self, name: str, network: Network, dtype: torch.dtype) -> Network:
        def run(noisy: Tensor, t: Tensor) -> Tensor:
            self.seen[name] = noisy, t
            return network(noisy.to(dtype), t.to(noisy.device)).float()

        return run

    def scheduler(self) -> Any:
        preset = self.work.family.preset
        scheduler = make_scheduler(self.work.solver, preset.schedule, preset.clip, self.work.steps, len(self.loop))
        assert scheduler is not None
        return scheduler

    def run(self) -> Tensor:
        state, scheduler = self.work.start, self.scheduler()
        for t in scheduler.timesteps:
            state = self.work.family.scheduler_step(self.loop, scheduler, t, state)
        self.work.family.finish(state)
        return state

    def step_seconds(self, timed: Timed) -> float:
        scheduler = self.scheduler()
        t = scheduler.timesteps[0]
        return timed(lambda: self.work.family.scheduler_step(self.loop, scheduler, t, self.work.start))

    def networks(self, inputs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        for _ in self.work.table:
            for name, given in inputs.items():
                self.loop[name](*given)

    def network_seconds(self, timed: Timed) -> float:
        inputs = dict(self.seen)
        return timed(lambda: self.networks(inputs))


class Compiled(Diffusers):
    def __init__(self, work: Work) -> None:
        torch._dynamo.reset()  # after a few shapes and types it would leave the networks as they are
        super().__init__(work)

    def prepared(self, network: nn.Module) -> Network:
        compiled: Network = torch.compile(network, mode="max-autotune", dynamic=False)
        return compiled


class Networks(nn.Module):
    """The networks of a step, without the solver."""

    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family

    def forward(self, *inputs: Tensor) -> tuple[Tensor]:
        return (self.family.network(*inputs),)


class FusedStep:
    """medgen's step with its kernels, launched by PyTorch."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.zeros = torch.zeros_like(work.start)
        self.step = graph_of(Step(work.family), (work.start, *[self.zeros] * (HISTORY + 1), work.table[0]), work)

    @cached_property
    def only_networks(self) -> GraphModule:
        return graph_of(Networks(self.work.family), (self.work.start, self.work.table[0]), self.work)

    def run(self) -> Tensor:
        state, history = self.work.start, (self.zeros,) * HISTORY
        for coeffs in self.work.table:
            state, prediction = self.step(state, *history, self.zeros, coeffs)
            history = prediction, *history[:-1]
        self.work.family.finish(state)
        return state

    def one_step(self) -> None:
        self.step(self.work.start, *(self.zeros,) * (HISTORY + 1), self.work.table[0])

    def step_seconds(self, timed: Timed) -> float:
        return timed(self.one_step)

    def networks(self) -> None:
        for coeffs in self.work.table:
            self.only_networks(self.work.start, coeffs)

    def network_seconds(self, timed: Timed) -> float:
        return timed(self.networks)


def graph_of(module: nn.Module, example: tuple[Tensor, ...], work: Work) -> GraphModule:
    graph, _ = fuse(module.eval(), example, None)
    return graph if work.precision == "fp32" else in_half_precision(graph, example, None, work.precision)


class Captured:
    """The same as one CUDA graph from the first noise to the outputs."""

    def __init__(self, work: Work) -> None:
        self.step = FusedStep(work)  # its weights are read by the graph, which does not keep them
        self.replay, self.result = captured(self.step.run)

    def run(self) -> Tensor:
        self.replay()
        return self.result

    def step_seconds(self, timed: Timed) -> float:
        replay, _ = captured(self.step.one_step)
        return timed(replay)

    def network_seconds(self, timed: Timed) -> float:
        replay, _ = captured(self.step.networks)
        return timed(replay)


def captured(function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        function()  # compiles and picks what may not be done within a capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return graph.replay, result


class Served:
    """The bundle's engine, from noise on the host to outputs on the host."""

    target = "onnx"

    def __init__(self, work: Work) -> None:
        self.work = work
        self.engine = self.opened(step_graph)
        self.trajectory = trajectory(work)
        self.twice = trajectory(dataclasses.replace(work, steps=2 * work.steps))

    def opened(self, step: Export) -> GpuEngine:
        """The engine of what `export build` would make for this batch alone, with this step, and without comparing."""
        work, batch = self.work, len(self.work.start)
        options = Options(self.target, work.precision, batch, plan=PlanOptions(deadline=work.deadline))
        target = describe_target(options)
        if "buckets" in target:
            target["buckets"] = [batch]
        manifest = describe(work.family, {}, options, target)
        given = target["opset"], target["fused"], work.precision
        graphs = {"step": exported(step, work.family, *given), "finish": exported(finish_graph, work.family, *given)}
        with tempfile.TemporaryDirectory(prefix="medgen-") as folder:
            bundle = write_bundle(Path(folder), manifest, engine_files(graphs, manifest, options.plan))
            engine = open_engine(bundle, work.start.device.index or 0)
        if not isinstance(engine, GpuEngine):
            raise EngineError("ONNX Runtime has no CUDA provider that works here")
        return engine

    def run(self) -> NDArray[np.float32]:
        state, _ = self.engine.generate(self.trajectory)
        return state

    def step_seconds(self, timed: Timed) -> float:
        return self.all_steps(self.engine, timed) / self.trajectory.rows

    def network_seconds(self, timed: Timed) -> float:
        """Of an engine whose step is the networks alone."""
        return self.all_steps(self.opened(networks_graph), timed)

    def all_steps(self, engine: GpuEngine, timed: Timed) -> float:
        """What a trajectory of twice as many steps takes longer: transfers and finish are in both."""
        return timed(lambda: engine.generate(self.twice)) - timed(lambda: engine.generate(self.trajectory))


class ServedByTensorRT(Served):
    target = "tensorrt"


@functools.cache
def exported(export: Export, family: Family, opset: int, fused: bool, precision: str) -> onnx.ModelProto:
    return export(copy.deepcopy(family).cpu(), opset, fused, precision)


def networks_graph(family: Family, opset: int, fused: bool, precision: str) -> onnx.ModelProto:
    """The step graph without the solver's update: what the networks give takes the place of the next state."""
    inputs = [torch.randn(2, *family.sample_shape), torch.rand(2, len(COLUMNS))]
    return export_graph(
        Networks(family), inputs, ("sample", "coeffs"), ("sample_next",), family, opset, fused, precision
    )


def trajectory(work: Work) -> Trajectory:
    table, start = work.table.cpu().numpy(), work.start.cpu().numpy()
    zeros = np.zeros_like(start)
    return Trajectory(start, np.full(len(start), len(table)), table, lambda row: zeros)


WAYS: dict[str, Callable[[Work], Way]] = {
    "diffusers-eager": Diffusers,
    "torch-compile": Compiled,
    "medgen-pytorch": FusedStep,
    "medgen-cuda-graph": Captured,
    "medgen-onnxruntime": Served,
    "medgen-tensorrt": ServedByTensorRT,
}
YARDSTICK = "diffusers-eager"
