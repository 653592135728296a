"""``medgen benchmarks latency``"""

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

# Here and above, nothing that takes long: commands import what they need when they run.
from benchmarks.latency.contenders import PAPER, ROWS, YARDSTICK, Case
from benchmarks.latency.processes import RowError
from benchmarks.latency.timing import Figures, measure
from benchmarks.tables import wide_console
from export import BuildError
from serving.bundle import REPOSITORY, BundleError
from serving.engines.cpu import instruction_sets
from serving.progress import NowAndThen
from serving.sampling.solvers import SOLVERS
from training import CheckpointError

PACKAGES = ("medgen", "torch", "diffusers", "onnxruntime", "openvino", "tritonclient", "nvidia-pytriton", "numpy")


@click.command()
@click.option("--model", required=True, help="A model or chain that has been built.")
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    type=click.Path(path_type=Path),
    help="The one it was built from, where that has moved; of a chain, one for each stage whose has.",
)
@click.option("--repository", default=REPOSITORY, type=click.Path(path_type=Path), help="The Triton model repository.")
@click.option(
    "--steps",
    type=click.IntRange(1),
    help="Steps of the solver.  [default: 8, or a student's own, where the model takes any]",
)
@click.option("--batch", default=4, show_default=True, type=click.IntRange(1), help="Samples drawn at a time.")
@click.option(
    "--solver",
    type=click.Choice(list(SOLVERS)),
    help="What diffusers has no scheduler for leaves its rows empty.  [default: dpmpp_2m, or the model's own]",
)
@click.option("--mask-steps", type=click.IntRange(1), help="Steps of a chain's mask stage.  [default: as --steps]")
@click.option("--mask-solver", type=click.Choice(list(SOLVERS)), help="How it takes them.  [default: as --solver]")
@click.option(
    "--condition",
    "pictures",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="Pictures to draw under, as for `serving sample`.  [default: discs]",
)
@click.option(
    "--rounds",
    default=20,
    show_default=True,
    type=click.IntRange(1),
    help=f"Batches that each row draws, in turn with the others; {PAPER} draws one.",
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
    checkpoints: tuple[Path, ...],
    repository: Path,
    steps: int | None,
    batch: int,
    solver: str | None,
    mask_steps: int | None,
    mask_solver: str | None,
    pictures: tuple[Path, ...],
    rounds: int,
    only: tuple[str, ...],
    json_file: Path | None,
) -> None:
    """What a sample costs: medgen beside PyTorch and ONNX Runtime with the same weights, noise, solver and steps.

    Every row runs in a process of its own; in each round all rows draw one batch, in random order. Exit code 1 if a
    row's samples are not those of the others. A model that draws under a mask or a picture gets one of discs.
    paper-sampler is PyTorch with the solvers and steps of the models' papers, and draws samples of its own; so do the
    rows of torch.optim, for models that go down a loss.
    PIG's `small` takes five minutes in 8 steps on two idle CPU cores, and longer with more steps and rounds.
    """
    from benchmarks.latency.workload import make_case

    if json_file and not json_file.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {json_file.parent}", param_hint="--json")
    try:
        asked = {"steps": steps, "solver": solver, "mask_steps": mask_steps, "mask_solver": mask_solver}
        parameters = {name: value for name, value in asked.items() if value is not None}
        case = make_case(model, checkpoints, repository, batch, parameters, pictures)
        names = [name for name in ROWS if not only or name in (*only, YARDSTICK)]
        with progress_bar() as bar:
            rows = measure(case, names, rounds, Progressing(bar))
    except (BuildError, BundleError, CheckpointError, RowError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    console = wide_console()
    device = describe_device(case.threads)
    print_table(console, case, device, rows)
    if json_file:
        write_json(json_file, report(case, device, rounds, rows))
    if void := [row.name for row in rows if row.void]:
        raise click.ClickException(f"{', '.join(void)}: not the samples of {YARDSTICK}, so the times say nothing")


def progress_bar() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    return Progress(*columns, console=Console(stderr=True), transient=True)


class Progressing:
    """What is being done, and how long the rounds will take yet: on the bar, or in lines where it is not seen."""

    def __init__(self, bar: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._bar, self._clock, self._line = bar, clock, NowAndThen(clock=clock)
        self._task = bar.add_task("", total=1.0)
        self._began: tuple[float, float] | None = None

    def __call__(self, doing: str, done: float) -> None:
        """done: the share of the rounds that is."""
        now = self._clock()
        if done and self._began is None:
            self._began = now, done
        if self._began and done > self._began[1]:
            seconds = (now - self._began[0]) / (done - self._began[1]) * (1 - done)
            doing = f"{doing}, {done:.0%} of the rounds, about {seconds:.0f} s to go"
        self._bar.update(self._task, description=doing, completed=done)
        if not self._bar.console.is_terminal:
            self._line(doing)


def describe_device(threads: int) -> str:
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    name = found[1].strip() if found else platform.processor() or platform.machine()
    return f"{name} with {instruction_sets()}, {threads} threads"


def print_table(console: Console, case: Case, device: str, rows: list[Figures]) -> None:
    title = f"{', '.join(map(str, case.stages))}; batch {case.batch}; {device}"
    table = Table(title=title, box=box.SIMPLE, padding=0)
    table.add_column("", no_wrap=True)
    for heading in ("s/sample", "p95", "eager", "outside", "MiB", "image", "masks"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row.name,
            shown(row.seconds_per_sample, ".4f"),
            shown(row.p95, ".4f"),
            shown(row.ratio_to_eager, ".2f", "x"),
            shown(None if row.network_share is None else 1 - row.network_share, ".1%"),
            shown(row.peak_memory_mib, ".0f"),
            shown(row.max_difference, ".0e"),
            shown(row.label_difference, ".0e"),
        )
    console.print(table)
    console.print(
        "eager: times as fast as it; outside: of the time, outside the networks; MiB: peak memory; image, masks: the "
        "largest difference from eager's, and the share of pixels that differ",
        highlight=False,
    )
    for row in rows:
        for name, mean in row.numbers.items():
            console.print(f"{row.name}: {name} {mean:.2f}", highlight=False)
        if row.note:
            console.print(f"{row.name}: {row.note}", highlight=False)


def shown(value: float | None, kind: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{kind}}{unit}"


def report(case: Case, device: str, rounds: int, rows: list[Figures]) -> dict[str, Any]:
    return {
        "device": device,
        "model": case.model,
        "stages": [
            {"model": stage.model, "bundle": stage.bundle, "solver": stage.solver, "steps": stage.steps}
            for stage in case.stages
        ],
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
