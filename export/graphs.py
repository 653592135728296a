"""A trained family -> the step and finish graphs as ONNX, batch dynamic."""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from export import BuildError
from export.fuse import fuse
from export.gradients import checked_gradient
from export.options import OPSET
from export.precision import DTYPES, in_half_precision
from kernels.onnx_functions import add_functions, translations
from training.descent import Descent
from training.family import Family

STEP_INPUTS = ("sample", "history_1", "history_2", "history_3", "noise", "coeffs")
STEP_OUTPUTS = ("sample_next", "prediction")
LARGEST = 2**31 - 2**20  # bytes of weights: protobuf ends at 2 GiB, and a graph has more than weights


class Step(nn.Module):
    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.family.step(*inputs)


class DescentStep(nn.Module):
    """The same for a family that goes down a loss, whose gradient is a graph already."""

    def __init__(self, family: Descent, gradient: GraphModule) -> None:
        super().__init__()
        self.family, self.gradient = family, gradient

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        own, condition = inputs[: len(STEP_INPUTS)], inputs[len(STEP_INPUTS) :]
        out = self.family.direction(self.gradient(own[0], *condition), own[-1])
        return self.family.update(out, *own)


class Finish(nn.Module):
    def __init__(self, family: Family) -> None:
        super().__init__()
        self.family = family

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.family.finish(*inputs)


def step_graph(family: Family, opset: int = OPSET, fused: bool = True, precision: str = "fp32") -> onnx.ModelProto:
    """All networks of one denoising step and the solver's update (README, "The step graph").

    Inputs float32: sample, history_1..3, noise [B, C, H, W], coeffs [B, 12], and the family's condition where it has
    one, [B, C, H, W] of its own dtype. Outputs float32 [B, C, H, W]: sample_next, prediction. ``fused`` puts the
    operators of ``kernels`` into it, each a node with a body of standard operators. ``precision`` "fp16" or "bf16" is
    what the networks compute in, see ``in_half_precision``; any other leaves the graph in float32.
    """
    state = torch.randn(2, *family.sample_shape)
    inputs = [state, *(torch.randn_like(state) for _ in STEP_INPUTS[1:-1]), torch.rand(2, 12)]
    step: nn.Module = Step(family)
    if isinstance(family, Descent):
        if precision == "fp16":
            raise BuildError(f"{family.name} computes a gradient, whose values are too small for fp16: use bf16")
        given = () if family.condition is None else (torch.rand(2, *family.condition.shape),)
        step = DescentStep(family, checked_gradient(family, state, *given))
    return export_graph(step, inputs, STEP_INPUTS, STEP_OUTPUTS, family, opset, fused, precision)


def finish_graph(family: Family, opset: int = OPSET, fused: bool = True, precision: str = "fp32") -> onnx.ModelProto:
    """The last state, sample float32 [B, C, H, W], and the condition where there is one -> the family's outputs."""
    names = [output.name for output in family.outputs]
    state = torch.randn(2, *family.sample_shape)
    finish = Finish(without_networks(family, state))
    return export_graph(finish, [state], ("sample",), names, family, opset, fused, precision)


def without_networks(family: Family, state: Tensor) -> Family:
    """The family, without its networks if it finishes without them: what is exported takes time for every weight."""
    bare = copy.copy(family)
    bare._modules = {}
    try:
        bare.finish(state, *example_condition(family))
    except AttributeError:
        return family
    return bare


def example_condition(family: Family) -> tuple[Tensor, ...]:
    """Two conditions, if it has any."""
    if family.condition is None:
        return ()
    return (torch.zeros(2, *family.condition.shape, dtype=getattr(torch, family.condition.dtype)),)


def export_graph(
    module: nn.Module,
    inputs: list[Tensor],
    input_names: tuple[str, ...],
    output_names: list[str] | tuple[str, ...],
    family: Family,
    opset: int,
    fused: bool,
    precision: str,
) -> onnx.ModelProto:
    """Export with a dynamic batch, and check the result."""
    example = (*inputs, *example_condition(family))
    if family.condition is not None:
        input_names = (*input_names, "condition")
    shapes: Any = (tuple({0: torch.export.Dim.DYNAMIC} for _ in example),)
    check_size(module, family.name, precision)
    module.eval()
    with quiet(), frozen(module):
        if fused:
            module, _ = fuse(module, example, shapes)
        if precision in DTYPES:
            module = in_half_precision(module, example, shapes, precision)
        if isinstance(module, GraphModule):
            (shapes,) = shapes  # the arguments are no longer behind one *inputs
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            opset_version=opset,
            input_names=list(input_names),
            output_names=list(output_names),
            dynamic_shapes=shapes,
            custom_translation_table=translations() if fused else None,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    forget_origins(model)
    if fused:
        add_functions(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def check_size(module: nn.Module, name: str, precision: str) -> None:
    """Raises BuildError if the weights are more than a file of ONNX holds."""
    size = sum(weight.nbytes for weight in module.parameters()) // (2 if precision in DTYPES else 1)
    if size > LARGEST:
        advice = "" if precision in DTYPES else ": --precision fp16 halves them"
        raise BuildError(f"{name} has {size / 2**30:.1f} GiB of weights, and a graph of ONNX holds 2{advice}")


def forget_origins(model: onnx.ModelProto) -> None:
    """Drop the lines of source code that the exporter notes at every node: a bundle's digest is that of its content."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("doc_string")
        part.ClearField("metadata_props")


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """While it lasts no weight learns; tracing operators of ``kernels`` takes longer where their way back is noted."""
    learning = [weight for weight in module.parameters() if weight.requires_grad]
    module.requires_grad_(False)
    try:
        yield
    finally:
        for weight in learning:
            weight.requires_grad_(True)


@contextmanager
def quiet() -> Iterator[None]:
    """The exporter warns of its own deprecations and logs its optimiser's doubts; neither is of use to a user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
