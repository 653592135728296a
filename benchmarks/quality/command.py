"""``medgen benchmarks anatomy``"""

import json
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.table import Table

# Here and above, nothing that takes long: commands import what they need when they run.
from benchmarks.tables import wide_console


@click.command()
@click.argument("samples", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data", required=True, help="ACDC, M&Ms, 'phantom' or 'phantom:COUNT', as the models were trained on.")
@click.option("--epochs", default=60, show_default=True, type=click.IntRange(1), help="Of the segmentation network.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures here."
)
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
    if json_file:
        aside = json_file.with_name(f".{json_file.name}.writing")
        aside.write_text(json.dumps(rows, indent=1) + "\n")
        aside.replace(json_file)


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
