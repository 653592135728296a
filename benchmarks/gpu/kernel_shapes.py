"""What the kernels are measured on: the shapes that the families' `paper` presets have."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu.options import KERNELS
from export.fuse import fuse
from kernels import attention, group_norm_silu, solver_step
from training.family import Family
from training.models import family_names, load_family

BATCHES = (1, 16)
TYPES = (torch.float32, torch.float16, torch.bfloat16)
COLUMNS = ("t", "p", "q", "a", "b", "c", "s", "m", "n", "d1", "d2", "d3")


@dataclass(frozen=True)
class Case:
    """One kernel on one shape. Calling `inputs` gives fresh random tensors, rows first, for the other three."""

    kernel: str
    shape: tuple[int, ...]
    detail: str
    dtype: torch.dtype
    inputs: Callable[[torch.device], tuple[Tensor, ...]]
    ours: Callable[..., Any]
    theirs: Callable[..., Any]  # what PyTorch offers for it
    reference: Callable[..., Any]
    bytes: int  # that must be moved
    operations: int  # of the matrix units


def cases(only: tuple[str, ...] = KERNELS) -> Iterator[Case]:
    families = [family for name in family_names() if (family := paper(name)) is not None]
    for batch in BATCHES:
        if "solver_step" in only:
            for shape in sorted({family.sample_shape for family in families}):
                yield solver_step_case((batch, *shape), used=("p", "q", "a", "b", "m", "d1"), detail="dpmpp_2m")
                yield solver_step_case((batch, *shape), used=COLUMNS[1:], detail="every term")
    found = set().union(*(operators(family) for family in families))
    for kernel, shape, *settings in sorted(found):
        for batch in BATCHES if kernel in only else ():
            for dtype in TYPES:
                make = group_norm_silu_case if kernel == "group_norm_silu" else attention_case
                yield make((batch, *shape), dtype, *settings)


def paper(name: str) -> Family | None:
    """The family's largest model, without memory for its weights; None if none of its networks has fused operators."""
    family = load_family(name)
    schedule = family.presets["paper"].schedule if "paper" in family.presets else None
    if schedule is None or schedule.process == "descent":
        return None
    with torch.device("meta"):
        return family(family.presets["paper"]).to("meta").eval()


def operators(family: Family) -> set[tuple[Any, ...]]:
    """(kernel, shape without the batch, settings) of every fused operator in the family's networks."""

    class Network(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return family.network(*inputs)

    network = Network()
    network.family = family
    inputs = [torch.empty(2, *family.sample_shape, device="meta"), torch.empty(2, 12, device="meta")]
    if family.condition is not None:
        inputs.append(torch.empty(2, *family.condition.shape, dtype=torch.uint8, device="meta"))
    fused, _ = fuse(network, tuple(inputs), None)
    found: set[tuple[Any, ...]] = set()
    for node in fused.graph.nodes:
        if node.target is group_norm_silu.group_norm_silu:
            shape = tuple(node.args[0].meta["val"].shape)[1:]
            found.add(("group_norm_silu", shape, node.args[1], "embedding" in node.kwargs))
        elif node.target is attention.attention:
            found.add(("attention", tuple(node.meta["val"].shape)[1:]))
    return found


def solver_step_case(shape: tuple[int, ...], used: tuple[str, ...], detail: str) -> Case:
    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        coeffs = torch.randn(shape[0], 12, device=device)
        coeffs[:, [COLUMNS.index(name) for name in COLUMNS if name not in used]] = 0
        return (*(torch.randn(shape, device=device) for _ in range(6)), coeffs)

    tensors = 4 + sum(name in used for name in ("s", "d1", "d2", "d3"))
    return Case(
        "solver_step",
        shape,
        detail,
        torch.float32,
        inputs,
        ours=partial(solver_step.solver_step, clip=1.0),
        theirs=plain_solver_step,
        reference=partial(solver_step.reference, clip=1.0),
        bytes=tensors * 4 * math.prod(shape),
        operations=0,
    )


def plain_solver_step(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    """As one writes it in PyTorch: 0 times infinity is no number there."""
    sample, out, history_1, history_2, history_3, noise, coeffs = tensors
    _, p, q, a, b, c, s, m, n, d1, d2, d3 = (column[:, None, None, None] for column in coeffs.unbind(1))
    x0 = (p * sample + q * out).clamp(-1, 1)
    history = d1 * history_1 + d2 * history_2 + d3 * history_3
    return a * sample + b * x0 + c * out + history + s * noise, m * x0 + n * out


def group_norm_silu_case(shape: tuple[int, ...], dtype: torch.dtype, groups: int, embedded: bool) -> Case:
    rows, channels = shape[:2]

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        x = torch.randn(shape, device=device, dtype=dtype)
        embedding = torch.randn(rows, channels, device=device, dtype=dtype) if embedded else x.new_zeros(1, 1)
        return x, embedding, *(torch.randn(1, channels, device=device, dtype=dtype) for _ in range(2))

    def theirs(x: Tensor, embedding: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
        x = x + embedding[:, :, None, None] if embedded else x
        return F.silu(F.group_norm(x, groups, gain[0], offset[0], 1e-5))

    return Case(
        "group_norm_silu",
        shape,
        f"{groups} groups" + (", embedding" if embedded else ""),
        dtype,
        inputs,
        ours=partial(group_norm_silu.group_norm_silu_op, groups=groups, eps=1e-5),
        theirs=theirs,
        reference=partial(group_norm_silu.reference, groups=groups, eps=1e-5),
        bytes=2 * dtype.itemsize * math.prod(shape),
        operations=0,
    )


def attention_case(shape: tuple[int, ...], dtype: torch.dtype) -> Case:
    rows, length, heads, head_dim = shape
    scale = head_dim**-0.5

    def inputs(device: torch.device) -> tuple[Tensor, ...]:
        return (torch.randn(rows, length, 3, heads, head_dim, device=device, dtype=dtype),)

    return Case(
        "attention",
        shape,
        f"{heads} heads",
        dtype,
        inputs,
        ours=lambda qkv: (attention.launch if qkv.is_cuda else attention.reference)(qkv, scale),  # where it loses too
        theirs=lambda qkv: attention.reference(qkv, scale),
        reference=lambda qkv: attention.reference(qkv, scale),
        bytes=4 * dtype.itemsize * math.prod(shape),
        operations=4 * rows * heads * length * length * head_dim,
    )
