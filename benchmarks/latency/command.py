"""``python -m benchmarks latency``"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import click
import psutil
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.latency.measure import Figures, measure
from benchmarks.latency.rows import ROWS, YARDSTICK, Case
from benchmarks.latency.workers import RowError
from benchmarks.tables import wide_console
from serving.bundle import REPOSITORY, Bundle, BundleError, bundle_folder, file_digest, load_bundle
from serving.solvers import SOLVERS, solver_table
from training.checkpoint import CheckpointError, find_checkpoint, shipped_checkpoint

PACKAGES = ("medgen", "torch", "diffusers", "onnxruntime", "tritonclient", "nvidia-pytriton", "numpy")


@click.command()
@click.option("--model", required=True, help="A model that has been built.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="The one it was built from, where that has moved.")
@click.option("--repository", default=REPOSITORY, type=click.Path(path_type=Path), help="The Triton model repository.")
@click.option("--steps", default=8, show_default=True, type=click.IntRange(1), help="Steps of the solver.")
@click.option("--batch", default=4, show_default=True, type=click.IntRange(1), help="Samples drawn at a time.")
@click.option(
    "--solver",
    default="ddim",
    show_default=True,
    type=click.Choice(list(SOLVERS)),
    help="What diffusers has no scheduler for leaves its rows empty.",
)
@click.option(
    "--rounds",
    default=20,
    show_default=True,
    type=click.IntRange(1),
    help="Batches that each row draws, in turn with the others.",
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(ROWS)),
    help=f"Measure this row; may be repeated. {YARDSTICK} always runs.",
)
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures here."
)
def latency(
    model: str,
    checkpoint: Path | None,
    repository: Path,
    steps: int,
    batch: int,
    solver: str,
    rounds: int,
    only: tuple[str, ...],
    json_file: Path | None,
) -> None:
    """What a sample costs: medgen beside PyTorch and ONNX Runtime with the same weights, noise, solver and steps.

    Every row runs in a process of its own; in each round all rows draw one batch, in random order. Exit code 1 if a
    row's samples are not those of the others.
    """
    if json_file and not json_file.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {json_file.parent}", param_hint="--json")
    try:
        bundle = load_bundle(bundle_folder(repository, model))
        case = make_case(bundle, checkpoint, repository, steps, batch, solver)
        names = [name for name in ROWS if not only or name in (*only, YARDSTICK)]
        with progress_bar() as progress:
            task = progress.add_task("", total=1.0)
            rows = measure(
                case,
                bundle.manifest.outputs,
                names,
                rounds,
                lambda doing, done: progress.update(task, description=doing, completed=done),
            )
    except (BundleError, CheckpointError, RowError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    console = wide_console()
    device = describe_device(case.threads)
    print_table(console, case, device, rows)
    if json_file:
        write_json(json_file, report(case, device, bundle, rounds, rows))
    if void := [row.name for row in rows if row.void]:
        raise click.ClickException(f"{', '.join(void)}: not the samples of {YARDSTICK}, so the times say nothing")


def make_case(bundle: Bundle, checkpoint: Path | None, repository: Path, steps: int, batch: int, solver: str) -> Case:
    """Raises ValueError if the checkpoint's weights are not the bundle's, or the solver does not fit the model."""
    manifest = bundle.manifest
    if manifest.schedule is not None:
        solver_table(solver, manifest.schedule, steps)
    folder = find_checkpoint(checkpoint or built_from(bundle))
    if file_digest(folder / "model.safetensors") != manifest.checkpoint.get("digest"):
        raise ValueError(f"{bundle.folder} was not built from {folder}: give --checkpoint the one it was built from")
    threads = psutil.cpu_count(logical=False) or 1  # what ONNX Runtime takes by itself
    return Case(manifest.model, folder.resolve(), repository.resolve(), solver, steps, batch, threads)


def built_from(bundle: Bundle) -> Path:
    """The checkpoint that a bundle was compared with when it was built, or the one that medgen ships."""
    try:
        recorded = Path(json.loads((bundle.folder / "parity.json").read_text())["checkpoint"])
    except (OSError, ValueError, KeyError):
        return shipped_checkpoint(bundle.manifest.model)
    return recorded if recorded.is_dir() else shipped_checkpoint(bundle.manifest.model)


def progress_bar() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    return Progress(*columns, console=Console(stderr=True), transient=True)


def describe_device(threads: int) -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return f"{found[1].strip() if found else platform.processor() or platform.machine()}, {threads} threads"


def print_table(console: Console, case: Case, device: str, rows: list[Figures]) -> None:
    title = f"{case.model}, {case.solver}, {case.steps} steps, batch {case.batch}; {device}"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for heading in ("s/sample", "p95", "vs eager", "networks", "peak MiB", "max diff"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            shown(row.seconds_per_sample, ".4f"),
            shown(row.p95, ".4f"),
            shown(row.ratio_to_eager, ".2f", "x"),
            shown(row.network_share, ".1%"),
            shown(row.peak_memory_mib, ".0f"),
            shown(row.max_difference, ".1e"),
        )
    console.print(table)
    for row in rows:
        if row.note:
            console.print(f"{row.name}: {row.note}", highlight=False)


def shown(value: float | None, kind: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{kind}}{unit}"


def report(case: Case, device: str, bundle: Bundle, rounds: int, rows: list[Figures]) -> dict[str, Any]:
    return {
        "device": device,
        "model": case.model,
        "bundle": bundle.digest,
        "solver": case.solver,
        "steps": case.steps,
        "batch": case.batch,
        "threads": case.threads,
        "rounds": rounds,
        "versions": {"python": platform.python_version(), **dict(filter(all, map(installed, PACKAGES)))},
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def installed(package: str) -> tuple[str, str]:
    try:
        return package, importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return package, ""


def write_json(path: Path, figures: dict[str, Any]) -> None:
    aside = path.with_name(f".{path.name}.writing")
    aside.write_text(json.dumps(figures, indent=2) + "\n")
    os.replace(aside, path)
