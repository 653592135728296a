"""What every fused operator is to PyTorch: traceable, differentiable, exportable, and a Triton kernel on a GPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch.library import CustomOpDef

from kernels.language import INSTALLED


def define_operator(
    name: str, reference: Callable[..., Any], fake: Callable[..., Any], launch: Callable[..., Any]
) -> CustomOpDef:
    """Make `torch.ops.medgen.NAME`, which runs `launch` on a GPU where Triton is installed, and `reference` elsewhere.

    reference: tensors first, then numbers; it also gives the gradient and the ONNX export without fused nodes.
    fake: what the outputs look like. Outputs are contiguous, whatever the memory format of the inputs.
    """
    operator = torch.library.custom_op(f"medgen::{name}", reference, mutates_args=())
    operator.register_fake(fake)
    operator.register_autograd(_backward_of(reference), setup_context=_remember)
    register_decomposition(getattr(torch.ops.medgen, name).default)(reference)
    if INSTALLED:
        operator.register_kernel("cuda")(launch)
    return operator


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
    ctx.numbers = [value for value in inputs if not isinstance(value, Tensor)]


def _backward_of(reference: Callable[..., Any]) -> Callable[..., Any]:
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[: len(ctx.saved_tensors)]
        tensors = [t.detach().requires_grad_(w) for t, w in zip(ctx.saved_tensors, wanted, strict=True)]
        with torch.enable_grad():
            outputs = reference(*tensors, *ctx.numbers)
        variables = [t for t, w in zip(tensors, wanted, strict=True) if w]
        found = iter(torch.autograd.grad(outputs, variables, gradients))
        return tuple(next(found) if w else None for w in wanted) + (None,) * len(ctx.numbers)

    return backward
