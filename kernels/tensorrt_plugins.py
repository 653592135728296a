"""The TensorRT plugins of all fused operators, where TensorRT's ONNX parser finds them."""

from functools import cache

from kernels import attention, group_norm_apply, group_norm_statistics, group_norm_whole, solver_step
from kernels.ptx import check_capability
from kernels.tensorrt_aot import compile_for

WITH_PLUGINS = (solver_step, attention, group_norm_whole, group_norm_statistics, group_norm_apply)


def register_plugins(capability: int) -> None:
    """Let TensorRT's ONNX parser find the plugins, compiled for GPUs of a compute capability, such as 90.

    Call it before parsing, with TensorRT 10.9 or newer (not 10.14, whose plugins of this kind are broken); engines that
    are built from then on are for this capability. Raises ImportError if TensorRT or Triton is missing, ValueError for
    a capability that the kernels are not compiled for.
    """
    check_capability(capability)
    compile_for(capability)
    _register()


@cache
def _register() -> None:
    """TensorRT takes a plugin once in a process."""
    import numpy.typing  # noqa: F401  TensorRT's plugins use it without importing it

    for kernel in WITH_PLUGINS:
        kernel.register_plugin()
