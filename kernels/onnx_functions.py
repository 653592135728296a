"""The fused operators in ONNX files: nodes of the domain `medgen`, each with a body of standard operators.

A runtime that knows nothing of the domain runs the bodies; TensorRT puts its plugins in the nodes' place.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import onnx
import onnx.inliner
import torch
from onnx.defs import OpSchema
from onnxscript.values import Op, Opset

from kernels import attention, group_norm_apply, group_norm_silu, group_norm_statistics, solver_step
from kernels.group_norm_sizes import tiles_of

DOMAIN = "medgen"
OPSET = 18
PLUGIN = {"plugin_namespace": DOMAIN, "plugin_version": "1"}  # what makes TensorRT prefer a plugin to a body
FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
SOURCES = (
    solver_step.ONNX_FUNCTION,
    attention.ONNX_FUNCTION,
    group_norm_silu.ONNX_FUNCTION,
    group_norm_statistics.ONNX_FUNCTION,
    group_norm_apply.ONNX_FUNCTION,
)


@cache
def functions() -> dict[str, onnx.FunctionProto]:
    found = (parsed(source, OPSET) for source in SOURCES)
    return {function.name: function for function in found}


def parsed(source: str, opset: int) -> onnx.FunctionProto:
    return onnx.parser.parse_function(f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>{source}')


def translations() -> dict[Any, Callable[..., Any]]:
    """For torch.onnx.export's `custom_translation_table`: keeps the fused operators as nodes of our domain.

    Without it they are exported as the standard operators that they stand for.
    """
    operators = _Operators()

    def solver_step_node(*arguments: Any) -> Any:
        return solver_step.to_onnx(operators, *arguments)

    def attention_node(*arguments: Any) -> Any:
        return attention.to_onnx(operators, *arguments)

    def group_norm_silu_node(*arguments: Any) -> Any:
        return group_norm_silu.to_onnx(operators, *arguments)

    return {
        torch.ops.medgen.solver_step.default: solver_step_node,
        torch.ops.medgen.attention.default: attention_node,
        torch.ops.medgen.group_norm_silu.default: group_norm_silu_node,
    }


def add_functions(model: onnx.ModelProto) -> dict[str, int]:
    """Give a model exported with `translations` the bodies of its nodes, in place. Returns how many nodes of each.

    Attention's body is ONNX's own operator if the model's opset has it and TensorRT has a kernel of it for every node;
    then, and where our kernel was not the fastest, TensorRT is not asked to take a plugin for it.
    """
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    counts = Counter(node.op_type for node in nodes)
    tensors = Tensors(model)
    sizes = {
        node.output[0]: (tensors.itemsize(node.input[0]), *tensors.shape(node.input[0]))
        for node in nodes
        if node.op_type == "PackedAttention"
    }
    native = opset_of(model) >= attention.NATIVE_OPSET and all(
        attention.has_native_kernel(itemsize, head_dim) for itemsize, *_, head_dim in sizes.values()
    )
    for node in nodes:
        if node.op_type == "PackedAttention":
            itemsize, _, length, *_, head_dim = sizes[node.output[0]]
            if native or not attention.is_fastest(itemsize, length, head_dim):
                continue
        node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in PLUGIN.items())
    own = {"PackedAttention": attention.NATIVE_ONNX_FUNCTION} if native else {}
    add_bodies(model, {name: parsed(own[name], OPSET) if name in own else functions()[name] for name in counts})
    return counts


def add_bodies(model: onnx.ModelProto, bodies: Mapping[str, onnx.FunctionProto]) -> None:
    for body in bodies.values():
        model.functions.append(body)
        model.functions[-1].opset_import[0].version = opset_of(model)
    if bodies and all(imported.domain != DOMAIN for imported in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))


def written_by_channel(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without functions whose norms leave maps in the layout that they are in; see ``group_norm_silu``."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for function in model.functions:
        if function.name == "GroupNormSilu":
            function.CopyFrom(parsed(group_norm_silu.ONNX_FUNCTION_BY_CHANNEL, opset_of(model)))
    return onnx.inliner.inline_local_functions(model)


def opset_of(model: onnx.ModelProto) -> int:
    return next(imported.version for imported in model.opset_import if not imported.domain)


class Tensors:
    """The shapes and types that a model says its tensors have."""

    def __init__(self, model: onnx.ModelProto) -> None:
        values = (*model.graph.value_info, *model.graph.input)
        self._types = {value.name: value.type.tensor_type for value in values}

    def shape(self, name: str) -> list[int]:
        """0 for what is dynamic."""
        return [size.dim_value for size in self._types[name].shape.dim]

    def itemsize(self, name: str) -> int:
        return onnx.helper.tensor_dtype_to_np_dtype(self._types[name].elem_type).itemsize


def split_large_groups(model: onnx.ModelProto) -> None:
    """Cut nodes GroupNormSilu that are too large for one program in two, in place: TensorRT only has plugins for those.

    Call it on a model with `add_functions` just before TensorRT parses it. The sizes come from the model's value_info.
    """
    tensors = Tensors(model)
    nodes = []
    for node in model.graph.node:
        if node.domain == DOMAIN and node.op_type == "GroupNormSilu":
            _, channels, height, width = tensors.shape(node.input[0])
            groups = next(attribute.i for attribute in node.attribute if attribute.name == "groups")
            if tiles := tiles_of(channels, groups, height * width):
                statistics = f"{node.output[0]}_statistics"
                first = onnx.helper.make_node(
                    "GroupNormStatistics", node.input[:2], [statistics], domain=DOMAIN, tiles=tiles, **PLUGIN
                )
                nodes.append(first)
                node.op_type = "GroupNormSiluApply"
                node.input.append(statistics)
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    parts = ("GroupNormStatistics", "GroupNormSiluApply")
    if any(node.op_type in parts for node in nodes):
        add_bodies(model, {name: functions()[name] for name in parts})


class _Operators:
    """Calls by name, `operators.PackedAttention(qkv, scale=0.5)`, that add a node to the graph being exported."""

    def __getattr__(self, name: str) -> Op:
        function = functions()[name]
        schema = OpSchema(
            name,
            DOMAIN,
            1,
            inputs=[OpSchema.FormalParameter(value, f"T_{value}") for value in function.input],
            outputs=[OpSchema.FormalParameter(value, f"T_{value}") for value in function.output],
            type_constraints=[(f"T_{value}", FLOATS, "") for value in (*function.input, *function.output)],
            attributes=[OpSchema.Attribute(default.name, default) for default in function.attribute_proto],
        )
        return Op(Opset(DOMAIN, 1), name, schema)
