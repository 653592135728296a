"""Runs the Triton kernels in Triton's interpreter, on the CPU, and prints how far each is from float64 as JSON.

A process of its own, because the interpreter is chosen by a variable when Triton is first imported.
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch.nn import functional as F

from kernels import attention, group_norm_silu, group_norm_sizes, solver_step

TYPES = {"float32": torch.float32, "float16": torch.float16}  # the interpreter multiplies bfloat16 wrongly


def main() -> None:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN, so that what is left unwritten is seen
    print(json.dumps({name: case() for name, case in cases()}))


def cases() -> Iterator[tuple[str, Callable[[], float]]]:
    for name, dtype in TYPES.items():
        yield from solver_step_cases(name, dtype)
        yield from attention_cases(name, dtype)
        yield from group_norm_silu_cases(name, dtype)


def distance(outputs: Any, expected: Any) -> float:
    pairs = zip(outputs, expected, strict=True) if isinstance(outputs, tuple) else [(outputs, expected)]
    distances = [(out.double() - wanted).norm() / wanted.norm() for out, wanted in pairs]
    return torch.stack(distances).max().item()  # NaN if one of them is


def solver_step_cases(name: str, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], float]]]:
    def run(clip: float, block: int) -> float:
        tensors = [torch.randn(3, 2, 13, 17) for _ in range(6)] + [torch.randn(3, 12)]
        tensors[1] = tensors[1].to(dtype)
        expected = solver_step.reference(*(tensor.double() for tensor in tensors), clip)
        return distance(solver_step.launch(*tensors, clip, block=block), expected)

    def run_unread() -> float:
        tensors = [torch.randn(2, 1, 9, 9) for _ in range(6)] + [torch.randn(2, 12)]
        tensors[1] = tensors[1].to(dtype)
        tensors[6][0, [6, 10]] = 0  # s and d2 of the first row
        tensors[5][0], tensors[3][0] = math.nan, math.inf
        expected = solver_step.reference(*(tensor.double() for tensor in tensors), math.inf)
        return distance(solver_step.launch(*tensors, math.inf), expected)

    def run_not_a_number() -> float:
        tensors = [torch.randn(2, 1, 9, 9) for _ in range(6)] + [torch.randn(2, 12)]
        tensors[1][1, 0, 2, 3] = math.nan
        tensors[1] = tensors[1].to(dtype)
        outputs = solver_step.launch(*tensors, 1.0)
        found = [output.isnan().nonzero().tolist() for output in outputs]
        return 0.0 if found == [[[1, 0, 2, 3]]] * 2 else math.inf

    yield f"solver_step {name} does not hide what is not a number", run_not_a_number
    yield f"solver_step {name} clip 1", lambda: run(1.0, 128)
    yield f"solver_step {name} no clip", lambda: run(math.inf, 1024)
    yield f"solver_step {name} does not read what has no coefficient", run_unread


def attention_cases(name: str, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], float]]]:
    def run(batch: int, length: int, heads: int, head_dim: int, tiling: tuple[int, int, int, int]) -> float:
        qkv = (torch.randn(batch, length, 3, heads, head_dim) * 2).to(dtype)
        q, k, v = qkv.double().permute(2, 0, 3, 1, 4)
        expected = (torch.softmax(q @ k.transpose(-1, -2) * 0.2, -1) @ v).transpose(1, 2)
        return distance(attention.launch(qkv, 0.2, tiling), expected)

    for shape in ((2, 80, 2, 8), (1, 37, 1, 40), (1, 64, 1, 64), (1, 70, 1, 128)):
        for tiling in attention.tilings(dtype.itemsize, shape[-1]):
            yield f"attention {name} {shape} {tiling}", lambda shape=shape, tiling=tiling: run(*shape, tiling)


def group_norm_silu_cases(name: str, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], float]]]:
    def run(shape: tuple[int, int, int, int], groups: int, rows: int, embedded: bool, whole: int) -> float:
        batch, channels, _, _ = shape
        x = (torch.randn(shape) * 2 + 3).to(dtype)
        embedding = (torch.randn(batch, channels) if embedded else torch.zeros(1, 1)).to(dtype)
        gain, offset = (torch.randn(rows, channels).to(dtype) for _ in range(2))
        group_norm_sizes.WHOLE, group_norm_sizes.TILE = whole, 64
        out = group_norm_silu.launch(x, embedding, gain, offset, groups, 1e-5)

        by_group = (x.double() + embedding.double()[:, :, None, None]).reshape(batch, groups, -1)
        normal = (by_group - by_group.mean(-1, keepdim=True)) / (
            by_group.var(-1, correction=0, keepdim=True) + 1e-5
        ).sqrt()
        expected = F.silu(normal.reshape(shape) * gain.double()[:, :, None, None] + offset.double()[:, :, None, None])
        return distance(out, expected)

    for kind, whole in (("whole", 32768), ("tiled", 16)):
        for shape, groups in (((2, 12, 9, 7), 4), ((1, 4, 16, 16), 4)):
            for rows in {1, shape[0]}:
                for embedded in (False, True):
                    yield (
                        f"group_norm_silu {name} {kind} {shape} {groups} groups, {rows} rows, embedding {embedded}",
                        lambda a=(shape, groups, rows, embedded, whole): run(*a),
                    )


if __name__ == "__main__":
    main()
