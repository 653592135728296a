"""The ways to draw the same samples from the same weights on a GPU."""

import copy
import dataclasses
import functools
import math
import tempfile
from collections.abc import Callable, Mapping
from functools import cached_property
from operator import itemgetter
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
from serving.engines.compatibility import check_capability
from serving.engines.device import Device
from serving.engines.gpu import GpuEngine
from serving.engines.onnxruntime_cuda import is_promised
from serving.sampling.solvers import COLUMNS, HISTORY, solver_table
from training.family import Family, Network

Seconds = Mapping[str, float]  # of calls, by name
NO_PROVIDER = "ONNX Runtime has no CUDA provider that works here"
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


@dataclasses.dataclass(frozen=True, eq=False)
class Parts:
    """What is timed in the same rounds as the whole, to tell what is in it.

    calls: by name. step: the seconds of one step, with the update of the solver or scheduler, from those of the calls.
    networks: what the networks alone take, run as often as in the whole and in the same way. They begin with states and
    end with their results in float32. Whatever else is in the whole is outside of them: the solver's or scheduler's
    update, the finish, and for engines the transfers from and to the host.
    """

    calls: Mapping[str, Callable[[], Any]]
    step: Callable[[Seconds], float] = itemgetter("step")
    networks: Callable[[Seconds], float] = itemgetter("networks")


class Way(Protocol):
    """One way, ready to go."""

    def run(self) -> Tensor | NDArray[np.float32]:
        """The last state; the outputs are computed too. On a GPU the work may still be under way."""
        ...

    def parts(self) -> Parts:
        """Called after a run; it may have to build something first."""
        ...


def in_channels_last(network: nn.Module) -> nn.Module:
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # PyTorch's types lack it
    return network


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
        assert preset.schedule is not None
        scheduler = make_scheduler(self.work.solver, preset.schedule, preset.clip, self.work.steps, len(self.loop))
        assert scheduler is not None
        return scheduler

    def run(self) -> Tensor:
        state, scheduler = self.work.start, self.scheduler()
        for t in scheduler.timesteps:
            state = self.work.family.scheduler_step(self.loop, scheduler, t, state)
        self.work.family.finish(state)
        return state

    def parts(self) -> Parts:
        scheduler, inputs = self.scheduler(), dict(self.seen)
        t = scheduler.timesteps[0]

        def step() -> None:
            self.work.family.scheduler_step(self.loop, scheduler, t, self.work.start)

        return Parts({"step": step, "networks": lambda: self.networks(inputs)})

    def networks(self, inputs: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        for _ in self.work.table:
            for name, given in inputs.items():
                self.loop[name](*given)


class DiffusersChannelsLast(Diffusers):
    """Convolutions on [B, H, W, C], as a careful user has them: the layout of tensor cores in half precision."""

    def prepared(self, network: nn.Module) -> Network:
        return in_channels_last(network)


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
        self.step = self.graph_of(Step)

    def graph_of(self, kind: type[nn.Module]) -> nn.Module:
        graph = traced(self.work.family, self.work.precision, kind is Step)
        return copy.deepcopy(graph).to(self.work.start.device)

    @cached_property
    def only_networks(self) -> nn.Module:
        return self.graph_of(Networks)

    def run(self) -> Tensor:
        state, history = self.work.start, (self.zeros,) * HISTORY
        for coeffs in self.work.table:
            state, prediction = self.step(state, *history, self.zeros, coeffs)
            history = prediction, *history[:-1]
        self.work.family.finish(state)
        return state

    def one_step(self) -> None:
        self.step(self.work.start, *(self.zeros,) * (HISTORY + 1), self.work.table[0])

    def networks(self) -> None:
        for coeffs in self.work.table:
            self.only_networks(self.work.start, coeffs)

    def parts(self) -> Parts:
        return Parts({"step": self.one_step, "networks": self.networks})


class FusedStepChannelsLast(FusedStep):
    """Its kernels take [B, C, H, W] alone: PyTorch puts a copy before each, and each convolution makes one after it."""

    def graph_of(self, kind: type[nn.Module]) -> nn.Module:
        return in_channels_last(super().graph_of(kind))


@functools.cache
def traced(family: Family, precision: str, whole_step: bool) -> GraphModule:
    """PyTorch's graph of a step, or of its networks alone, for any batch and with weights on the host."""
    device = next(family.parameters()).device
    tensors = HISTORY + 2 if whole_step else 1  # of the size of a state
    state = torch.randn(2, *family.sample_shape, device=device)
    example = (*(state.clone() for _ in range(tensors)), torch.rand(2, len(COLUMNS), device=device))
    shapes: Any = (tuple({0: torch.export.Dim.DYNAMIC} for _ in example),)
    module = Step(family) if whole_step else Networks(family)
    graph, _ = fuse(module.eval(), example, shapes)
    if precision != "fp32":
        graph = in_half_precision(graph, example, shapes, precision)
    used = {node.target for node in graph.graph.nodes if node.op == "get_attr"}
    graph = copy.deepcopy(graph)  # its weights are the family's
    for name, _ in list(graph.named_parameters()):
        if name not in used:
            owner, _, attribute = name.rpartition(".")
            delattr(graph.get_submodule(owner), attribute)
    return graph.cpu()


class Captured:
    """The same as one CUDA graph from the first noise to the outputs."""

    kind = FusedStep

    def __init__(self, work: Work) -> None:
        self.step = self.kind(work)  # its weights are read by the graph, which does not keep them
        self.replay, self.result = captured(self.step.run)

    def run(self) -> Tensor:
        self.replay()
        return self.result

    def parts(self) -> Parts:
        return Parts({name: captured(call)[0] for name, call in self.step.parts().calls.items()})


class CapturedChannelsLast(Captured):
    kind = FusedStepChannelsLast


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
    fused = True

    def __init__(self, work: Work) -> None:
        self.work = work
        self.engine = self.opened(step_graph)
        self.trajectory = trajectory(work)
        self.twice = trajectory(dataclasses.replace(work, steps=2 * work.steps))

    def opened(self, step: Export) -> GpuEngine:
        """The engine of what `export build` would make for this batch alone, with this step, and without comparing."""
        work, batch = self.work, len(self.work.start)
        plan = PlanOptions(deadline=work.deadline)
        options = Options(self.target, work.precision, batch, fused=self.fused, plan=plan)
        if self.target == "onnx" and not is_promised():
            raise EngineError(NO_PROVIDER)
        target = describe_target(options)
        if "buckets" in target:
            target["buckets"] = [batch]
        manifest = describe(work.family, {}, options, target)
        if "compute_capabilities" in target:
            device = Device(work.start.device.index or 0)
            check_capability(manifest, device.name, device.compute_capability)
        given = target["opset"], target["fused"], work.precision
        graphs = {"step": exported(step, work.family, *given), "finish": exported(finish_graph, work.family, *given)}
        with tempfile.TemporaryDirectory(prefix="medgen-") as folder:
            bundle = write_bundle(Path(folder), manifest, engine_files(graphs, manifest, options.plan))
            engine = open_engine(bundle, work.start.device.index or 0)
        if not isinstance(engine, GpuEngine):
            raise EngineError(NO_PROVIDER)
        return engine

    def run(self) -> NDArray[np.float32]:
        state, _ = self.engine.generate(self.trajectory)
        return state

    def parts(self) -> Parts:
        """From what a trajectory of twice as many steps takes longer: transfers and finish are in both."""
        networks = self.opened(networks_graph)  # an engine whose step is the networks alone
        return Parts(
            {
                f"{name} {times}": functools.partial(engine.generate, trajectory)
                for name, engine in (("steps", self.engine), ("networks", networks))
                for times, trajectory in (("once", self.trajectory), ("twice", self.twice))
            },
            step=lambda took: (took["steps twice"] - took["steps once"]) / self.trajectory.rows,
            networks=lambda took: took["networks twice"] - took["networks once"],
        )


class ServedByTensorRT(Served):
    target = "tensorrt"


class ServedByTensorRTForRTX(Served):
    target = "tensorrt-rtx"


class ServedByTensorRTUnfused(ServedByTensorRT):
    fused = False


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
    "medgen-cuda-graph": Captured,
    "medgen-tensorrt": ServedByTensorRT,
    "medgen-tensorrt-unfused": ServedByTensorRTUnfused,
    "medgen-tensorrt-rtx": ServedByTensorRTForRTX,
    "medgen-onnxruntime": Served,
    "diffusers-channels-last": DiffusersChannelsLast,
    "medgen-cuda-graph-channels-last": CapturedChannelsLast,
    "medgen-pytorch": FusedStep,
    "medgen-pytorch-channels-last": FusedStepChannelsLast,
    "torch-compile": Compiled,
}
