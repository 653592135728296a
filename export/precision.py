"""Half precision with float32 islands, written into the graph itself, so that every runtime does the same."""

from operator import attrgetter
from typing import Any

import onnx
import onnx.inliner
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.passes.shape_prop import ShapeProp

from kernels.attention import attention
from kernels.group_norm_silu import group_norm_silu

aten = torch.ops.aten


DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

# Products of images with weights, and the fused operators, which sum, normalise and exponentiate in float32 inside.
HALF = {
    aten.conv1d.default,
    aten.convolution.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv_transpose2d.input,
    aten.conv_transpose3d.input,
    aten.linear.default,
    aten.matmul.default,
    aten.bmm.default,
    aten.einsum.default,
    attention,
    group_norm_silu,
}
ISLANDS = {
    aten.group_norm.default,
    aten.layer_norm.default,
    aten.instance_norm.default,
    aten.batch_norm.default,
    aten.softmax.int,
    aten.scaled_dot_product_attention.default,  # one that was not fused: its softmax is inside
    aten.square.default,  # of a norm by itself, as a pixel's: fp16 ends at 65,504
}


def in_half_precision(
    module: nn.Module, example: tuple[Tensor, ...], dynamic_shapes: Any, precision: str
) -> GraphModule:
    """The same module computing in "fp16" or "bf16".

    Convolutions, linear layers and the fused operators take and give half precision, and their weights are kept in it.
    Norms and softmax are float32, and so are products of what has no axis but batch and channel: the time embedding.
    All else goes by PyTorch's rules, where float32 wins over half: what is computed from states and coefficients, such
    as the data estimate that guides a second network and the solver's update. Inputs and outputs keep their types.

    module, example, dynamic_shapes: as for torch.export.export; what `export.fuse.fuse` gave is changed in place.
    """
    half = DTYPES[precision]
    if not isinstance(module, GraphModule):
        module = torch.export.export(module, example, dynamic_shapes=dynamic_shapes).module()
        assert isinstance(module, GraphModule)
    with torch.no_grad():
        ShapeProp(module).propagate(*example)
    casts = _Casts(module)
    for node in list(module.graph.nodes):
        if node.op == "output":
            (outputs,) = node.args
            node.args = (tuple(casts.cast(output, _dtype(output)) for output in outputs),)
        elif node.target is aten._assert_tensor_metadata.default:
            module.graph.erase_node(node)
        elif node.target is aten.to.dtype and _dtype(node) == _dtype(node.args[0]):
            node.replace_all_uses_with(node.args[0])  # in float32 it changed nothing, now it would
            module.graph.erase_node(node)
        elif node.target is aten.einsum.default and precision == "bf16":
            casts.cast_inputs(node, torch.float32)  # ONNX has no Einsum of bfloat16
        elif node.target in HALF and max(map(_rank, node.all_input_nodes)) > 2:
            casts.cast_inputs(node, half)
        elif node.target in HALF | ISLANDS:
            casts.cast_inputs(node, torch.float32)
    module.recompile()
    return module


def widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """A bfloat16 model for a runtime without bfloat16: every node computes in float32, and its result is rounded.

    ONNX Runtime does the same by itself for float16, but refuses bfloat16, for which its CPU has too few kernels.
    """
    model = onnx.shape_inference.infer_shapes(onnx.inliner.inline_local_functions(model))
    graph, narrow, wide = model.graph, onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    rounded = {value.name for value in graph.value_info if value.type.tensor_type.elem_type == narrow}
    rounded |= {weight.name for weight in graph.initializer if weight.data_type == narrow}
    nodes = []
    for node in graph.node:
        after = []
        if node.op_type not in ("Cast", "Constant"):
            for k, name in enumerate(node.input):
                if name in rounded:
                    node.input[k] = f"{name}_for_{node.output[0]}"
                    nodes.append(onnx.helper.make_node("Cast", [name], [node.input[k]], to=wide))
            for k, name in enumerate(node.output):
                if name in rounded:
                    node.output[k] = f"{name}_unrounded"
                    after.append(onnx.helper.make_node("Cast", [node.output[k]], [name], to=narrow))
        nodes += [node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


class _Casts:
    """Values in another type, each made once: a weight is kept in it, anything else is converted as it comes."""

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.made: dict[tuple[Node, torch.dtype], Node] = {}

    def cast_inputs(self, node: Node, dtype: torch.dtype) -> None:
        node.args = torch.fx.map_arg(node.args, lambda value: self.cast(value, dtype))
        node.kwargs = torch.fx.map_arg(node.kwargs, lambda value: self.cast(value, dtype))

    def cast(self, value: Node, dtype: torch.dtype) -> Node:
        if "tensor_meta" not in value.meta or not _dtype(value).is_floating_point:
            return value
        is_weight = value.op == "get_attr"
        if is_weight and _dtype(value) == dtype:
            return value
        if (value, dtype) not in self.made:
            with value.graph.inserting_after(value):
                made = self._weight(value, dtype) if is_weight else value.graph.call_method("to", (value, dtype))
            self.made[value, dtype] = made
        return self.made[value, dtype]

    def _weight(self, value: Node, dtype: torch.dtype) -> Node:
        tensor = attrgetter(str(value.target))(self.module).detach()
        name = f"{value.target}_{dtype}".replace(".", "_")
        self.module.register_parameter(name, nn.Parameter(tensor.to(dtype), requires_grad=False))
        return value.graph.get_attr(name)


def _dtype(node: Any) -> torch.dtype:
    dtype: torch.dtype = node.meta["tensor_meta"].dtype
    return dtype


def _rank(node: Node) -> int:
    return len(node.meta["tensor_meta"].shape) if "tensor_meta" in node.meta else 0
