"""TensorRT's own Python bindings over libraries that do nothing: enough to register, build and type-check plugins."""

import ctypes
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

SOURCE = Path(__file__).parent / "kernels" / "tensorrt_libraries.c"
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")


class Registry:
    """Keeps plugin creators, as TensorRT's registry would."""

    def __init__(self) -> None:
        self.creators: dict[str, Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> None:
        self.creators[f"{namespace}::{creator.name}"] = creator

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        return self.creators[f"{namespace}::{name}"]


REGISTRY = Registry()


@contextmanager
def tensorrt_bindings_alone() -> Iterator[Any]:
    """The module `tensorrt`, importable for as long as the context lasts."""
    modules = _modules()
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "tensorrt"}
    sys.modules.update(modules)
    try:
        yield modules["tensorrt"]
    finally:
        for name in modules:
            del sys.modules[name]
        sys.modules.update(before)


@cache
def libraries() -> Path:
    """A folder of the libraries that the bindings are linked to."""
    folder = Path(mkdtemp(prefix="tensorrt-"))
    for name in LIBRARIES:
        library = f"lib{name}.so.11"
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", folder / library, SOURCE]
        subprocess.run(command, check=True)
    return folder


@cache
def _modules() -> dict[str, ModuleType]:
    for name in LIBRARIES:
        ctypes.CDLL(str(libraries() / f"lib{name}.so.11"), mode=ctypes.RTLD_GLOBAL)
    import tensorrt_bindings

    sys.modules["tensorrt"] = tensorrt_bindings
    tensorrt_bindings.get_plugin_registry = lambda: REGISTRY
    tensorrt_bindings.DimsExprs = lambda length: [None] * length
    import tensorrt.plugin

    tensorrt.plugin.SymInt32.__call__ = lambda self: self._expr.number
    return {name: module for name, module in sys.modules.items() if name.split(".")[0] == "tensorrt"}


@dataclass(frozen=True)
class Tactic:
    """What TensorRT writes into an engine for one tactic of a plugin."""

    kernel: str
    ptx: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_memory: int
    extra_arguments: int


class PluginBuild:
    """A plugin taken through its build as TensorRT does it.

    inputs: the type, such as "HALF", and the shape, where -1 is the batch.
    """

    def __init__(
        self, name: str, attributes: dict[str, float], inputs: Sequence[tuple[str, tuple[int, ...]]], batch: int
    ) -> None:
        import tensorrt as trt

        self.count = len(inputs)
        types = [getattr(trt.DataType, dtype) for dtype, _ in inputs]
        self.sizes = [[_size(batch if n == -1 else n, constant=n != -1) for n in shape] for _, shape in inputs]
        kinds = {int: trt.PluginFieldType.INT64, float: trt.PluginFieldType.FLOAT64}
        fields = [trt.PluginField(key, np.array([value]), kinds[type(value)]) for key, value in attributes.items()]
        self.plugin = REGISTRY.creators[f"medgen::{name}"].create_plugin(
            name,
            "medgen",
            trt.PluginFieldCollection(fields),
            trt.TensorRTPhase.BUILD,
            trt.QuickPluginCreationRequest.STRICT_AOT,
        )
        types += self.plugin.get_output_data_types(types, [len(shape) for _, shape in inputs])
        output_sizes = self.plugin.get_output_shapes(self.sizes, [], _Arithmetic())
        shapes = [shape for _, shape in inputs]
        shapes += [tuple(size.number if size.is_constant() else -1 for size in shape) for shape in output_sizes]
        self.tensors = [_descriptor(dtype, shape) for dtype, shape in zip(types, shapes, strict=True)]

    def outputs(self) -> list[tuple[str, tuple[int, ...]]]:
        return [(tensor.desc.type.name, tuple(tensor.desc.dims)) for tensor in self.tensors[self.count :]]

    def is_offered(self) -> bool:
        """Whether the plugin takes tensors of these types."""
        found = [offer.type for offer in self.plugin.get_supported_format_combinations(self.tensors, self.count)]
        wanted = [tensor.desc.type for tensor in self.tensors]
        return wanted in [found[i : i + len(wanted)] for i in range(0, len(found), len(wanted))]

    def tactics(self) -> list[Tactic]:
        assert self.is_offered()
        inputs, outputs = self.tensors[: self.count], self.tensors[self.count :]
        self.plugin.configure_plugin(inputs, outputs)
        return [self._tactic(number, inputs, outputs) for number in self.plugin.get_valid_tactics()]

    def _tactic(self, number: int, inputs: list[Any], outputs: list[Any]) -> Tactic:
        launch, extra = SimpleNamespace(), _Extra()
        self.plugin.set_tactic(number)
        self.plugin.get_launch_params(self.sizes, self.tensors, self.count, launch, extra, _Arithmetic())
        kernel, ptx = self.plugin.get_kernel([tensor.desc for tensor in inputs], [tensor.desc for tensor in outputs])
        return Tactic(
            kernel=kernel,
            ptx=ptx.decode(),
            grid=(launch.grid_x, launch.grid_y, launch.grid_z),
            block=(launch.block_x, launch.block_y, launch.block_z),
            shared_memory=launch.shared_mem,
            extra_arguments=extra.nbSymExprs,
        )


def ptx_parameters(ptx: str) -> list[str]:
    """The types of a kernel's parameters."""
    entry = re.search(r"\.entry \w+\((.*?)\)", ptx, re.DOTALL)
    assert entry is not None
    return re.findall(r"\.param (\.\w+)", entry[1])


class _Extra(dict[int, Any]):
    nbSymExprs: int  # noqa: N815  TensorRT's own name


def _size(number: int, constant: bool) -> Any:
    """One of TensorRT's sizes, which only TensorRT can make, with its answers in Python."""
    import tensorrt as trt

    class Size(trt.IDimensionExpr):
        def is_constant(self) -> bool:
            return constant

        def get_constant_value(self) -> int:
            return number

    size = Size.__new__(Size)
    size.number = number
    return size


class _Arithmetic:
    def constant(self, number: int) -> Any:
        return _size(number, constant=True)

    def operation(self, operation: Any, first: Any, second: Any) -> Any:
        import tensorrt as trt

        results = {
            trt.DimensionOperation.SUM: first.number + second.number,
            trt.DimensionOperation.PROD: first.number * second.number,
        }
        return _size(results[operation], first.is_constant() and second.is_constant())


def _descriptor(dtype: Any, shape: tuple[int, ...]) -> Any:
    import tensorrt as trt

    descriptor = trt.DynamicPluginTensorDesc()
    descriptor.desc.type, descriptor.desc.dims, descriptor.desc.format = dtype, shape, trt.TensorFormat.LINEAR
    return descriptor
