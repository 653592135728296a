"""Bytes in graphs for TensorRT 10, which casts them to floats and does nothing else with them."""

import onnx


def by_way_of_floats(graph: onnx.ModelProto) -> None:
    """Have bytes read and written, in place, by nothing but casts to and from floats."""
    nodes = [cast_once(value.name, graph) for value in graph.graph.input if is_bytes(value)]
    for node in graph.graph.node:
        if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.UINT8:
            between = f"{node.output[0]}_float"
            nodes.append(cast_to_float(node.input[0], between))
            node.input[0] = between
        nodes.append(node)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)


def is_bytes(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type == onnx.TensorProto.UINT8


def cast_once(name: str, graph: onnx.ModelProto) -> onnx.NodeProto:
    """The node that makes floats of an input; all others of the graph read those from now on."""
    floats = f"{name}_float"
    for node in graph.graph.node:
        node.input[:] = [floats if given == name else given for given in node.input]
    return cast_to_float(name, floats)


def cast_to_float(name: str, floats: str) -> onnx.NodeProto:
    return onnx.helper.make_node("Cast", [name], [floats], to=onnx.TensorProto.FLOAT)
