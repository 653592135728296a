"""The TensorRT plugins of all fused operators, where TensorRT's ONNX parser finds them."""

from functools import cache

from kernels import attention, group_norm_apply, group_norm_statistics, group_norm_whole, solver_step

WITH_PLUGINS = (solver_step, attention, group_norm_whole, group_norm_statistics, group_norm_apply)


@cache
def register_plugins(capability: int) -> None:
    """Let TensorRT's ONNX parser find the plugins, compiled for GPUs of a compute capability, such as 90.

    Call it once before parsing, with TensorRT 10.9 or newer (not 10.14, whose plugins of this kind are broken).
    Raises ImportError if TensorRT or Triton is missing.
    """
    import numpy.typing  # noqa: F401  TensorRT's plugins use it without importing it

    for kernel in WITH_PLUGINS:
        kernel.register_plugin(capability)
