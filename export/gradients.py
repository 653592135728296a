"""The gradient of a loss as a graph that torch.export and ONNX take."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._decomp import core_aten_decompositions
from torch.func import grad
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode

from export import BuildError
from export.simplify import simplify
from training.descent import Descent

aten = torch.ops.aten

EXACT = 1e-10  # of the largest value, in float64
Losses = Callable[..., Tensor]


def gradient_graph(losses: Losses, state: Tensor, *given: Tensor) -> GraphModule:
    """A module (state, *given) -> the gradient of each row's loss by its state, of the state's shape.

    losses: (state [B, ...], *given [B, ...]) -> [B], in PyTorch; no row may have a part in another's. state, given:
    examples of one row or more; the number of rows stays free. What ``losses`` closes over is constant.

    torch.export does not take torch.func.grad, and ONNX has no backward operators. So the gradient is traced into
    PyTorch's own operators, and those that go backwards are written with forward ones: a convolution's with a
    convolution, that of enlarging by nearest neighbours with an average, that of a maximum with the places that had it.
    What hangs on no input is worked out here and kept.

    Raises BuildError for an operator whose way back is not known.
    """

    def gradient(state: Tensor, *given: Tensor) -> Tensor:
        by_state: Tensor = grad(lambda sought: losses(sought, *given).sum())(state)
        return by_state

    # A number that no other axis has: sizes that are alike would be taken to be one and the same.
    others = {size for tensor in (state, *given) for size in tensor.shape[1:]}
    rows = next(number for number in range(2, len(others) + 3) if number not in others)
    examples = [tensor[:1].repeat(rows, *[1] * (tensor.ndim - 1)) for tensor in (state, *given)]
    table = {op: way for op, way in core_aten_decompositions().items() if "backward" in str(op)} | BACKWARD
    with torch.no_grad(), EnlargingWhole():
        traced = make_fx(gradient, table, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*examples)
        left = sorted({str(node.target) for node in traced.graph.nodes if "backward" in str(node.target)})
        if left:
            raise BuildError(f"a loss has {left[0]} in its gradient, which cannot be exported")
        simplify(traced)
        _keep_constants(traced)
    return traced


class EnlargingWhole(TorchFunctionMode):
    """While it lasts, enlarging by nearest neighbours is one operator; PyTorch's tracer takes it apart into indices."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        factor: Any = given.get("scale_factor")
        picture = args[0] if len(args) == 1 else None
        is_whole = isinstance(factor, int | float) and factor >= 1 and factor == int(factor)
        is_nearest = function is F.interpolate and given.get("mode", "nearest") == "nearest"
        if not is_whole or not is_nearest or not isinstance(picture, Tensor) or picture.ndim != 4:
            return function(*args, **given)
        height, width = picture.shape[2:]
        with _only(aten.upsample_nearest2d.default):
            return aten.upsample_nearest2d.default(picture, [int(factor * height), int(factor * width)])


@contextmanager
def _only(operator: Any) -> Iterator[None]:
    """While it lasts, an operator is not taken apart by what PyTorch has in Python for it."""
    kernels = dict(operator.py_kernels)
    operator.py_kernels.clear()
    operator._dispatch_cache.clear()
    try:
        yield
    finally:
        operator.py_kernels.update(kernels)
        operator._dispatch_cache.clear()


def checked_gradient(family: Descent, state: Tensor, *given: Tensor) -> GraphModule:
    """The graph of a family's gradient in float32, after it was compared in float64 with that of torch.autograd.

    state, given: as for ``gradient_graph``. Raises BuildError if they differ beyond float64's last digits.
    """
    exact = copy.deepcopy(family).double().requires_grad_(False)
    start, *others = [tensor.double() for tensor in (state, *given)]
    graph = gradient_graph(exact.losses, start, *others)
    sought = start.clone().requires_grad_(True)
    (expected,) = torch.autograd.grad(exact.losses(sought, *others).sum(), sought)
    with torch.no_grad():
        difference = (graph(start, *others) - expected).abs().max() / expected.abs().max()
    if not difference <= EXACT:
        raise BuildError(f"the gradient of {family.name} differs from torch.autograd by {difference:.2e} in float64")
    return _in_float32(graph)


def _in_float32(graph: GraphModule) -> GraphModule:
    """A graph that was traced in float64; that is written into its conversions, too."""
    for node in graph.graph.nodes:
        node.args, node.kwargs = map_aggregate(
            (node.args, node.kwargs), lambda value: torch.float32 if value is torch.float64 else value
        )
    graph.recompile()
    return graph.float()


def _convolution_backward(
    gradient: Tensor,
    _input: Tensor,
    weight: Tensor,
    _bias: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    _output_padding: list[int],
    groups: int,
    mask: list[bool],
) -> tuple[Tensor | None, None, None]:
    """By the input alone. Where nothing is skipped it is a convolution with the kernel turned round.

    ONNX Runtime has fast kernels for that, and slow ones for transposed convolutions.
    """
    if transposed or mask[1] or mask[2]:
        raise BuildError("the gradient of a transposed convolution, or by a convolution's weights, cannot be exported")
    if not mask[0]:
        return None, None, None
    sides = weight.shape[2:]
    if (
        groups == 1
        and set(stride) == {1}
        and all(p <= d * (k - 1) for p, d, k in zip(padding, dilation, sides, strict=True))
    ):
        turned = weight.transpose(0, 1).flip(list(range(2, weight.ndim)))
        around = [d * (k - 1) - p for p, d, k in zip(padding, dilation, sides, strict=True)]
        return (
            aten.convolution(gradient, turned, None, stride, around, dilation, False, [0] * len(sides), 1),
            None,
            None,
        )
    # Of the input's rows that no window reached, some have no gradient.
    rest = [
        size - ((out - 1) * s - 2 * p + d * (k - 1) + 1)
        for size, out, s, p, d, k in zip(
            _input.shape[2:], gradient.shape[2:], stride, padding, dilation, sides, strict=True
        )
    ]
    back = aten.convolution(gradient, weight, None, stride, padding, dilation, True, rest, groups)
    return back, None, None


def _nearest_backward(gradient: Tensor, out: Any, size: Any, _rows: Any = None, _columns: Any = None) -> Tensor:
    """Of whole-numbered enlargements: the sum over the pixels that were one."""
    rows, columns = out[0] // size[2], out[1] // size[3]
    if out[0] % size[2] or out[1] % size[3]:
        raise BuildError(f"the gradient of enlarging {size[2:]} to {out} by nearest neighbours cannot be exported")
    summed: Tensor = aten.avg_pool2d(gradient, [rows, columns], [rows, columns]) * (rows * columns)
    return summed


def _max_pool_backward(
    gradient: Tensor,
    given: Tensor,
    kernel: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    _ceil: bool,
    _indices: Tensor,
) -> Tensor:
    """Of windows side by side: to the first that is largest in each, as PyTorch does."""
    (rows, columns), (height, width) = kernel, given.shape[2:]
    side_by_side = list(stride or kernel) == list(kernel) and not any(padding) and set(dilation) == {1}
    if not side_by_side or height % rows or width % columns:
        raise BuildError("the gradient of a maximum over windows that overlap, or do not fit, cannot be exported")
    shape = (*given.shape[:2], height // rows, rows, width // columns, columns)
    order = (0, 1, 2, 4, 3, 5)
    windows = given.reshape(shape).permute(order).flatten(4)
    largest = (windows == windows.amax(-1, keepdim=True)).to(given.dtype)
    first = largest * (largest.cumsum(-1) == 1)
    spread = first * gradient[..., None]
    return spread.unflatten(4, (rows, columns)).permute(order).reshape(given.shape)


BACKWARD = {
    aten.convolution_backward.default: _convolution_backward,
    aten.upsample_nearest2d_backward.default: _nearest_backward,
    aten.max_pool2d_with_indices_backward.default: _max_pool_backward,
}


def _keep_constants(module: GraphModule) -> None:
    """Put the values of what hangs on no input in its place."""
    values: dict[Node, Any] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            values[node] = getattr(module, str(node.target))
        elif node.op == "call_function" and node.all_input_nodes and set(node.all_input_nodes) <= values.keys():
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    number = 0
    for node, value in values.items():
        outside = [user for user in node.users if user not in values]
        if node.op == "get_attr" or not outside or not isinstance(value, Tensor):
            continue
        name = f"constant_{number}"
        number += 1
        module.register_buffer(name, value.detach().contiguous())
        with module.graph.inserting_before(node):
            kept = module.graph.get_attr(name)
        kept.meta = dict(node.meta)
        for user in outside:
            user.replace_input_with(node, kept)
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    module.recompile()
