"""TensorRT, and ONNX Runtime's CUDA provider, on the fake GPU: both run ONNX graphs on ONNX Runtime's CPU.

Work is put on the stream as the real ones do it, and reads and writes the fake GPU's memory when its turn comes.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
from fake_cuda import FakeCuda

from serving.bundle import Bundle, buckets

VERSION = "11.4.0.106"
CpuSession = onnxruntime.InferenceSession
TYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


def as_tensorrt(bundle: Bundle, **target: Any) -> Bundle:
    """The bundle as if its ONNX files were plans."""
    target = {
        "name": "tensorrt",
        "tensorrt": VERSION,
        "gpu": "NVIDIA H200",
        "compute_capability": "9.0",
        "hardware_compatibility": "none",
        "buckets": list(buckets(bundle.manifest.max_batch)),
        **target,
    }
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, target=target))


def run(
    cuda: FakeCuda, session: CpuSession, addresses: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Run an ONNX graph on the fake GPU's memory."""

    def array(node: Any) -> np.ndarray:
        assert addresses[node.name] % 256 == 0, f"{node.name} is not aligned"
        return cuda.array(addresses[node.name], shapes[node.name], TYPES[node.type])

    inputs = {node.name: array(node).copy() for node in session.get_inputs()}
    for node, values in zip(session.get_outputs(), session.run(None, inputs), strict=True):
        array(node)[:] = values


class FakeTensorRT(ModuleType):
    """The module ``tensorrt`` as far as serving uses it."""

    __version__ = VERSION
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")
    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")

    class ILogger:
        Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)

    def __init__(self, cuda: FakeCuda, sizes: list[int]) -> None:
        super().__init__("tensorrt")
        self.__spec__ = ModuleSpec("tensorrt", None)  # PyTorch looks for it when it is imported late
        self.cuda, self.sizes = cuda, sizes
        self.refuses = ""
        self.says: str | None = ""  # nothing at all if None
        self.starts = True
        self.one_profile = False

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> bool:
        return True

    def Runtime(self, logger: Any) -> Any:  # noqa: N802
        if not self.starts:
            logger.log(1, "CUDA initialization failure with error: 35")
            raise TypeError("factory function returned nullptr")  # as the bindings do
        self.logger = logger
        return SimpleNamespace(deserialize_cuda_engine=self._deserialize)

    def _deserialize(self, plan: bytes) -> Any:
        if not self._may("deserialize"):
            return None
        return FakePlan(self, plan)

    def _may(self, what: str) -> bool:
        if self.refuses == what and self.says is not None:
            self.logger.log(1, self.says or f"no {what} today")
        return self.refuses != what


class FakeRtx(FakeTensorRT):
    """The module ``tensorrt_rtx``: one profile for all batches, and a cache of kernels."""

    __version__ = "1.7.1.116"
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(LAZY="lazy", EAGER="eager")
    CudaGraphStrategy = SimpleNamespace(DISABLED="disabled", WHOLE_GRAPH_CAPTURE="whole")

    def __init__(self, cuda: FakeCuda, sizes: list[int]) -> None:
        super().__init__(cuda, sizes)
        self.one_profile = True
        self.configurations: list[FakeConfiguration] = []


class FakeConfiguration:
    """An ``IRuntimeConfig``, and the ``IRuntimeCache`` that it makes."""

    def __init__(self) -> None:
        self.dynamic_shapes_kernel_specialization_strategy = "lazy"
        self.cuda_graph_strategy = "disabled"
        self.strategy = ""
        self.cache: Any = None
        self.found: bytes | None = None  # in the file

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> "FakeConfiguration":
        return self

    def set_runtime_cache(self, cache: Any) -> bool:
        self.cache = cache
        return True

    def deserialize(self, blob: bytes) -> bool:
        self.found = blob
        return blob == b"kernels"

    def serialize(self) -> bytes:
        return b"kernels"


class FakePlan:
    def __init__(self, trt: FakeTensorRT, plan: bytes) -> None:
        self.trt, self.session = trt, CpuSession(plan)
        self._nodes = [*self.session.get_inputs(), *self.session.get_outputs()]
        self._shapes = {node.name: tuple(node.shape[1:]) for node in self._nodes}
        self.num_io_tensors = len(self._nodes)

    def get_tensor_name(self, k: int) -> str:
        return self._nodes[k].name

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in [node.name for node in self.session.get_inputs()] else "output"

    device_memory_size_v2 = 1000

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape_of(name, -1)

    def shape_of(self, name: str, batch: int) -> tuple[int, ...]:
        return (batch, *self._shapes[name])

    def create_runtime_config(self) -> FakeConfiguration:
        assert isinstance(self.trt, FakeRtx)
        self.trt.configurations.append(configuration := FakeConfiguration())
        return configuration

    def create_execution_context(self, how: Any) -> "FakeContext":
        assert (how.strategy if isinstance(self.trt, FakeRtx) else how) == "user managed"
        return FakeContext(self)


class FakeContext:
    def __init__(self, plan: FakePlan) -> None:
        self.plan, self.trt, self.cuda = plan, plan.trt, plan.trt.cuda
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.has_run = False

    def set_device_memory(self, address: int, size: int) -> None:
        self.scratch = self.cuda.array(address, (size,), np.uint8)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile = profile
        return stream == FakeCuda.STREAM

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        self.batch = shape[0] if self.trt.one_profile else self.trt.sizes[self.profile]
        return shape == self.plan.shape_of(name, self.batch)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        assert isinstance(self.trt, FakeRtx)
        assert (stream, self.has_run) == (FakeCuda.STREAM, True)
        return self.trt._may("capture")

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == FakeCuda.STREAM
        assert len(self.scratch) >= self.plan.device_memory_size_v2
        assert self.has_run or not self.cuda.is_capturing, "the first run of a shape cannot be captured"
        assert self.trt.refuses != "capture" or not self.cuda.is_capturing, "it said that it cannot be captured"
        self.has_run = True
        batch = self.batch
        shapes = {name: self.plan.shape_of(name, batch) for name in self.addresses}
        assert all(self.shapes[node.name] == shapes[node.name] for node in self.plan.session.get_inputs())
        addresses = dict(self.addresses)
        self.cuda.enqueue(lambda: run(self.cuda, self.plan.session, addresses, shapes))
        return self.trt._may("captured run" if self.cuda.is_capturing else "run")


class FakeCudaSession:
    """An ``onnxruntime.InferenceSession`` whose CUDA provider, if it is asked for, is the fake GPU."""

    cuda: FakeCuda
    has_cuda = True
    captured = ""  # what happens to work that is captured: "refused", "calls the host", or nothing
    last_error = ""  # of CUDA's runtime, which says it once more

    def __init__(self, path: Any, options: Any, providers: list[Any]) -> None:
        self._session = CpuSession(path, options, providers=["CPUExecutionProvider"])
        self._given = dict(provider for provider in providers if isinstance(provider, tuple))
        self.run, self.get_inputs = self._session.run, self._session.get_inputs
        self.get_outputs = self._session.get_outputs
        self._runs: Counter[int] = Counter()  # of each batch

    def get_providers(self) -> list[str]:
        return [*(self._given if self.has_cuda else ()), "CPUExecutionProvider"]

    def io_binding(self) -> "FakeBinding":
        return FakeBinding()

    def run_with_iobinding(self, binding: "FakeBinding", options: Any) -> None:
        assert self._given["CUDAExecutionProvider"]["user_compute_stream"] == str(FakeCuda.STREAM)
        assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
        said, FakeCudaSession.last_error = self.last_error, ""
        if said:
            raise RuntimeError(f"Expand node: {said}")
        batch = binding.shapes["sample"][0]
        self._runs[batch] += 1
        if self.cuda.is_capturing:
            assert self._runs[batch] > 2, "the first two runs of a shape take memory"
            if self.captured == "refused":
                FakeCudaSession.last_error = "cudaErrorStreamCaptureUnsupported"
                raise RuntimeError("Conv node: Failed to allocate memory")
            if self.captured == "calls the host":
                self.cuda.call_the_host()
        cuda, session = self.cuda, self._session  # work that waits does not keep this session
        cuda.enqueue(lambda: run(cuda, session, binding.addresses, binding.shapes))


class FakeBinding:
    def __init__(self) -> None:
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}

    def bind_input(self, name: str, kind: str, device: int, dtype: Any, shape: tuple[int, ...], address: int) -> None:
        assert (kind, device) == ("cuda", 0)
        onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype)  # refuses what ONNX Runtime does not take
        self.addresses[name], self.shapes[name] = address, shape

    bind_output = bind_input
