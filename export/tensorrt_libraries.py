"""TensorRT, and TensorRT for RTX: one builder's interface, and what the two do differently."""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import onnx

from export import BuildError
from export.options import COMPATIBILITY
from export.tensorrt_graphs import by_way_of_floats
from kernels.attention import NATIVE_OPSET
from kernels.language import INSTALLED
from kernels.onnx_functions import DOMAIN, split_large_groups
from kernels.tensorrt_plugins import register_plugins
from serving.bundle import buckets
from serving.engines.cuda_version import check_driver, driver_version
from serving.engines.device import Device

if TYPE_CHECKING:
    import tensorrt as trt


class Library(ABC):
    """A library that builds plans; ``name`` is what --target and manifests call it."""

    name: str
    title: str
    module: str
    parity_on_onnx: bool  # whether a build compares its graphs in ONNX Runtime, as the plans need not run here

    def load(self) -> ModuleType:
        """The library's Python module. Raises BuildError if it is not installed or a version that does not do."""
        try:
            module = importlib.import_module(self.module)
        except ImportError as error:
            package = self.module.replace("_", "-")
            raise BuildError(f"{self.title} is not installed: pip install {package} ({error})") from None
        self.check_version(module.__version__)
        return module

    @abstractmethod
    def check_version(self, version: str) -> None:
        """Raise BuildError for a version that does not do."""

    def check_host(self) -> None:  # noqa: B027 - one library has nothing to do here
        """Raise EngineError where the library is not to be started, as it would end the process."""

    @abstractmethod
    def describe(self, max_batch: int, hardware_compatibility: str) -> dict[str, Any]:
        """A manifest's target for plans that are built here and now; raises as ``tensorrt.describe_target`` does."""

    @abstractmethod
    def native_opset(self, target: Mapping[str, Any]) -> int | None:
        """The opset whose Attention becomes a layer of its own, if the target's version has it."""

    @abstractmethod
    def prepared(self, graph: onnx.ModelProto, version: str) -> onnx.ModelProto:
        """A graph, or a copy, in the form that the library takes."""

    @abstractmethod
    def profiles(self, target: Mapping[str, Any]) -> list[tuple[int, int, int]]:
        """Of each optimisation profile the least, the usual and the greatest batch."""

    @abstractmethod
    def timings_name(self, target: Mapping[str, Any]) -> str | None:
        """What timings of kernels are good for, a library and a GPU; None where none are taken."""

    def before(self, graph: onnx.ModelProto, target: Mapping[str, Any]) -> None:  # noqa: B027 - one library has nothing to do here
        """Have the library find what the graph needs."""

    def network_flags(self) -> int:
        """Types are as the graph has them."""
        return 1 << int(self.load().NetworkDefinitionCreationFlag.STRONGLY_TYPED)

    def configure(self, config: "trt.IBuilderConfig", target: Mapping[str, Any]) -> None:  # noqa: B027 - one library has nothing to do here
        """Say which GPUs the plans are for."""


class TensorRT(Library):
    """Plans for the GPU that is here, with kernels that are chosen and fused operators that are compiled for it."""

    name, title, module = "tensorrt", "TensorRT", "tensorrt"
    parity_on_onnx = False

    def check_version(self, version: str) -> None:
        if numbers(version) < (10, 9) or numbers(version) == (10, 14):
            raise BuildError(
                f"TensorRT is {version}; plugins need 10.9 or newer, and not 10.14: pip install -U tensorrt"
            )

    def check_host(self) -> None:
        check_driver(self.module, self.load().__version__)

    def describe(self, max_batch: int, hardware_compatibility: str) -> dict[str, Any]:
        self.load()
        device = Device()
        self.check_host()
        return {
            "tensorrt": self.load().__version__,
            "gpu": device.name,
            "compute_capability": ".".join(map(str, device.compute_capability)),
            "driver": driver_version(),
            "hardware_compatibility": hardware_compatibility,
            "buckets": list(buckets(max_batch)),
        }

    def native_opset(self, target: Mapping[str, Any]) -> int | None:
        return NATIVE_OPSET if numbers(target["tensorrt"]) >= (10, 15) else None

    def prepared(self, graph: onnx.ModelProto, version: str) -> onnx.ModelProto:
        graph = onnx.ModelProto.FromString(graph.SerializeToString())
        split_large_groups(graph)
        if numbers(version) < (11,):
            by_way_of_floats(graph)
        return graph

    def profiles(self, target: Mapping[str, Any]) -> list[tuple[int, int, int]]:
        return [(bucket, bucket, bucket) for bucket in target["buckets"]]

    def timings_name(self, target: Mapping[str, Any]) -> str | None:
        return f"{target['gpu']} tensorrt {target['tensorrt']}"

    def before(self, graph: onnx.ModelProto, target: Mapping[str, Any]) -> None:
        """Register the fused operators, compiled for the oldest GPU that the plans are to run on."""
        if all(node.domain != DOMAIN for node in graph.graph.node):
            return
        if not INSTALLED:
            raise BuildError("the fused operators need Triton: pip install triton, or build with --no-fuse")
        capability = int(target["compute_capability"].replace(".", ""))
        try:
            register_plugins(80 if target["hardware_compatibility"] == "ampere_plus" else capability)
        except ValueError as error:
            raise BuildError(f"{error}; build with --no-fuse") from None

    def network_flags(self) -> int:
        """Types as the graph has them, and kernels of plugins that were compiled before."""
        flags = self.load().NetworkDefinitionCreationFlag
        return super().network_flags() | 1 << int(flags.PREFER_AOT_PYTHON_PLUGINS)

    def configure(self, config: "trt.IBuilderConfig", target: Mapping[str, Any]) -> None:
        levels = self.load().HardwareCompatibilityLevel.__members__
        config.hardware_compatibility_level = levels[target["hardware_compatibility"].upper()]


class TensorRTForRTX(Library):
    """Plans for all RTX GPUs from Ampere on, built without one: kernels are made where they run.

    It takes no plugins in Python, so the fused operators are their bodies of standard operators.
    """

    name, title, module = "tensorrt-rtx", "TensorRT for RTX", "tensorrt_rtx"
    parity_on_onnx = True

    def check_version(self, version: str) -> None:
        if numbers(version) < (1, 7):
            raise BuildError(f"TensorRT for RTX is {version}; medgen needs 1.7 or newer: pip install -U tensorrt-rtx")

    def describe(self, max_batch: int, hardware_compatibility: str) -> dict[str, Any]:
        module = self.load()
        if hardware_compatibility != COMPATIBILITY[0]:
            raise BuildError("--hardware-compatibility is for --target tensorrt; tensorrt-rtx is for all RTX GPUs")
        return {
            "tensorrt_rtx": module.__version__,
            "compute_capabilities": capabilities(module),
            "buckets": list(buckets(max_batch)),
        }

    def native_opset(self, target: Mapping[str, Any]) -> int | None:
        return NATIVE_OPSET

    def prepared(self, graph: onnx.ModelProto, version: str) -> onnx.ModelProto:
        return graph

    def profiles(self, target: Mapping[str, Any]) -> list[tuple[int, int, int]]:
        most = target["buckets"][-1]
        return [(1, max(1, most // 2), most)]

    def timings_name(self, target: Mapping[str, Any]) -> str | None:
        return None


LIBRARIES: dict[str, Library] = {library.name: library for library in (TensorRT(), TensorRTForRTX())}


def numbers(version: str) -> tuple[int, ...]:
    """The first two, such as (10, 9)."""
    return tuple(int(number) for number in version.split(".")[:2])


def capabilities(module: ModuleType) -> list[str]:
    """Those that plans of TensorRT for RTX run on if none is asked for, such as "8.9": all but Turing's 7.5."""
    names = [name.removeprefix("SM") for name in module.ComputeCapability.__members__ if name.startswith("SM")]
    return [f"{name[:-1]}.{name[-1]}" for name in names if int(name) >= 80]
