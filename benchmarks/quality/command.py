"""``medgen benchmarks anatomy`` and ``redraw``"""

import json
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table

# Here and above, nothing that takes long: commands import what they need when they run.
from benchmarks.tables import wide_console

JSON = click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures here."
)


@click.command()
@click.argument("samples", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data", required=True, help="ACDC, M&Ms, 'phantom' or 'phantom:COUNT', as the models were trained on.")
@click.option("--epochs", default=60, show_default=True, type=click.IntRange(1), help="Of the segmentation network.")
@JSON
def anatomy(samples: tuple[Path, ...], data: str, epochs: int, json_file: Path | None) -> None:
    """Are these hearts, or phantoms of breasts, and do the pictures follow their masks?

    SAMPLES are folders that `serving sample` wrote. Of each, and of the data: how many are anatomically valid (of
    breasts, with --data phantom: one mass, seen where the mask is) and how many have which fault, how bright the
    pictures are within each structure, and how well a segmentation network that saw the data's training split alone
    finds the mask in the picture (Dice). Masks of hearts may come without pictures: then their faults are counted.
    """
    from benchmarks.quality.figures import measure

    rows = measure(samples, data, epochs)
    print_table(rows)
    _write(rows, json_file)


def print_table(rows: list[dict[str, Any]]) -> None:
    """Fits 80 columns; names of folders that are too long go on in the next line."""
    structures = ", ".join(rows[0]["dice"])
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold")
    for heading in ("valid", f"brightness\n{structures}", f"Dice\n{structures}"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        shown = [
            ", ".join(f"{'-':>5}" if value is None else f"{value:.3f}" for value in row[what].values())
            for what in ("brightness", "dice")
        ]
        table.add_row(row["name"], f"{row['valid']} of {row['count']}", *shown)
    wide_console().print(table)
    for row in rows:
        if row["kinds"]:
            told = ", ".join(f"{count} with {kind}" for kind, count in row["kinds"].items())
            click.echo(f"{row['name']}: {row['count'] - row['valid']} of {row['count']} faulty: {told}")


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--from",
    "timesteps",
    multiple=True,
    default=(100, 200, 300, 400),
    show_default=True,
    type=click.IntRange(0),
    help="A timestep to noise to; repeat.",
)
@click.option("--count", default=160, show_default=True, type=click.IntRange(1), help="Rings to draw again.")
@click.option("--of", default=1500, show_default=True, type=click.IntRange(1), help="Phantoms to choose them from.")
@click.option("--steps", type=click.IntRange(1), help="Of `ddpm`, from noise to mask.  [default: the model's own]")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of phantoms and noise.")
@JSON
def redraw(
    checkpoint: Path,
    timesteps: tuple[int, ...],
    count: int,
    of: int,
    steps: int | None,
    seed: int,
    json_file: Path | None,
) -> None:
    """Where on its way from noise does a model of masks break the rings of hearts?

    CHECKPOINT is a cmr_mask's. The phantoms with the thinnest rings are noised to a timestep and drawn again from
    there. Where few break from one timestep and many from the next, they break between: `fit --set focus_at` has a
    model learn about there. With the defaults it takes half an hour of a core.
    """
    from benchmarks.quality.redraw import redraw as measured

    if count > of:
        raise click.BadParameter(f"{count} rings are more than the {of} phantoms of --of", param_hint="--count")
    rows = measured(checkpoint, timesteps, count, of, steps, seed)
    table = Table("from t", "steps", "broken", "pixels changed", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(str(row["from"]), str(row["steps"]), f"{row['broken']} of {row['of']}", f"{row['pixels']:.1f}")
    wide_console().print(table)
    _write(rows, json_file)


def _write(rows: list[dict[str, Any]], json_file: Path | None) -> None:
    if json_file:
        aside = json_file.with_name(f".{json_file.name}.writing")
        aside.write_text(json.dumps(rows, indent=1) + "\n")
        aside.replace(json_file)
