"""The fused kernels beside PyTorch's own and beside what the hardware allows."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, zip_longest
from typing import Any

import torch
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks.gpu.kernel_shapes import Case, cases

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
ORDER = (torch.float16, torch.float32, torch.bfloat16)  # bfloat16 is as fast as float16
REPLAYS = 20


@dataclass(frozen=True)
class Ceilings:
    """What this GPU was seen to do: bytes a second, read and written, and matrix operations a second by type."""

    bandwidth: float
    matrix: dict[torch.dtype, float]

    def floor(self, case: Case) -> float:
        """Seconds that no kernel can go below by much."""
        return max(case.bytes / self.bandwidth, case.operations / self.matrix[case.dtype])


def measure_all(names: Sequence[str], deadline: float) -> dict[str, Any]:
    """The report's part on kernels: what the hardware was seen to do, and a row for each case begun by the deadline."""
    ceilings = measure_ceilings()
    rows = []
    wanted = most_telling_first(cases(tuple(names)))
    for case in track(wanted, description="kernels"):
        if time.monotonic() < deadline:
            rows.append(measure(case, ceilings))
    return {
        "kernels_without_time": len(wanted) - len(rows),
        "copy_bytes_per_second": ceilings.bandwidth,
        "matrix_operations_per_second": {str(dtype): rate for dtype, rate in ceilings.matrix.items()},
        "kernels": rows,
    }


def most_telling_first(cases: Iterable[Case]) -> list[Case]:
    """The kernels in turn, of each float16 before the types that tell less, and what takes longest before the rest."""
    by_kernel: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda case: (ORDER.index(case.dtype), -case.bytes, -case.operations)):
        by_kernel.setdefault(case.kernel, []).append(case)
    return [case for case in chain(*zip_longest(*by_kernel.values())) if case is not None]


def table(report: dict[str, Any]) -> Table:
    title = f"{report['gpu']}: {report['copy_bytes_per_second'] / 1e12:.2f} TB/s copied"
    found = Table("kernel", "shape", "", "type", title=title)
    for heading in ("ours, µs", "torch, µs", "times as fast", "of the floor", "error"):
        found.add_column(heading, justify="right")
    for row in report["kernels"]:
        found.add_row(
            row["kernel"],
            "x".join(map(str, row["shape"])),
            row["detail"],
            row["dtype"],
            f"{row['ours'] * 1e6:.1f}",
            f"{row['theirs'] * 1e6:.1f}",
            f"{row['theirs'] / row['ours']:.2f}",
            f"{row['floor'] / row['ours']:.0%}",
            f"{row['error']:.1e}" + (" WRONG" if row["wrong"] else ""),
            style="red" if row["wrong"] else "yellow" if row["ours"] > row["theirs"] else None,
        )
    return found


def measure(case: Case, ceilings: Ceilings) -> dict[str, Any]:
    device = torch.device("cuda")
    error = distance(case, device)
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    size = sum(tensor.nbytes for tensor in case.inputs(device))
    sets = [case.inputs(device) for _ in range(min(32, max(2, math.ceil(4 * cache / size))))]
    return {
        "kernel": case.kernel,
        "shape": case.shape,
        "detail": case.detail,
        "dtype": str(case.dtype).removeprefix("torch."),
        "ours": seconds(case.ours, sets),
        "theirs": seconds(case.theirs, sets),
        "floor": ceilings.floor(case),
        "error": error,
        "wrong": not error <= TOLERANCE[case.dtype],
        "input_sets": len(sets),
    }


def distance(case: Case, device: torch.device) -> float:
    """How far the kernel is from float64, relative to it, on fresh inputs; what it leaves unwritten is NaN."""
    inputs = case.inputs(device)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills new memory with NaN
    try:
        outputs = case.ours(*inputs)
    finally:
        torch.use_deterministic_algorithms(False)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    squares = [[0.0, 0.0] for _ in outputs]
    for row in range(len(inputs[0])):
        expected = case.reference(*(tensor[row % len(tensor)][None].double() for tensor in inputs))
        expected = expected if isinstance(expected, tuple) else (expected,)
        for sums, out, wanted in zip(squares, outputs, expected, strict=True):
            sums[0] += (out[row].double() - wanted[0]).square().sum().item()
            sums[1] += wanted.square().sum().item()
    return torch.tensor([math.sqrt(off / whole) for off, whole in squares]).max().item()  # NaN if one of them is


def seconds(function: Callable[..., Any], sets: list[tuple[Tensor, ...]]) -> float:
    """Median time of a call, launched from a graph, its inputs taken in turn so that none waits in the cache."""
    for inputs in sets:
        function(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for inputs in sets:
            function(*inputs)
    times = []
    for _ in range(3 + REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / len(sets))
    return statistics.median(times[3:])


def measure_ceilings() -> Ceilings:
    matrix = {}
    for dtype in TOLERANCE:
        sides = [torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2)]
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True  # what the matrix units make of float32
        matrix[dtype] = 2 * 8192**3 / seconds(torch.matmul, [(sides[0], sides[1])])
        torch.backends.cuda.matmul.allow_tf32 = before
    return Ceilings(max(bandwidths(torch.device("cuda"), 1 << 31).values()), matrix)


def bandwidths(device: torch.device, nbytes: int) -> dict[str, float]:
    """Bytes a second of several ways to fill a tensor of so many bytes; the driver's own copy is not the fastest."""
    found = {}
    for dtype in (torch.float32, torch.float16):
        source, other, target = torch.ones(3, nbytes // dtype.itemsize, device=device, dtype=dtype)
        ways: dict[str, tuple[Callable[..., Any], list[Tensor]]] = {
            "copy": (target.copy_, [source]),
            "product": (partial(torch.mul, other=2, out=target), [source]),
            "sum": (partial(torch.add, out=target), [source, other]),
        }
        for name, (function, inputs) in ways.items():
            moved = (len(inputs) + 1) * nbytes
            found[f"{name} of {str(dtype).removeprefix('torch.')}"] = moved / seconds(function, [tuple(inputs)])
    return found
