"""``medgen benchmarks load``"""

import dataclasses
import statistics
import time
from pathlib import Path

import click
import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.latency.command import PACKAGES, describe_device, installed, progress_bar, write_json
from benchmarks.load.arrivals import MIX, MOST_ROWS, Arrival, mean_row_steps, poisson
from benchmarks.load.figures import Figures, summed_up
from benchmarks.load.open_loop import LoadError, play, watching_memory
from benchmarks.load.simulated import simulated
from benchmarks.load.two_ways import IN_FLIGHT, STATIC, WAYS, TwoWays, serving_in_two_ways
from benchmarks.tables import wide_console
from serving.bundle import REPOSITORY, BundleError, bundle_folder, load_bundle
from serving.chain import read_chain
from serving.finite import FiniteRange
from serving.triton.errors import ServerError

CALIBRATION_STEPS = 50


@click.command()
@click.option("--model", required=True, help="A model that has been built; no chain, and none that draws under a mask.")
@click.option("--repository", default=REPOSITORY, type=click.Path(path_type=Path), help="The Triton model repository.")
@click.option(
    "--load",
    "loads",
    multiple=True,
    type=FiniteRange(0.01),
    default=(0.5, 0.8, 0.95),
    show_default=True,
    help="Share of the capacity that is asked for; may be repeated.",
)
@click.option("--seconds", default=240.0, show_default=True, type=FiniteRange(1), help="Of arrivals at each load.")
@click.option("--rounds", default=20, show_default=True, type=click.IntRange(1), help="Single requests while idle.")
@click.option("--seed", default=17, show_default=True, help="Of the arrivals.")
@click.option(
    "--metrics-port",
    type=click.IntRange(1, 65535),
    help="Where a Prometheus can scrape the server.  [default: a free one]",
)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write figures here.")
def load(
    model: str,
    repository: Path,
    loads: tuple[float, ...],
    seconds: float,
    rounds: int,
    seed: int,
    metrics_port: int | None,
    json_file: Path | None,
) -> None:
    """Requests that come whether or not those before are answered: in-flight batching beside whole batches.

    One server has the bundle twice: batched in flight, and by Triton's own batcher. Both get the same Poisson arrivals
    in turn: 70 % of 8 steps and 30 % of 50, one to four samples each. Capacity is what the best batch does that is
    sent alone. Exit code 1 if a sample's bits differ between the two. What a GPU would do is simulated beside it.
    It takes twice --seconds for each load and a few minutes.
    """
    if json_file and not json_file.absolute().parent.is_dir():
        raise click.BadParameter(f"there is no folder {json_file.parent}", param_hint="--json")
    try:
        check(repository, model)
        with serving_in_two_ways(repository, model, metrics_port) as server, progress_bar() as progress:
            task = progress.add_task("", total=1.0)
            parts = 2 * len(loads) + 2

            def show(doing: str, part: float) -> None:
                progress.update(task, description=doing, completed=part / parts)

            show("capacity", 0)
            capacity = measure_capacity(server, load_bundle(bundle_folder(repository, model)).manifest.max_batch)
            show("while idle", 1)
            idle = measure_idle(server, rounds)
            measured: list[Figures] = []
            differing = 0
            for number, share in enumerate(loads):
                rate = share * capacity / mean_row_steps()
                arrivals = poisson(rate, seed, max(1, round(rate * seconds)))
                digests = []
                # Each goes first in every other load.
                for turn, way in enumerate(WAYS if number % 2 == 0 else WAYS[::-1]):
                    show(f"{way} at {share:g}", 2 + 2 * number + turn)
                    figures, found = measure(server, way, share, arrivals)
                    measured.append(figures)
                    digests.append(found)
                differing += sum(one != two for one, two in zip(*digests, strict=True) if one and two)
    except (BundleError, ServerError, LoadError) as error:
        raise click.ClickException(str(error)) from error
    console = wide_console()
    device = describe_device(threads())
    print_table(console, f"{model}, {device}; capacity {capacity:.1f} steps of a sample per second", measured)
    of_both = [f"{1000 * idle[way]:.1f} ms {way}" for way in WAYS]
    change = 100 * (idle[IN_FLIGHT] / idle[STATIC] - 1)
    said = f"One sample of {MIX[0].steps} steps while idle: {', '.join(of_both)} ({change:+.1f} %)"
    console.print(f"{said}; requests that differ in any bit: {differing}", highlight=False)
    guessed = list(simulated((*loads, 1.5), seed))
    for machine in dict.fromkeys(name for name, _ in guessed):
        print_table(console, f"SIMULATED, not measured: {machine}", [one for name, one in guessed if name == machine])
    if json_file:
        write_json(
            json_file,
            {
                "device": device,
                "model": model,
                "mix": [{"steps": kind.steps, "share": kind.share} for kind in MIX],
                "most_rows": MOST_ROWS,
                "seed": seed,
                "seconds": seconds,
                "capacity_steps_per_second": capacity,
                "idle_seconds": idle,
                "differing_requests": differing,
                "versions": dict(filter(all, map(installed, PACKAGES))),
                "measured": [dataclasses.asdict(one) for one in measured],
                "simulated": [{"machine": name, **dataclasses.asdict(one)} for name, one in guessed],
            },
        )
    if differing:
        raise click.ClickException(f"{differing} requests have other samples in flight than in whole batches")


def threads() -> int:
    return psutil.cpu_count(logical=False) or 1


def check(repository: Path, model: str) -> None:
    if read_chain(repository, model):
        raise click.BadParameter(f"{model} is a chain; name one of its stages that draws under no mask")
    if load_bundle(bundle_folder(repository, model)).manifest.condition is not None:
        raise click.BadParameter(f"{model} draws under a mask; name a model that does not")


def measure_capacity(server: TwoWays, max_batch: int) -> float:
    """Steps of a sample per second, in the best of the batches that are sent alone; the first of each prepares it."""
    best = 0.0
    rows = 1
    while rows <= max_batch:
        for steps in (2, CALIBRATION_STEPS):
            took = play(server.url, IN_FLIGHT, [Arrival(0.0, rows, steps, seed=0)]).seconds
        best, rows = max(best, rows * steps / took), 2 * rows
    return best


def measure_idle(server: TwoWays, rounds: int) -> dict[str, float]:
    """The median seconds of one sample of few steps, in turn."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way in WAYS if number % 2 else WAYS[::-1]:
            answer = play(server.url, way, [Arrival(0.0, 1, MIX[0].steps, seed=number)]).answers[0]
            if number:  # the first warms up
                seconds[way].append(answer.seconds)
    return {way: statistics.median(own) for way, own in seconds.items()}


def measure(server: TwoWays, way: str, share: float, arrivals: list[Arrival]) -> tuple[Figures, list[str | None]]:
    """The figures, and the digest of each request's samples."""
    names = ("network_seconds_total", "busy_seconds_total")
    before = [server.metric(name, way) for name in names]
    with watching_memory(server.process(way)) as memory:
        played = play(server.url, way, arrivals)
    seconds = [answer.seconds if answer.digest else None for answer in played.answers]
    figures = summed_up(way, share, arrivals, seconds, played.seconds)
    if way == IN_FLIGHT:
        time.sleep(2.0)  # until the last figures are told
        network, busy = (server.metric(name, way) - old for name, old in zip(names, before, strict=True))
        figures = dataclasses.replace(figures, network_share=network / busy)
    figures = dataclasses.replace(figures, memory_mib=(memory[0], max(memory)), lag=played.lag)
    return figures, [answer.digest for answer in played.answers]


def print_table(console: Console, title: str, rows: list[Figures]) -> None:
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("load", no_wrap=True)
    table.add_column("", no_wrap=True)
    classes = [one.steps for one in rows[0].classes]
    headings = ["samples/s", *(f"{steps} steps: p50, p95, p99 s" for steps in classes), "refused", "MiB", "networks"]
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            f"{row.load:g}",
            row.way,
            f"{row.samples_per_second:.2f}",
            *("  ".join("-" if p is None else f"{p:.2f}" for p in (one.p50, one.p95, one.p99)) for one in row.classes),
            str(row.refused),
            "-" if row.memory_mib is None else f"{row.memory_mib[1]:.0f}",
            "-" if row.network_share is None else f"{row.network_share:.1%}",
        )
    console.print(table)
