"""``python -m benchmarks gpu``: the fused kernels beside PyTorch's own and beside what the hardware allows."""

import json
import math
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks.kernel_cases import KERNELS, Case, cases
from kernels.language import INSTALLED

RESULTS = Path(__file__).parent / "results"
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
REPLAYS = 20


@dataclass(frozen=True)
class Ceilings:
    """What this GPU was seen to do: bytes a second, read and written, and matrix operations a second by type."""

    bandwidth: float
    matrix: dict[torch.dtype, float]

    def floor(self, case: Case) -> float:
        """Seconds that no kernel can go below by much."""
        return max(case.bytes / self.bandwidth, case.operations / self.matrix[case.dtype])


@click.command()
@click.option("--only", multiple=True, type=click.Choice(KERNELS), help="Measure this kernel. May be repeated.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="JSON file. [default: results/gpu-NAME.json]"
)
def gpu(only: tuple[str, ...], out: Path | None) -> None:
    """Measure the fused kernels on the GPU that is there.

    \b
    Examples:
      python -m benchmarks gpu
      python -m benchmarks gpu --only attention
    """
    main(only, out)


def main(only: tuple[str, ...] = (), out: Path | None = None) -> None:
    """Check and time every kernel, print a table and write `out`; without a GPU, say so in one line.

    Raises click.ClickException at the end if a kernel's numbers are wrong.
    """
    if not torch.cuda.is_available():
        click.echo("No GPU that PyTorch can use: nothing was measured.")
        return
    if not INSTALLED:
        click.echo("Triton is not installed, and the kernels need it (pip install triton): nothing was measured.")
        return
    name = torch.cuda.get_device_name()
    ceilings = measure_ceilings()
    rows = [measure(case, ceilings) for case in track(list(cases(only or KERNELS)), description=name)]
    report = {
        "gpu": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "copy_bytes_per_second": ceilings.bandwidth,
        "matrix_operations_per_second": {str(dtype): rate for dtype, rate in ceilings.matrix.items()},
        "kernels": rows,
    }
    out = out or RESULTS / f"gpu-{re.sub('[^a-z0-9]+', '-', name.lower())}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_suffix(".tmp")
    aside.write_text(json.dumps(report, indent=1) + "\n")
    aside.replace(out)
    Console().print(table(report))
    click.echo(f"Written to {out}.")
    if wrong := [row for row in rows if row["wrong"]]:
        raise click.ClickException(f"{len(wrong)} of {len(rows)} rows are further from float64 than their type allows.")


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
    half = 1 << 30
    source, target = torch.empty(2, half, dtype=torch.uint8, device="cuda").random_()
    bandwidth = 2 * half / seconds(target.copy_, [(source,)])
    matrix = {}
    for dtype in TOLERANCE:
        sides = [torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2)]
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = True  # what the matrix units make of float32
        matrix[dtype] = 2 * 8192**3 / seconds(torch.matmul, [(sides[0], sides[1])])
        torch.backends.cuda.matmul.allow_tf32 = before
    return Ceilings(bandwidth, matrix)
