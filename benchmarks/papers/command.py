"""``medgen benchmarks papers``"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

# Here and above, nothing that takes long: commands import what they need when they run.
from benchmarks.dmgan.command import named_checkpoints
from benchmarks.evaluation.command import FEATURES, LPIPS, PACKAGES
from benchmarks.papers.amounts import Amounts, within
from benchmarks.typed import as_typed
from serving.finite import FiniteRange

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
JSON, MARKDOWN = "papers.json", "papers.md"
FORMAT = 3  # of the JSON; those before had fewer figures


@click.command()
@click.option("--data", type=FOLDER, help="A folder that is, or whose folders are, mini-MIAS, DDSM, ACDC, M&Ms.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=Path("papers"), show_default=True,
              help="Folder of models, samples and tables.")  # fmt: skip
@click.option("--budget", type=FiniteRange(0, min_open=True), metavar="MINUTES",
              help="Small models, sized for so long on one idle core.  [default: the papers' sizes]")  # fmt: skip
@click.option("--films", is_flag=True, help="With --budget: mini-MIAS and DDSM too, not phantoms alone.")
@click.option("--checkpoint", "checkpoints", multiple=True, callback=named_checkpoints, metavar="NAME=DIR",
              help="A model that learnt these data already, as pig=RUN or 'pig of mini-MIAS=RUN'.")  # fmt: skip
@click.option("--only", type=click.Choice(["mammograms", "hearts"]), help="The tables of one paper.")
@click.option("--skip-bad", is_flag=True, help="Leave out files that cannot be used.")
@click.option("--seed", default=0, show_default=True, help="Of weights, segmenters and resampling.")
@FEATURES
@LPIPS
@click.option("--show", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Print the tables of this JSON, and do nothing else.")  # fmt: skip
def papers(
    data: Path | None,
    out: Path,
    budget: float | None,
    films: bool,
    checkpoints: dict[str, Path],
    only: str | None,
    skip_bad: bool,
    seed: int,
    files: tuple[tuple[str, Path], ...],
    lpips: Path | None,
    show: Path | None,
) -> None:
    """PIG's Tables 1 and 2 and the cardiac paper's III to VI: theirs, and ours beside them.

    Each model is trained on one part of the patients, built, drawn from and judged by the others. What is in --out
    already is not done again. OUT/papers.json has the figures, OUT/papers.md the tables.
    """
    if show is not None:
        figures = json.loads(show.read_text())
        if (found := figures.get("format")) != FORMAT:
            raise click.ClickException(f"{show} has the format {found}; this version shows {FORMAT}: make it again")
        print_tables(figures)
        return
    if data is None:
        raise click.UsageError("--data is needed, or --show")
    import torch

    from benchmarks.evaluation.cache import ENGINES, Cache, versions_of
    from benchmarks.evaluation.pairs import EvaluationError
    from benchmarks.latency.command import describe_device
    from benchmarks.papers.comparing import Judge
    from benchmarks.papers.models import Workshop
    from export import BuildError
    from serving.engines import EngineError
    from training import CheckpointError
    from training.data import DataError
    from training.fit import Interrupted

    amounts = Amounts() if budget is None else within(budget)
    workshop = Workshop(out, amounts, checkpoints, seed, click.echo)
    judge = Judge(amounts, Cache(out / "cache"), seed, files, lpips)
    figures = {
        "format": FORMAT,
        "budget_minutes": budget,
        "amounts": amounts.described(),
        "seed": seed,
        "machine": describe_device(torch.get_num_threads()),
        "versions": versions_of((*PACKAGES, *ENGINES, "diffusers")),
        "command": as_typed("papers"),
    }
    try:
        for measured in measure(data, only, budget is None or films, workshop, judge, skip_bad):
            figures |= measured
            written(out, figures)
    except (BuildError, CheckpointError, DataError, EngineError, EvaluationError, FloatingPointError, OSError) as error:
        raise click.ClickException(str(error)) from error
    except Interrupted as stopped:
        raise click.ClickException(f"{stopped}: the same command goes on") from stopped
    print_tables(figures)
    click.echo(f"{out / JSON}, {out / MARKDOWN}")


def measure(
    data: Path, only: str | None, films: bool, workshop: Any, judge: Any, skip_bad: bool
) -> Iterator[dict[str, Any]]:
    """The figures so far, after each data set: what comes later may fail."""
    from benchmarks.papers import hearts, mammograms, sources
    from benchmarks.papers.models import check_given
    from training.data.classes import HEART, LESION
    from training.models import load_family

    amounts, found = workshop.amounts, sources.found_in(data)
    figures: dict[str, Any] = {"mammograms": [], "found": sorted(found)}
    of_breasts = {} if only == "hearts" else sources.mammograms(found, amounts.phantoms, films)
    of_hearts = {} if only == "mammograms" else sources.hearts(found, amounts.phantoms)
    left = [*of_breasts, *(f"hearts of {name}" for name in of_hearts)]
    made = [
        (model, name) for name in of_breasts for model in (mammograms.MODELS if name != sources.DDSM else ("ddpm",))
    ]
    check_given(workshop.given, made + [(model, name) for name in [*of_hearts][:1] for model in hearts.MODELS])
    sizes = {model: load_family(model).presets[amounts.preset].size for model in ("pig", "cmr_mask")}
    for sets, model, labels in ((of_breasts, "pig", LESION), (of_hearts, "cmr_mask", HEART)):
        # Tried, and read and let go, before anything is trained.
        if sets:
            judge.networks(sizes[model])
        for name, source in sets.items():
            if name != sources.PHANTOMS:
                sources.read_sides(source, name, sizes[model], labels, skip_bad)
    if of_breasts:
        figures["networks"] = {each.name: each.identity for each in judge.networks(sizes["pig"])}
    for name, source in of_breasts.items():
        sides = sources.read_sides(source, name, sizes["pig"], LESION, skip_bad)
        measured = mammograms.measure if name != sources.DDSM else mammograms.measure_pictures
        figures["mammograms"].append(measured(*sides, name, workshop, judge))
        left.remove(name)
        yield figures | {"unfinished": list(left)}
    if of_hearts:
        size = sizes["cmr_mask"]
        figures["networks"] = {each.name: each.identity for each in judge.networks(size)}
        read = {name: sources.read_sides(source, name, size, HEART, skip_bad) for name, source in of_hearts.items()}
        figures["hearts"] = hearts.measure(read, workshop, judge)
        yield figures | {"unfinished": []}


def written(out: Path, figures: dict[str, Any]) -> None:
    """Both files, each put in its place when it is whole."""
    from benchmarks.papers.tables import head, markdown, tables

    texts = {
        JSON: json.dumps(figures, indent=1, allow_nan=False) + "\n",
        MARKDOWN: "\n".join([head(figures), "", *map(markdown, tables(figures))]),
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        aside = out / f".{name}.writing"
        aside.write_text(text)
        aside.replace(out / name)


def print_tables(figures: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    from benchmarks.evaluation.report import shown
    from benchmarks.papers.tables import head, tables
    from benchmarks.tables import wide_console

    console = wide_console()
    console.print(head(figures), markup=False)
    for each in tables(figures):
        table = Table(
            title=each.title,
            box=box.SIMPLE,
            padding=(0, 1, 0, 0),
            title_justify="left",
            caption=each.note,
            caption_justify="left",
        )
        for place, column in enumerate(each.columns):
            table.add_column(column, justify="right" if place else "left", overflow="fold")
        for row in each.rows:
            table.add_row(*("" if cell is None else shown(cell) for cell in row))
        console.print(table)
