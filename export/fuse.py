"""Finds the fused operators of `kernels` in any network, in PyTorch's own graph of it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from kernels.attention import attention
from kernels.group_norm_silu import group_norm_silu

aten = torch.ops.aten


def fuse(module: nn.Module, example: tuple[Tensor, ...], dynamic_shapes: Any) -> tuple[GraphModule, dict[str, int]]:
    """The same module with fused operators in it, and how many of each there are.

    module, example, dynamic_shapes: as for torch.export.export; the module is in eval mode and is not changed. It may
    be diffusers', MONAI's or anyone's: what is looked for is GroupNorm and SiLU on images, with what a time embedding
    adds before or scales between them, and self-attention that takes queries, keys and values from one input by linear
    layers. Whatever has another form stays as it is.
    """
    fused = torch.export.export(module, example, dynamic_shapes=dynamic_shapes).module()
    assert isinstance(fused, GraphModule)
    nodes = list(fused.graph.nodes)
    counts = {
        "group_norm_silu": sum(_fuse_group_norm_silu(node) for node in nodes),
        "attention": sum(_fuse_attention(node, fused) for node in nodes),
    }
    fused.recompile()
    return fused, counts


def _erase(node: Node) -> None:
    """Take a node out that nothing uses, and what only it used. (PyTorch's own pass keeps attention and dropout.)"""
    if not node.users and node.op != "placeholder":
        inputs = node.all_input_nodes
        node.graph.erase_node(node)
        for before in inputs:
            _erase(before)


def _calls(node: Any, *targets: Any) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets


def _shape(node: Node) -> tuple[Any, ...]:
    return tuple(node.meta["val"].shape)


def _feeds_only(node: Node, user: Node) -> bool:
    return set(node.users) == {user}


def _is_per_channel(node: Any) -> bool:
    return isinstance(node, Node) and len(_shape(node)) == 4 and _shape(node)[2:] == (1, 1)


def _is_sum(node: Any) -> bool:
    return _calls(node, aten.add.Tensor) and not node.kwargs


def _fuse_group_norm_silu(silu: Any) -> bool:
    if not _calls(silu, aten.silu.default, aten.silu_.default):
        return False
    norm, user = silu.args[0], silu
    around: dict[str, Node] = {}

    # silu(norm * (1 + scale) + shift)
    if _is_sum(norm) and _calls(norm.args[0], aten.mul.Tensor) and _is_per_channel(norm.args[1]):
        product, shift = norm.args
        factor = product.args[1]
        if not (_is_sum(factor) and factor.args[1] == 1 and _is_per_channel(factor.args[0])):
            return False
        if not (_feeds_only(norm, silu) and _feeds_only(product, norm)):
            return False
        around = {"scale": factor.args[0], "shift": shift}
        norm, user = product.args[0], product

    if not (_calls(norm, aten.group_norm.default) and _feeds_only(norm, user) and len(_shape(norm)) == 4):
        return False
    x, groups = norm.args[:2]
    given: tuple[Any, ...] = norm.args[2:5]
    weight, bias, eps = given + (None, None, 1e-5)[len(given) :]
    if weight is None or bias is None:
        return False

    # norm(x + embedding)
    if _is_sum(x) and _is_per_channel(x.args[1]) and not _is_per_channel(x.args[0]) and _feeds_only(x, norm):
        x, around["embedding"] = x.args

    graph = silu.graph
    with graph.inserting_before(silu):
        tables = {name: graph.call_function(torch.flatten, (node, 1)) for name, node in around.items()}
        fused = graph.call_function(group_norm_silu, (x, groups, weight, bias, eps), tables)
    fused.meta = silu.meta
    silu.replace_all_uses_with(fused)
    _erase(silu)
    return True


def _fuse_attention(last: Any, module: GraphModule) -> bool:
    found = _attention_inputs(last)
    if found is None:
        return False
    inputs, scale = found
    layers = [_linear_before_heads(node) for node in inputs]
    if None in layers or len({layer.args[0] for layer in layers}) != 1:
        return False
    _, heads, length, head_dim = _shape(inputs[0])
    if not isinstance(length, int) or head_dim % 8 or not 8 <= head_dim <= 128:
        return False

    graph = last.graph
    with graph.inserting_before(last):
        packed = graph.call_function(aten.linear.default, _packed_layer(layers, module))
        qkv = graph.call_function(torch.unflatten, (packed, -1, (3, heads, head_dim)))
        fused = graph.call_function(attention, (qkv, scale))
        heads_first = graph.call_function(torch.transpose, (fused, 1, 2))
    fused.meta = {"val": last.meta["val"].transpose(1, 2)}
    last.replace_all_uses_with(heads_first)
    for user in list(heads_first.users):
        if _swaps_heads(user):
            user.replace_all_uses_with(fused)
            _erase(user)
    _erase(last)
    return True


def _attention_inputs(last: Any) -> tuple[list[Node], float | None] | None:
    """Queries, keys and values [B, H, N, D] and the scale, if `last` is softmax(q k^T * scale) v."""
    if _calls(last, aten.scaled_dot_product_attention.default):
        plain = all(not value for value in last.args[3:]) and set(last.kwargs) <= {"scale"}
        return (list(last.args[:3]), last.kwargs.get("scale")) if plain else None
    if not _is_einsum(last, "abcd,abde->abce"):
        return None
    weights, v = last.args[1]
    if _calls(weights, aten.dropout.default) and not weights.args[2]:
        weights = weights.args[0]
    if not (_calls(weights, aten.softmax.int) and weights.args[1] == -1 and _calls(weights.args[0], aten.mul.Tensor)):
        return None
    scores, scale = weights.args[0].args
    if not (isinstance(scale, float) and _is_einsum(scores, "abcd,abed->abce")):
        return None
    return [*scores.args[1], v], scale


def _is_einsum(node: Any, equation: str) -> bool:
    """Whether the node is this einsum, whatever its letters."""
    if not _calls(node, aten.einsum.default):
        return False
    letters = dict.fromkeys(letter for letter in node.args[0] if letter.isalpha())
    names = str.maketrans("".join(letters), "abcdefghijklmnopqrstuvwxyz"[: len(letters)])
    return node.args[0].replace(" ", "").translate(names) == equation


def _swaps_heads(node: Any) -> bool:
    if _calls(node, aten.transpose.int):
        return {axis % 4 for axis in node.args[1:3]} == {1, 2}
    return _calls(node, aten.permute.default) and list(node.args[1]) == [0, 2, 1, 3]


def _linear_before_heads(node: Any) -> Any:
    """The linear layer [B, N, H*D] that [B, H, N, D] comes from, if nothing but its shape was changed since."""
    if not _swaps_heads(node) or not _calls(node.args[0], aten.view.default, aten.reshape.default, aten.unflatten.int):
        return None
    heads, layer = node.args[0], node.args[0].args[0]
    if not _calls(layer, aten.linear.default) or len(_shape(layer)) != 3 or _shape(layer)[1] != _shape(heads)[1]:
        return None
    return layer


def _packed_layer(layers: list[Any], module: GraphModule) -> tuple[Node, ...]:
    """The arguments of one linear layer that does the work of three."""
    weights: list[Tensor] = [module.get_parameter(layer.args[1].target) for layer in layers]
    names = [layer.args[2].target if len(layer.args) > 2 and layer.args[2] else None for layer in layers]
    biases = [
        module.get_parameter(name) if name else weight.new_zeros(len(weight))
        for name, weight in zip(names, weights, strict=True)
    ]
    number = sum(name.startswith("packed_weight_") for name, _ in module.named_parameters(recurse=False))
    packed = {f"packed_weight_{number}": weights}
    if any(names):
        packed[f"packed_bias_{number}"] = biases
    for name, parts in packed.items():
        module.register_parameter(name, nn.Parameter(torch.cat(parts).detach(), requires_grad=False))
    return (layers[0].args[0], *(layers[0].graph.get_attr(name) for name in packed))
