"""Rows whose bits do not depend on how many they are: functions that ONNX Runtime computes four values at a time.

It has one way for four values that lie side by side, and another for what is left over at the end, whose last bits
differ: the logarithm of one value a row depends on whether the batch has four rows.
"""

import math

import numpy as np
import onnx
from onnx import NodeProto, numpy_helper

from export.sums import shapes_of

# Of ONNX Runtime 1.31; Exp, Erf, Sigmoid and Tanh have one way for all.
KINDS = ("Acos", "Asin", "Atan", "Celu", "Cos", "Elu", "Log", "Mish", "Selu", "Sin", "Softplus")
PACKET = 4


def in_whole_packets(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with each value four times in such a function, where a row's values are no multiple of four.

    It is for ONNX Runtime alone. Nothing is done about tensors so large that it gives each thread a part, whose ends
    may lie anywhere: see `threads`.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    shapes = shapes_of(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        shape = shapes.get(node.input[0]) if node.op_type in KINDS else None
        nodes += in_packets(node, model.graph) if shape and math.prod(shape[1:]) % PACKET else [node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def in_packets(node: NodeProto, graph: onnx.GraphProto) -> list[NodeProto]:
    """[...] -> [..., 1] * ones [4] -> the function of [..., 4] -> the first of each four."""
    name = f"{node.output[0]}_packets"
    constants = {
        f"{name}_axis": np.array([-1]),
        f"{name}_ones": np.ones(PACKET, np.float32),
        f"{name}_first": np.array(0),
    }
    graph.initializer.extend(numpy_helper.from_array(value, of) for of, value in constants.items())
    axis, ones, first = constants
    computed = NodeProto.FromString(node.SerializeToString())  # with its attributes
    computed.input[0], computed.output[0] = f"{name}_given", f"{name}_found"
    return [
        onnx.helper.make_node("Unsqueeze", [node.input[0], axis], [f"{name}_apart"]),
        onnx.helper.make_node("Mul", [f"{name}_apart", ones], [f"{name}_given"]),
        computed,
        onnx.helper.make_node("Gather", [f"{name}_found", first], [node.output[0]], axis=-1),
    ]
