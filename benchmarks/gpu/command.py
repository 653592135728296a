"""``medgen benchmarks gpu``: the fused kernels, then whole trajectories, on the GPU that is there."""

import json
import re
import time
from pathlib import Path
from typing import Any

import click

# Here and above, nothing that takes long: commands import what they need when they run.
from benchmarks.gpu.options import BATCHES, KERNELS, PRECISIONS, SIZES, WAYS
from benchmarks.tables import wide_console
from serving.finite import FiniteRange

RESULTS = Path(__file__).parents[1] / "results"
ROW_KEYS = {
    "kernels": ("kernel", "shape", "detail", "dtype"),
    "trajectories": ("name", "size", "batch", "precision"),
}
KERNELS_SHARE = 1 / 3  # of the time, where trajectories come after them


@click.command()
@click.option(
    "--only", multiple=True, type=click.Choice([*KERNELS, *WAYS]), help="Measure this kernel or way. May be repeated."
)
@click.option(
    "--size",
    multiple=True,
    type=click.IntRange(32),
    default=SIZES,
    show_default=True,
    help="Of the images. May be repeated.",
)
@click.option(
    "--batch",
    multiple=True,
    type=click.IntRange(1),
    default=BATCHES,
    show_default=True,
    help="Samples at a time. May be repeated.",
)
@click.option(
    "--precision",
    multiple=True,
    type=click.Choice(PRECISIONS),
    default=PRECISIONS,
    show_default=True,
    help="Of the networks. May be repeated.",
)
@click.option(
    "--minutes",
    default=9.0,
    show_default=True,
    type=FiniteRange(0),
    help="What has not begun by then is left out, and said to be, and a TensorRT build that is not done given up. "
    "Where trajectories are measured too, kernels get a third at most.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="JSON file; rows in it that are not measured now stay.  [default: benchmarks/results/gpu-NAME.json]",
)
def gpu(
    only: tuple[str, ...],
    size: tuple[int, ...],
    batch: tuple[int, ...],
    precision: tuple[str, ...],
    minutes: float,
    out: Path | None,
) -> None:
    """Measure the fused kernels, and PIG's `paper` preset as it is drawn with and without medgen.

    \b
    Examples:
      medgen benchmarks gpu
      medgen benchmarks gpu --only attention
      medgen benchmarks gpu --only medgen-tensorrt --size 512 --precision fp16
    """
    import torch

    from benchmarks.gpu import kernel_timing, trajectory_timing
    from kernels import language

    if not torch.cuda.is_available():
        click.echo("No GPU that PyTorch can use: nothing was measured.")
        return
    if not language.INSTALLED:
        click.echo("Triton is not installed, and the kernels need it (pip install triton): nothing was measured.")
        return
    began = time.monotonic()
    report: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    out = out or RESULTS / f"gpu-{re.sub('[^a-z0-9]+', '-', report['gpu'].lower())}.json"
    refuse_another_gpus(out, report["gpu"])
    ways = [name for name in WAYS if not only or name in only]
    if chosen := [name for name in KERNELS if not only or name in only]:
        report |= kernel_timing.measure_all(chosen, began + 60 * minutes * (KERNELS_SHARE if ways else 1))
        write(report, out)
    if ways:
        groups = trajectory_timing.groups(size, batch, precision)
        report["trajectories"] = []
        for rows in trajectory_timing.measure_all(ways, groups, torch.device("cuda"), began + 60 * minutes):
            report["trajectories"] += rows
            write(report, out)  # group by group: the next one may fail, or take too long
    console = wide_console()
    if "kernels" in report:
        console.print(kernel_timing.table(report))
        if late := report["kernels_without_time"]:
            click.echo(f"{late} rows of kernels not measured, as there was no time left")
    if "trajectories" in report:
        console.print(trajectory_timing.table(report))
        for note in trajectory_timing.notes(report):
            click.echo(note)
    click.echo(f"Written to {out}.")
    if wrong := [row for rows in ROW_KEYS for row in report.get(rows, []) if row["wrong"]]:
        raise click.ClickException(f"{len(wrong)} rows are further from the reference than their type allows.")


def refuse_another_gpus(out: Path, gpu: str) -> None:
    """Raises ClickException for a file whose rows, which stay, are of another GPU."""
    before = json.loads(out.read_text()).get("gpu", gpu) if out.is_file() else gpu
    if before != gpu:
        raise click.ClickException(f"{out} has the figures of {before}, and here is {gpu}: give another --out")


def write(report: dict[str, Any], out: Path) -> None:
    """Write the file anew; of one that is there, what could not be measured again is kept."""
    before = json.loads(out.read_text()) if out.is_file() else {}
    merged = {**before, **report}
    for rows, keys in ROW_KEYS.items():
        by_key: dict[str, dict[str, Any]] = {}
        for row in (*before.get(rows, []), *report.get(rows, [])):
            key = json.dumps([row[part] for part in keys])
            if key not in by_key or is_measured(row) or not is_measured(by_key[key]):
                by_key[key] = row
        merged[rows] = list(by_key.values())
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_suffix(".tmp")
    aside.write_text(json.dumps(merged, indent=1) + "\n")
    aside.replace(out)


def is_measured(row: dict[str, Any]) -> bool:
    """Of kernels there are no other rows."""
    return row.get("ms_per_sample", 0) is not None
