"""Rows whose bits depend neither on how many they are nor on their place: some sums, written as products.

ONNX Runtime sums over channels in one order where there is one row, and in another where there are more, as the batch's
axis of 1 is no axis to it; and over a whole row it begins where memory is aligned, where rows of no multiple of four
values do not all begin. A product with ones has one order.
"""

import math

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

KINDS = ("ReduceMean", "ReduceSum")
ALIGNED = 4  # values


def summed_by_products(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with such a product for each sum and mean over axes 1, 2, ... that leaves later axes of fixed size, or
    is of a whole row that is no multiple of four.

    It is for ONNX Runtime alone: OpenVINO and TensorRT keep their layout in a sum, and would leave it for a product.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    shapes = shapes_of(model)
    constants = {weight.name: weight for weight in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        axes = summed_axes(node, constants)
        shape = shapes.get(node.input[0]) if node.input else None
        from_the_first = bool(axes) and axes == [*range(1, len(axes) + 1)]
        if node.op_type in KINDS and shape and from_the_first and in_several_orders(shape, len(axes)):
            nodes += as_product(node, shape, len(axes), model.graph)
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input} | {output.name for output in model.graph.output}
    kept = [weight for weight in model.graph.initializer if weight.name in used]  # of others the runtime complains
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def in_several_orders(shape: list[int], count: int) -> bool:
    return count + 1 < len(shape) or math.prod(shape[1:]) % ALIGNED > 0


def as_product(node: NodeProto, shape: list[int], count: int, graph: onnx.GraphProto) -> list[NodeProto]:
    """[B, R..., K...] -> ones [1, R] @ [B, R, K] -> [B, (1...,) K...]; of a mean the ones are 1 / R."""
    summed, kept = shape[1 : count + 1], shape[count + 1 :]
    terms = math.prod(summed)
    ones = np.full((1, terms), 1 / terms if node.op_type == "ReduceMean" else 1, np.float32)
    keeps = all(attribute.i for attribute in node.attribute if attribute.name == "keepdims")
    name = f"{node.output[0]}_summed"
    constants = {
        f"{name}_before": np.array([0, terms, math.prod(kept)]),
        f"{name}_ones": ones,
        f"{name}_after": np.array([0, *([1] * count if keeps else []), *kept]),
    }
    graph.initializer.extend(numpy_helper.from_array(value, of) for of, value in constants.items())
    before, ones_name, after = constants
    return [
        onnx.helper.make_node("Reshape", [node.input[0], before], [f"{name}_rows"]),
        onnx.helper.make_node("MatMul", [ones_name, f"{name}_rows"], [f"{name}_flat"]),
        onnx.helper.make_node("Reshape", [f"{name}_flat", after], [node.output[0]]),
    ]


def summed_axes(node: NodeProto, constants: dict[str, onnx.TensorProto]) -> list[int]:
    """As the node's second input says; none if that is not constant, which is all axes to ONNX."""
    if len(node.input) < 2 or node.input[1] not in constants:
        return []
    return sorted(numpy_helper.to_array(constants[node.input[1]]).reshape(-1).tolist())


def shapes_of(model: onnx.ModelProto) -> dict[str, list[int] | None]:
    """By ``sizes``, of all that the graph is given and computes."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    return {value.name: sizes(value) for value in (*inferred.value_info, *inferred.input)}


def sizes(value: onnx.ValueInfoProto) -> list[int] | None:
    """Of all axes, 0 for the first; None where another is free, or the values are no float32."""
    kind = value.type.tensor_type
    shape = [dimension.dim_value for dimension in kind.shape.dim]
    if kind.elem_type != onnx.TensorProto.FLOAT or not shape or not all(shape[1:]):
        return None
    return [0, *shape[1:]]
