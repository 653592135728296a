"""``medgen benchmarks dmgan``"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table

# Here and above, nothing that takes long: commands import what they need when they run.
from benchmarks.dmgan import paper
from benchmarks.tables import wide_console
from training.assignment import assignment

LEARN = ("pggan", "dcgan", "cyclegan", "dmgan_image")
LEAST = 2  # steps of a training


def counts(_context: click.Context, _parameter: click.Parameter, text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdigit() and int(part) for part in parts):
        raise click.BadParameter(f"{text!r} is no list of numbers such as 1,2,10")
    return tuple(map(int, parts))


def numbers_of(_context: click.Context, _parameter: click.Parameter, texts: Sequence[str]) -> dict[str, int]:
    found = {}
    for text in texts:
        model, _, number = text.partition("=")
        if model not in LEARN or not (number.isascii() and number.isdigit() and int(number) >= LEAST):
            raise click.BadParameter(f"{text!r} must be MODEL=STEPS, of {', '.join(LEARN)}, {LEAST} steps or more")
        found[model] = int(number)
    return found


def named_checkpoints(_context: click.Context, _parameter: click.Parameter, texts: Sequence[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in texts:
        name, _, path = text.partition("=")
        if not name or not path or not Path(path).is_dir() or name in found:
            raise click.BadParameter(f"{text!r} must be NAME=DIR, with a checkpoint's folder and a name of its own")
        found[name] = Path(path)
    return found


@click.command()
@click.option("--data", required=True, help="As of fit: mini-MIAS, or a folder with images/.")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the trainings; what is there is not done again.",
)
@click.option("--preset", default="small", show_default=True, type=click.Choice(["small", "paper"]))
@click.option("--steps", type=click.IntRange(LEAST), help="Of each training, instead of the presets'.")
@click.option(
    "--steps-of",
    multiple=True,
    callback=numbers_of,
    metavar="MODEL=STEPS",
    help="Of pggan, dcgan, cyclegan or dmgan_image alone.",
)
@click.option(
    "--prior", type=click.Path(exists=True, path_type=Path), help="A pggan that learnt these data; else one is trained."
)
@click.option(
    "--other-prior",
    "others",
    multiple=True,
    callback=named_checkpoints,
    metavar="NAME=DIR",
    help="A pggan that learnt other data, to find pictures again through; else one is trained on phantoms.",
)
@click.option("--sites", default="1,2,10", show_default=True, callback=counts, help="Numbers of discriminators.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Runs of each.")
@click.option(
    "--private",
    multiple=True,
    callback=assignment,
    metavar="FIELD=VALUE",
    help="Also one with noise on the votes, by fields of FLARE's SVTPrivacy.",
)
@click.option(
    "--features",
    "network",
    type=click.Path(exists=True, path_type=Path),
    help="A TorchScript network to take Fréchet's distance over, such as Inception.",
)
@click.option(
    "--trained",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    help="The run of a dcgan or cyclegan that learnt these data, instead of training one.",
)
@click.option("--skip-bad", is_flag=True, help="Leave out files that cannot be used.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures here."
)
def dmgan(
    data: str,
    out: Path,
    preset: str,
    steps: int | None,
    steps_of: dict[str, int],
    prior: Path | None,
    others: dict[str, Path],
    sites: tuple[int, ...],
    seeds: int,
    private: dict[str, Any],
    network: Path | None,
    trained: tuple[Path, ...],
    skip_bad: bool,
    json_file: Path | None,
) -> None:
    """The tables of dm-GAN's paper: theirs, and ours on other data.

    Priors, DCGAN, CycleGAN and dm-GAN with 1, 2 and 10 discriminators are trained on one part of the patients, in this
    process, and judged on the others.
    """
    from benchmarks.dmgan.features import pyramid_bands, scripted
    from benchmarks.dmgan.runs import Plan
    from benchmarks.dmgan.tables import measure
    from export import BuildError
    from export.chain import by_model
    from training import CheckpointError
    from training.data import DataError
    from training.federated.privacy import check_fields
    from training.fit import Interrupted

    try:
        check_fields(private)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    features, name = (scripted(network), network.stem) if network else (pyramid_bands, "bands of a pyramid")
    try:
        given = by_model(trained, ["dcgan", "cyclegan"])
        plan = Plan(data, out, preset, steps, skip_bad, prior, others, given, click.echo, steps_of)
        figures = {**measure(plan, sites, seeds, private, features), "features": name}
    except (BuildError, CheckpointError, DataError, FloatingPointError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    except Interrupted as stopped:
        raise click.ClickException(f"{stopped}: remove the run that it was, and start again") from stopped
    print_tables(figures)
    if json_file:
        aside = json_file.with_name(f".{json_file.name}.writing")
        aside.write_text(json.dumps(figures, indent=1) + "\n")
        aside.replace(json_file)


def print_tables(figures: dict[str, Any]) -> None:
    console = wide_console()
    rows, sites = figures["rows"], figures["sites"]
    most = max((key for key in sites if key.isdigit() and not isinstance(sites[key], str)), key=int, default=None)
    ours = {**rows, **({} if most is None else {f"dm-GAN of {most} sites": sites[most][0]})}
    held_out, learnt, size = figures["held_out"], figures["learnt"], figures["preset"]["size"]
    console.print(
        f"Theirs: DDSM, 170 pictures learnt, 40 held out, 256 pixels. Ours: {figures['data']}, {learnt} pictures "
        f"learnt, {held_out} of other patients held out, {size} pixels, G2 {figures['preset']['steps'][0]} steps: "
        "other data, not to be compared."
    )
    table = titled("1. PSNR in dB", "", *(f"img{k}" for k in range(1, 6)), "average", "pictures")
    for name, values in paper.PSNR.items():
        table.add_row(f"theirs: {name}", *(f"{value:.2f}" for value in values), f"{sum(values) / 5:.2f}", "5")
    for name, row in ours.items():
        if not isinstance(row, str) and row["psnr"]:
            first = [f"{value:.2f}" for value in row["psnr"][:5]]
            mean = sum(row["psnr"]) / len(row["psnr"])
            table.add_row(f"ours: {name}", *first, *[""] * (5 - len(first)), f"{mean:.2f}", str(row["count"]))
    console.print(table)
    table = titled("2. Fréchet's distance", "", "theirs: FID", "decrease", f"ours: {figures['features']}", "pictures")
    for name, value in paper.FID.items():
        table.add_row(f"theirs: {name}", f"{value:.2f}", f"{paper.decrease(name):.2f} %", "", "40")
    each(table, ours, lambda row: ("", "", f"{row['distance']:.3f}", str(row["count"])))
    console.print(table)
    table = titled("3. Time of its own training, without that of the prior", "", "hours", "times as fast", "steps")
    for name, value in paper.HOURS.items():
        table.add_row(f"theirs: {name}", f"{value:g}", f"{paper.speedup(name):.2f}", "")
    each(table, ours, lambda row: (hours(row["training_seconds"]), "", str(row["steps"])))
    console.print(table)
    table = titled(
        "Do more discriminators help? The same G2, pictures and steps", "sites", "PSNR in dB", "distance", "runs"
    )
    for count, runs in sites.items():
        if isinstance(runs, str):
            table.add_row(count, runs, "", "")
        else:
            table.add_row(count, *of_runs(runs))
    console.print(table)


def hours(seconds: float | None) -> str:
    return "not known" if seconds is None else f"{seconds / 3600:.3f}"


def of_runs(runs: Sequence[dict[str, Any]]) -> tuple[str, str, str]:
    from benchmarks.dmgan.tables import spread

    means = [sum(run["psnr"]) / len(run["psnr"]) for run in runs]
    return spread(means, 2), spread([run["distance"] for run in runs], 3), str(len(runs))


def each(table: Table, rows: dict[str, Any], cells: Callable[[dict[str, Any]], tuple[str, ...]]) -> None:
    for name, row in rows.items():
        if isinstance(row, str):
            table.add_row(f"ours: {name}", row)
        else:
            table.add_row(f"ours: {name}", *cells(row))


def titled(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0), title_justify="left")
    for k, column in enumerate(columns):
        table.add_column(column, justify="right" if k else "left", overflow="fold")
    return table
