"""TensorRT's builder as a recording: the bindings are the real ones, but what needs TensorRT's libraries is played.

A plan is the ONNX graph itself, so it runs on the fake GPU of ``fake_engines``.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from fake_cuda import FakeCuda, installed
from fake_engines import FakeTensorRT
from tensorrt_bindings_alone import tensorrt_bindings_alone

from kernels.ptx import check_capability


@dataclass
class Recording:
    """What was asked of TensorRT, and what it is to answer: ``make_plan`` gives a plan of a graph, or None."""

    make_plan: Callable[[onnx.ModelProto], bytes | None] = lambda model: model.SerializeToString()
    parser_errors: list[tuple[str, str, str]] = field(default_factory=list)  # node, operator, description
    says: list[str] = field(default_factory=list)  # errors that go into the log during the build
    builder_says: str = ""  # why there is no builder
    takes_timings: bool = True
    flags: list[int] = field(default_factory=list)  # of networks
    configs: list["FakeConfig"] = field(default_factory=list)
    models: list[onnx.ModelProto] = field(default_factory=list)
    went_on: list[bool] = field(default_factory=list)  # whether the monitor let a build go on after its first step
    cuda: FakeCuda = field(default_factory=FakeCuda)
    capabilities: list[int] = field(default_factory=list)  # plugins were registered for


class FakeConfig:
    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.set: list[str] = []
        self.cleared: list[str] = []
        self.pools: dict[str, int] = {}
        self.profiles: list[dict[str, tuple[int, ...]]] = []
        self.timings: Any = None
        self.progress_monitor: Any = None
        self.hardware_compatibility_level: Any = None

    def set_flag(self, flag: Any) -> None:
        self.set.append(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.cleared.append(flag.name)

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.pools[pool.name] = size

    def add_optimization_profile(self, profile: Any) -> int:
        self.profiles.append(profile.shapes)
        return len(self.profiles) - 1

    def create_timing_cache(self, content: bytes) -> Any:
        return SimpleNamespace(content=content, serialize=lambda: content + b"timed;")

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if cache.content and not self.recording.takes_timings:
            return False
        self.timings = cache
        return not ignore_mismatch

    def get_timing_cache(self) -> Any:
        return self.timings


class FakeProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def set_shape(self, name: str, least: Any, best: Any, most: Any) -> None:
        assert tuple(least) == tuple(best) == tuple(most)
        self.shapes[name] = tuple(best)


@contextmanager
def tensorrt_recorded(sizes: list[int]) -> Iterator[Recording]:
    """TensorRT and a GPU; ``sizes`` are the buckets that plans have."""
    recording = Recording()
    cuda = recording.cuda
    runtime = FakeTensorRT(cuda, sizes)

    with tensorrt_bindings_alone() as trt, installed(cuda), pytest.MonkeyPatch.context() as patch:

        def register(capability: int) -> None:
            check_capability(capability)
            recording.capabilities.append(capability)

        class Parser:
            def __init__(self, network: Any, log: Any) -> None:
                self.network, self.num_errors = network, len(recording.parser_errors)

            def parse(self, content: bytes) -> bool:
                model = onnx.ModelProto.FromString(content)
                recording.models.append(model)
                self.network.model = model
                return not recording.parser_errors

            def get_error(self, k: int) -> Any:
                names = "node_name", "node_operator", "desc"
                return SimpleNamespace(
                    **{
                        name: lambda text=text: text
                        for name, text in zip(names, recording.parser_errors[k], strict=True)
                    }
                )

        class Input:
            def __init__(self, value: onnx.ValueInfoProto) -> None:
                self.name = value.name
                self.sizes = [size.dim_value or -1 for size in value.type.tensor_type.shape.dim]

            @property
            def shape(self) -> Any:
                return trt.Dims(self.sizes)

        class Network:
            model: onnx.ModelProto

            @property
            def num_inputs(self) -> int:
                return len(self.model.graph.input)

            def get_input(self, k: int) -> Input:
                return Input(self.model.graph.input[k])

        class Builder:
            def __init__(self, log: Any) -> None:
                if recording.builder_says:
                    log.log(trt.ILogger.Severity.ERROR, recording.builder_says)
                    raise TypeError("factory function returned nullptr")  # as the bindings do
                self.log = log

            def create_network(self, flags: int) -> Network:
                recording.flags.append(flags)
                return Network()

            def create_builder_config(self) -> FakeConfig:
                recording.configs.append(FakeConfig(recording))
                return recording.configs[-1]

            def create_optimization_profile(self) -> FakeProfile:
                return FakeProfile()

            def build_serialized_network(self, network: Network, config: FakeConfig) -> bytes | None:
                monitor = config.progress_monitor
                assert isinstance(monitor, trt.IProgressMonitor)
                monitor.phase_start("Building", None, 2)
                for message in recording.says:
                    self.log.log(trt.ILogger.Severity.WARNING, "never mind")
                    self.log.log(trt.ILogger.Severity.ERROR, message)
                plan = recording.make_plan(network.model)
                recording.went_on.append(monitor.step_complete("Building", 0))
                if recording.went_on[-1]:
                    monitor.step_complete("Building", 1)
                monitor.phase_finish("Building")
                return plan if recording.went_on[-1] else None

        for name, thing in {
            "OnnxParser": Parser,
            "Builder": Builder,
            "Runtime": runtime.Runtime,
            "init_libnvinfer_plugins": runtime.init_libnvinfer_plugins,
            "TensorIOMode": runtime.TensorIOMode,
            "ExecutionContextAllocationStrategy": runtime.ExecutionContextAllocationStrategy,
        }.items():
            patch.setattr(trt, name, thing)
        patch.setattr("export.tensorrt_libraries.register_plugins", register)
        yield recording
