"""``python -m benchmarks anatomy``"""

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich import box
from rich.table import Table
from torch import Tensor

from benchmarks.quality.anatomy import LV, MYO, RV, faults
from benchmarks.quality.segmenter import dice, train_segmenter
from benchmarks.tables import wide_console
from training.data import DataError, open_dataset

STRUCTURES = {"LV": LV, "MYO": MYO, "RV": RV}


@click.command()
@click.argument("samples", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data", required=True, help="ACDC or M&Ms, which the models were trained on.")
@click.option("--epochs", default=60, show_default=True, type=click.IntRange(1), help="Of the segmentation network.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Also write the figures here."
)
def anatomy(samples: tuple[Path, ...], data: str, epochs: int, json_file: Path | None) -> None:
    """Are these hearts, and do the pictures follow their masks?

    SAMPLES are folders that `serving sample` wrote. Of each, and of real slices: how many masks are anatomically valid,
    how bright the pictures are within each structure, and how well a segmentation network that saw real slices of the
    training split alone finds the mask in the picture (Dice).
    """
    try:
        pairs = {folder.name: read_pairs(folder) for folder in samples}
        (size,) = {images.shape[-1] for images, _ in pairs.values()}
    except ValueError as error:
        raise click.ClickException(f"SAMPLES must be of one size: {error}") from error
    try:
        train, held_out = (open_dataset(data, size, split) for split in ("train", "validation"))
    except DataError as error:
        raise click.ClickException(str(error)) from error
    network = train_segmenter(train, epochs)
    real = {"real, trained on": stacked(train), "real, held out": stacked(held_out)}
    rows = [{"name": name, **figures(network, *pair)} for name, pair in (real | pairs).items()]
    print_table(rows)
    if json_file:
        aside = json_file.with_name(f".{json_file.name}.writing")
        aside.write_text(json.dumps(rows, indent=1) + "\n")
        aside.replace(json_file)


def read_pairs(folder: Path) -> tuple[Tensor, Tensor]:
    """Images float32 [N, 1, H, W] in [-1, 1] and masks uint8 [N, 1, H, W] of a folder of samples."""
    try:
        with np.load(folder / "pairs.npz") as arrays:
            return torch.from_numpy(arrays["image"]) * 2 - 1, torch.from_numpy(arrays["mask"])
    except (OSError, KeyError) as error:
        raise click.ClickException(f"{folder} holds no pairs of mask and image that `serving sample` wrote") from error


def stacked(dataset: Any) -> tuple[Tensor, Tensor]:
    items = [dataset[k] for k in range(len(dataset))]
    return torch.stack([item["image"] for item in items]), torch.stack([item["mask"] for item in items])


def figures(network: torch.nn.Module, images: Tensor, masks: Tensor) -> dict[str, Any]:
    wrong = [faults(mask[0]) for mask in masks.numpy()]
    grey = (images / 2 + 0.5).numpy()
    return {
        "count": len(masks),
        "valid": sum(not each for each in wrong),
        "faults": wrong,
        "brightness": {name: float(grey[masks.numpy() == index].mean()) for name, index in STRUCTURES.items()},
        "dice": dict(zip(STRUCTURES, dice(network, images, masks), strict=True)),
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    table = Table("", box=box.SIMPLE)
    for heading in ("valid", *(f"{what} {name}" for what in ("brightness", "Dice") for name in STRUCTURES)):
        table.add_column(heading, justify="right")
    for row in rows:
        values = [f"{value:.3f}" for what in ("brightness", "dice") for value in row[what].values()]
        table.add_row(row["name"], f"{row['valid']} of {row['count']}", *values)
    wide_console().print(table)
