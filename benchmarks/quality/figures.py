"""What of samples and of the data that their models learnt is like hearts, or like phantoms of breasts."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.quality.faults import FAULTS, FAULTS_OF_MASKS
from benchmarks.quality.segmenter import dice, train_segmenter
from training.data import DataError, open_dataset
from training.data.classes import HEART, LESION
from training.data.phantom import Phantoms

PHANTOMS = 512  # to train on, and as many others; of real slices there are about as many


def measure(samples: Sequence[Path], data: str, epochs: int) -> list[dict[str, Any]]:
    """Rows of the data and of each folder of samples: "name", and what ``figures`` says.

    Where no folder has pictures no segmenter is trained, and the data have no Dice either.

    Raises ClickException, naming it, if a folder or the data cannot be judged.
    """
    pairs, labels = read_all(samples)
    if len(sizes := sorted({masks.shape[-1] for _, masks in pairs.values()})) > 1:
        raise click.ClickException(f"SAMPLES are of {' and '.join(map(str, sizes))} pixels; they must be of one size")
    if labels == LESION and data.partition(":")[0] != "phantom":
        raise click.ClickException(
            f"--data is {data}; of breasts only those of 'phantom' can be judged: others have no lesion, or several"
        )
    source = f"phantom:{PHANTOMS}" if data == "phantom" else data
    try:
        train, held_out = (open_dataset(source, sizes[0], split, labels=labels) for split in ("train", "validation"))
    except DataError as error:
        raise click.ClickException(str(error)) from error
    if train.labels != labels:
        raise click.ClickException(f"--data is {data}, which shows no hearts; ACDC, M&Ms or 'phantom' is needed")
    kind = "phantoms" if isinstance(train, Phantoms) else "real"
    learnt, held_back = ([dataset[k] for k in range(len(dataset))] for dataset in (train, held_out))
    seen = any(images is not None for images, _ in pairs.values())
    network = train_segmenter(learnt, len(labels), epochs) if seen else None
    known = {f"{kind}, trained on": stacked(learnt), f"{kind}, held out": stacked(held_back)}
    return [{"name": name, **figures(network, labels, *pair)} for name, pair in (known | pairs).items()]


def read_all(samples: Sequence[Path]) -> tuple[dict[str, tuple[Tensor | None, Tensor]], tuple[str, ...]]:
    """Pairs as ``read_pairs`` gives them by the folders' names, and the classes of their masks, which all share.

    Masks that do not name their classes are taken for hearts.
    """
    read = {str(folder): read_pairs(folder) for folder in samples}
    kinds = {name: labels for name, (_, _, labels) in read.items()}
    if len(set(kinds.values())) > 1:
        (first, one), (second, other) = next((a, b) for a, b in pairwise(kinds.items()) if a[1] != b[1])
        raise click.ClickException(
            f"SAMPLES are of two kinds: {first} has masks of {', '.join(one)}, {second} of {', '.join(other)}"
        )
    return {name: (images, masks) for name, (images, masks, _) in read.items()}, next(iter(kinds.values()))


def read_pairs(folder: Path) -> tuple[Tensor | None, Tensor, tuple[str, ...]]:
    """Images float32 [N, 1, S, S] in [-1, 1], masks uint8 [N, 1, S, S] and their classes, of a folder of samples.

    There are no images of a model that draws masks alone. Raises ClickException naming the folder if it holds no such
    masks.
    """
    try:
        with np.load(folder / "pairs.npz") as arrays:
            images, masks, named = arrays.get("image"), arrays["mask"], arrays.get("mask_labels")
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise click.ClickException(f"{folder} holds no masks that `serving sample` wrote") from error
    if masks.dtype != np.uint8:
        raise click.ClickException(f"{folder} holds {masks.dtype} masks; they must be uint8")
    if masks.ndim != 4 or (images is not None and images.shape != masks.shape):
        beside = "" if images is None else f"images of shape {list(images.shape)} and "
        raise click.ClickException(f"{folder} holds {beside}masks of {list(masks.shape)}; they must be [N, 1, S, S]")
    labels = HEART if named is None else tuple(named.tolist())
    if named is None:
        click.echo(f"{folder} does not name the classes of its masks: they are taken for {', '.join(HEART)}", err=True)
    if labels not in FAULTS:
        known = " or ".join(", ".join(classes) for classes in FAULTS)
        raise click.ClickException(f"{folder} holds masks of {', '.join(labels)}; they must be of {known}")
    if images is None and labels not in FAULTS_OF_MASKS:
        known = " or ".join(", ".join(classes) for classes in FAULTS_OF_MASKS)
        raise click.ClickException(
            f"{folder} holds masks of {', '.join(labels)} without pictures; without them they must be of {known}"
        )
    if (highest := masks.max()) >= len(labels):
        raise click.ClickException(f"{folder} holds masks of class {highest}; there are 0 to {len(labels) - 1}")
    return None if images is None else torch.from_numpy(images) * 2 - 1, torch.from_numpy(masks), labels


def stacked(items: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Items of a data set as ``read_pairs`` gives pairs."""
    return torch.stack([item["image"] for item in items]), torch.stack([item["mask"] for item in items])


def figures(
    network: torch.nn.Module | None, labels: Sequence[str], images: Tensor | None, masks: Tensor
) -> dict[str, Any]:
    """What the table shows of pairs as ``read_pairs`` gives them; None of a structure that no mask has, of what only
    pictures have where there are none, and of Dice without a network."""
    grey = None if images is None else (images / 2 + 0.5).numpy()
    wrong = faults_of(tuple(labels), grey, masks.numpy())
    structures = labels[1:]
    inside = {name: masks.numpy() == index for index, name in enumerate(structures, 1)}
    found: dict[str, float | None] = dict.fromkeys(structures)
    if network is not None and images is not None:
        found |= zip(structures, dice(network, len(labels), images, masks), strict=True)
    return {
        "count": len(masks),
        "valid": sum(not each for each in wrong),
        "faults": wrong,
        "kinds": dict(Counter(kind for each in wrong for kind in each).most_common()),
        "brightness": {
            name: float(grey[there].mean()) if grey is not None and there.any() else None
            for name, there in inside.items()
        },
        "dice": {name: found[name] if there.any() else None for name, there in inside.items()},
    }


def faults_of(labels: tuple[str, ...], grey: NDArray[np.float32] | None, masks: NDArray[np.uint8]) -> list[list[str]]:
    """Of each mask [N, 1, H, W], with its picture in [0, 1] where there is one."""
    if grey is None:
        return [FAULTS_OF_MASKS[labels](mask) for mask in masks[:, 0]]
    return [FAULTS[labels](image, mask) for image, mask in zip(grey[:, 0], masks[:, 0], strict=True)]
