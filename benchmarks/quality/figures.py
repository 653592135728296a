"""What of samples and of the data that their models learnt is like hearts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.anatomy import LV, MYO, RV, faults
from benchmarks.quality.segmenter import dice, train_segmenter
from training.cardiac_families import CLASSES
from training.data import DataError, open_dataset
from training.data.classes import HEART
from training.data.phantom import Phantoms

STRUCTURES = {"LV": LV, "MYO": MYO, "RV": RV}
PHANTOMS = 512  # to train on, and as many others; of real slices there are about as many


def measure(samples: Sequence[Path], data: str, epochs: int) -> list[dict[str, Any]]:
    """Rows of the data and of each folder of samples: "name", and what ``figures`` says.

    Raises ClickException, naming it, if a folder or the data cannot be judged.
    """
    pairs = {str(folder): read_pairs(folder) for folder in samples}
    if len(sizes := sorted({images.shape[-1] for images, _ in pairs.values()})) > 1:
        raise click.ClickException(f"SAMPLES are of {' and '.join(map(str, sizes))} pixels; they must be of one size")
    source = f"phantom:{PHANTOMS}" if data == "phantom" else data
    try:
        train, held_out = (open_dataset(source, sizes[0], split, labels=HEART) for split in ("train", "validation"))
    except DataError as error:
        raise click.ClickException(str(error)) from error
    if train.labels != HEART:
        raise click.ClickException(f"--data is {data}, which shows no hearts; ACDC, M&Ms or 'phantom' is needed")
    kind = "phantoms" if isinstance(train, Phantoms) else "real"
    learnt, held_back = ([dataset[k] for k in range(len(dataset))] for dataset in (train, held_out))
    network = train_segmenter(learnt, epochs)
    known = {f"{kind}, trained on": stacked(learnt), f"{kind}, held out": stacked(held_back)}
    return [{"name": name, **figures(network, *pair)} for name, pair in (known | pairs).items()]


def read_pairs(folder: Path) -> tuple[Tensor, Tensor]:
    """Images float32 [N, 1, S, S] in [-1, 1] and masks uint8 [N, 1, S, S] of a folder of samples.

    Raises ClickException naming the folder if it holds no such pairs.
    """
    try:
        with np.load(folder / "pairs.npz") as arrays:
            images, masks, labels = arrays["image"], arrays["mask"], arrays.get("mask_labels")
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise click.ClickException(f"{folder} holds no pairs of mask and image that `serving sample` wrote") from error
    if masks.dtype != np.uint8:
        raise click.ClickException(f"{folder} holds {masks.dtype} masks; they must be uint8")
    if images.shape != masks.shape or images.ndim != 4:
        shapes = f"images of shape {list(images.shape)} and masks of {list(masks.shape)}"
        raise click.ClickException(f"{folder} holds {shapes}; both must be [N, 1, S, S]")
    if labels is None:
        click.echo(f"{folder} does not name the classes of its masks: only their range was checked", err=True)
    elif tuple(labels.tolist()) != HEART:
        classes = f"{', '.join(labels.tolist())}; hearts have {', '.join(HEART)}"
        raise click.ClickException(f"{folder} holds masks of {classes}")
    if (highest := masks.max()) >= CLASSES:
        raise click.ClickException(f"{folder} holds masks of class {highest}; hearts have 0 to {CLASSES - 1}")
    return torch.from_numpy(images) * 2 - 1, torch.from_numpy(masks)


def stacked(items: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Items of a data set as ``read_pairs`` gives pairs."""
    return torch.stack([item["image"] for item in items]), torch.stack([item["mask"] for item in items])


def figures(network: torch.nn.Module, images: Tensor, masks: Tensor) -> dict[str, Any]:
    """What the table shows of pairs as ``read_pairs`` gives them; None of a structure that no mask has."""
    wrong = [faults(mask[0]) for mask in masks.numpy()]
    grey = (images / 2 + 0.5).numpy()
    inside = {name: masks.numpy() == index for name, index in STRUCTURES.items()}
    found = dict(zip(STRUCTURES, dice(network, images, masks), strict=True))
    return {
        "count": len(masks),
        "valid": sum(not each for each in wrong),
        "faults": wrong,
        "brightness": {name: float(grey[there].mean()) if there.any() else None for name, there in inside.items()},
        "dice": {name: found[name] if there.any() else None for name, there in inside.items()},
    }
