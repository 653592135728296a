"""The fused operators in ONNX files: nodes of the domain `medgen`, each with a body of standard operators.

A runtime that knows nothing of the domain runs the bodies; TensorRT puts its plugins in the nodes' place.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import onnx
import torch
from onnx.defs import OpSchema
from onnxscript.values import Op, Opset

from kernels import attention, group_norm_silu, solver_step
from kernels.group_norm_sizes import tiles_of

DOMAIN = "medgen"
OPSET = 18
PLUGIN = {"plugin_namespace": DOMAIN, "plugin_version": "1"}  # what makes TensorRT prefer a plugin to a body
FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
SOURCES = (solver_step.ONNX_FUNCTION, attention.ONNX_FUNCTION, group_norm_silu.ONNX_FUNCTION)


@cache
def functions() -> dict[str, onnx.FunctionProto]:
    header = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>'
    parsed = [onnx.parser.parse_function(header + source) for source in SOURCES]
    return {function.name: function for function in parsed}


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
    """Give a model exported with `translations` the bodies of its nodes, in place. Returns how many nodes of each."""
    counts: dict[str, int] = {}
    for node in model.graph.node:
        if node.domain == DOMAIN:
            counts[node.op_type] = counts.get(node.op_type, 0) + 1
            node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in PLUGIN.items())
    opset = next(imported.version for imported in model.opset_import if not imported.domain)
    for name in counts:
        function = onnx.FunctionProto.FromString(functions()[name].SerializeToString())
        function.opset_import[0].version = opset
        model.functions.append(function)
    if counts and all(imported.domain != DOMAIN for imported in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return counts


def split_large_groups(model: onnx.ModelProto) -> None:
    """Cut nodes GroupNormSilu that are too large for one program in two, in place: TensorRT only has plugins for those.

    Call it on a model with `add_functions` just before TensorRT parses it. The sizes come from the model's value_info.
    """
    shapes = {
        value.name: [size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.value_info, *model.graph.input)
    }
    nodes = []
    for node in model.graph.node:
        if node.domain == DOMAIN and node.op_type == "GroupNormSilu":
            _, channels, height, width = shapes[node.input[0]]
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


class _Operators:
    """Calls by name, `operators.Attention(qkv, scale=0.5)`, that add a node to the graph being exported."""

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
