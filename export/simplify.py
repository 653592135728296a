"""A gradient with fewer operators: on a CPU each goes through all values once, and most do little else."""

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten
TERMS = (aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.div.Tensor)  # they spread what is smaller


def simplify(module: GraphModule) -> None:
    """Say the same, but for rounding, with fewer operators on large values; the nodes need their "val".

    A square is a product. On which side of a leaky ReLU a value was, its result tells, so that the value need not be
    kept. What is spread over an axis for operators that spread it themselves is not spread. Signs, factors and divisors
    that are the same for all of a sum are taken out of it, and numbers go to the smaller of two factors.
    """
    changed = True
    while changed:
        changed = False
        for node in list(module.graph.nodes):
            if node.users and (better := _better(node)) is not None:
                node.replace_all_uses_with(better)
                changed = True
        module.graph.eliminate_dead_code()
    module.recompile()


def _better(node: Node) -> Node | None:
    """What may stand in a node's place."""
    for rule in RULES:
        with node.graph.inserting_before(node):
            if (better := rule(node)) is not None:
                return better
    return None


def _square(node: Node) -> Node | None:
    if not _calls(node, aten.pow.Tensor_Scalar) or _inputs(node)[1] not in (1, 2):
        return None
    base: Any = _inputs(node)[0]
    return base if _inputs(node)[1] == 1 else _new(aten.mul.Tensor, (base, base), node)


def _side(node: Node) -> Node | None:
    if not _calls(node, aten.gt.Scalar) or _inputs(node)[1] != 0:
        return None
    for user in _inputs(node)[0].users:
        if _calls(user, aten.leaky_relu.default) and (user.args[1:] or (0.01,))[0] > 0:
            user_before = [*node.graph.nodes].index(user) < [*node.graph.nodes].index(node)
            return _new(aten.gt.Scalar, (user, 0), node) if user_before else None
    return None


def _unspread(node: Node) -> Node | None:
    if not _calls(node, aten.expand.default) or len(_shape(node)) != len(_shape(_inputs(node)[0])):
        return None

    def spreads(user: Node) -> bool:
        others = [term for term in user.args[:2] if term is not node]
        return _calls(user, *TERMS) and any(_shape(other) == _shape(user) for other in others)

    before: Any = _inputs(node)[0]
    return before if all(map(spreads, node.users)) else None


def _number_before_spreading(node: Node) -> Node | None:
    if not _calls(node, aten.mul.Scalar, aten.div.Scalar) or not _calls(_inputs(node)[0], aten.expand.default):
        return None
    before, shape = _inputs(node)[0].args
    return _new(aten.expand.default, (_new(node.target, (before, _inputs(node)[1]), before), shape), node)


def _sign_outside(node: Node) -> Node | None:
    if _calls(node, aten.mul.Tensor):
        for k, factor in enumerate(_inputs(node)):
            if _calls(factor, aten.neg.default):
                product = _new(aten.mul.Tensor, (factor.args[0], _inputs(node)[1 - k]), node)
                return _new(aten.neg.default, (product,), node)
    if _calls(node, aten.sum.dim_IntList) and _calls(_inputs(node)[0], aten.neg.default):
        return _new(aten.neg.default, (_new(node.target, (_inputs(node)[0].args[0], *_inputs(node)[1:]), node),), node)
    return None


def _divisor_outside(node: Node) -> Node | None:
    if _calls(node, aten.mul.Tensor):
        for k, factor in enumerate(_inputs(node)):
            if _calls(factor, aten.div.Tensor) and _is_smaller(factor.args[1], factor):
                product = _new(aten.mul.Tensor, (factor.args[0], _inputs(node)[1 - k]), node)
                return _new(aten.div.Tensor, (product, factor.args[1]), node)
    if (
        _calls(node, aten.sum.dim_IntList)
        and _calls(_inputs(node)[0], aten.div.Tensor)
        and _inputs(node)[2:] == (True,)
    ):
        summed, divisor = _inputs(node)[0].args
        if len(_shape(divisor)) == len(_shape(node)) and all(_shape(divisor)[axis] == 1 for axis in _inputs(node)[1]):
            return _new(aten.div.Tensor, (_new(node.target, (summed, *_inputs(node)[1:]), node), divisor), node)
    return None


def _number_to_smaller(node: Node) -> Node | None:
    if not _calls(node, aten.mul.Tensor):
        return None
    for k, factor in enumerate(_inputs(node)):
        other = _inputs(node)[1 - k]
        is_scaled = _calls(factor, aten.mul.Tensor, aten.mul.Scalar) and isinstance(factor.args[1], int | float)
        if is_scaled and _is_smaller(other, factor):
            return _new(aten.mul.Tensor, (factor.args[0], _new(aten.mul.Tensor, (other, factor.args[1]), other)), node)
    return None


RULES: tuple[Callable[[Node], Node | None], ...] = (
    _square,
    _side,
    _number_before_spreading,
    _unspread,
    _sign_outside,
    _divisor_outside,
    _number_to_smaller,
)


def _new(operator: Any, args: tuple[Any, ...], like: Node) -> Node:
    made = like.graph.call_function(operator, args)
    made.meta = dict(like.meta)
    return made


def _is_smaller(node: Any, other: Node) -> bool:
    """Whether a node has the other's axes, and is 1 along some where the other is more."""
    pairs = list(zip(_shape(node), _shape(other), strict=False))
    return (
        len(_shape(node)) == len(_shape(other)) and _shape(node) != _shape(other) and all(a in (1, b) for a, b in pairs)
    )


def _inputs(node: Node) -> tuple[Any, ...]:
    """A node's arguments, of the types that its operator takes, which those who ask have looked at."""
    return node.args


def _calls(node: Any, *targets: Any) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets


def _shape(node: Any) -> tuple[Any, ...]:
    """Sizes as they are written: a number of rows that is free is a word."""
    held: Any = node.meta.get("val") if isinstance(node, Node) else None
    return tuple(size if isinstance(size, int) else str(size) for size in getattr(held, "shape", ()))
