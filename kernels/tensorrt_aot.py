"""What a TensorRT plugin whose kernel is compiled ahead of time reads from tensors, and gives back.

TensorRT writes the kernel's PTX into the engine, which then needs no Python.
"""

from typing import TYPE_CHECKING

from kernels.ptx import CompiledKernel

if TYPE_CHECKING:
    import tensorrt.plugin as trtp


_capability: int | None = None


def compile_for(capability: int) -> None:
    """Compile the plugins of all engines that are built from now on for this compute capability, such as 90."""
    global _capability
    _capability = capability


def capability() -> int:
    assert _capability is not None, "plugins are compiled after register_plugins"
    return _capability


def element_type(tensor: "trtp.TensorDesc") -> str:
    import tensorrt as trt

    names = {trt.DataType.FLOAT: "float32", trt.DataType.HALF: "float16", trt.DataType.BF16: "bfloat16"}
    return names[tensor.dtype]


def fixed_sizes(tensor: "trtp.TensorDesc") -> tuple[int, ...]:
    """The sizes of every axis but the batch's. Raises ValueError if one of them is dynamic."""
    sizes = tuple(tensor.shape)[1:]
    if -1 in sizes:
        raise ValueError(f"only the batch may be dynamic, but a tensor has the sizes {tuple(tensor.shape)}")
    return sizes


def ahead_of_time(
    kernel: CompiledKernel, *grid: "int | trtp.ShapeExpr"
) -> "tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]":
    """What a plugin's aot_impl returns for a kernel whose parameters are the inputs, then the outputs."""
    import tensorrt.plugin as trtp

    x, y, z = (*grid, 1, 1)[:3]
    launch = trtp.KernelLaunchParams(x, y, z, block_x=kernel.threads, shared_mem=kernel.shared_memory)
    return kernel.name, kernel.ptx, launch, trtp.SymIntExprs(0)
