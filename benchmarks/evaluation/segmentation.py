"""MONAI's DynUNet as the cardiac paper trains it, and what it finds, measured so that nothing drops out.

Edirisooriya et al., "Balancing Fidelity, Utility, and Privacy in Synthetic Cardiac MRI Generation": five levels of 32
to 512 channels, AdamW at 1e-3 with weight decay 1e-4, Dice and cross-entropy, batches of 8, 100 epochs.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.losses import DiceCELoss
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_iou,
    get_confusion_matrix,
)
from monai.networks.nets import DynUNet
from monai.networks.utils import one_hot
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.evaluation.cache import Cache
from benchmarks.evaluation.pairs import Masks, Pairs
from benchmarks.evaluation.progress import followed
from training.memory import keep_freed_memory

METRICS = ("Dice", "IoU", "HD95", "ASD", "precision", "recall")
DISTANCES = ("HD95", "ASD")


@dataclass(frozen=True)
class Recipe:
    """How a segmenter is trained; an epoch is as many pairs as there are real ones, whatever it is trained on."""

    filters: tuple[int, ...] = (32, 64, 128, 256, 512)
    epochs: int = 100
    batch: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4

    def described(self) -> dict[str, Any]:
        return {"network": "DynUNet (MONAI)", "optimiser": "AdamW", "loss": "Dice + cross-entropy", **asdict(self)}


RECIPES = {"paper": Recipe(), "small": Recipe(filters=(16, 32, 64, 128), epochs=40, batch=16)}


class OfAnySize(DynUNet):
    """DynUNet for pictures [B, 1, rows, columns] of any size: below and to the right of those that its levels cannot
    halve, or whose lowest level would be a single pixel, the last row and column are repeated, and cut off again."""

    def forward(self, images: Tensor) -> Tensor:
        rows, columns = images.shape[-2:]
        step = 2 ** (len(self.strides) - 1)
        below, beside = (max(2 * step, math.ceil(side / step) * step) - side for side in (rows, columns))
        logits: Tensor = super().forward(F.pad(images, (0, beside, 0, below), mode="replicate"))
        return logits[..., :rows, :columns]


def network_of(recipe: Recipe, classes: int) -> nn.Module:
    levels = len(recipe.filters)
    strides = [1] + [2] * (levels - 1)
    return OfAnySize(2, 1, classes, [3] * levels, strides, strides[1:], filters=list(recipe.filters))


def trained(pairs: Pairs, classes: int, recipe: Recipe, steps: int, seed: int, what: str) -> nn.Module:
    """A DynUNet: images [B, 1, S, S] in [-1, 1] -> logits [B, classes, S, S]; the same for the same seed."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    keep_freed_memory()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = network_of(recipe, classes).to(device)
    images = torch.from_numpy(pairs.images)[:, None] * 2 - 1
    masks = torch.from_numpy(pairs.masks)[:, None]
    criterion = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW(network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
    order = _batches(len(pairs), recipe.batch, seed)
    for _ in followed(range(steps), what):
        rows = next(order)
        optimizer.zero_grad()
        criterion(network(images[rows].to(device)), masks[rows].to(device)).backward()
        optimizer.step()
    return network.eval().cpu()


def steps_of(recipe: Recipe, real: int) -> int:
    """Of the optimiser, for as many real pairs: the same for whatever else is trained beside."""
    return recipe.epochs * max(1, round(real / recipe.batch))


@dataclass(frozen=True)
class Segmenter:
    """One that learns from real pairs when it is first needed; in a cache its weights are kept, as on other threads it
    would learn a little else."""

    real: Pairs
    recipe: Recipe
    classes: int
    seed: int
    cache: Cache | None = None

    @property
    def identity(self) -> str:
        return f"{self.recipe.described()} of {self.classes} classes on {self.real.digest}, seed {self.seed}"

    @cached_property
    def network(self) -> nn.Module:
        if self.cache is None:
            return self._trained()
        kept = self.cache.arrays("segmenter", self.identity, lambda: weights_of(self._trained()))
        network = network_of(self.recipe, self.classes).eval()
        network.load_state_dict({name: torch.from_numpy(values) for name, values in kept.items()})
        return network

    def _trained(self) -> nn.Module:
        steps = steps_of(self.recipe, len(self.real))
        return trained(self.real, self.classes, self.recipe, steps, self.seed, "a segmenter to compare by")


def weights_of(network: nn.Module) -> dict[str, NDArray[Any]]:
    return {name: values.numpy() for name, values in sorted(network.state_dict().items())}


def _batches(count: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Rows of whole batches without end: every row comes once before any comes again."""
    generator = torch.Generator().manual_seed(seed)
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        while len(waiting) < batch:
            waiting = torch.cat([waiting, torch.randperm(count, generator=generator)])
        yield waiting[:batch]
        waiting = waiting[batch:]


@torch.no_grad()
def segmented(network: nn.Module, images: NDArray[np.float32], batch: int = 32) -> Masks:
    """Class indices uint8 [N, S, S] of images [N, S, S] in [0, 1]."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network.to(device)
    found = [
        network(part[:, None].to(device) * 2 - 1).argmax(1).to(torch.uint8).cpu()
        for part in torch.from_numpy(images).split(batch)
    ]
    return torch.cat(found).numpy()


@torch.no_grad()
def seen_by(network: nn.Module, images: NDArray[np.float32], batch: int = 32) -> NDArray[np.float64]:
    """How much each channel of the level above the lowest varies over a picture [N, D]: its standard deviation.

    It is taken before the level's instance norm, which makes the mean and deviation of all pictures the same: of what
    comes after it, noise is as near to hearts as other hearts are.
    """
    features: list[Tensor] = []
    assert isinstance(network, DynUNet)
    handle = (
        network.downsamples[-1]
        .get_submodule("conv2")
        .register_forward_hook(lambda _module, _given, out: features.append(out.std((2, 3), correction=0).cpu()))
    )
    segmented(network, images, batch)
    handle.remove()
    return torch.cat(features).double().numpy()


@dataclass(frozen=True)
class Found:
    """What a segmenter found of one class: figures [N] by name, and which masks have it.

    A picture whose mask lacks the class and in which nothing of it is found has no figures: NaN. Where it is missed, or
    found and not there, Dice, IoU, precision and recall are 0 and distances the picture's diagonal.
    """

    figures: Mapping[str, NDArray[np.float64]]
    there: NDArray[np.bool_]
    found: NDArray[np.bool_]

    @property
    def missed(self) -> NDArray[np.bool_]:
        return self.there & ~self.found

    @property
    def invented(self) -> NDArray[np.bool_]:
        return ~self.there & self.found


def scores(predicted: Masks, true: Masks, classes: int, spacing: NDArray[np.float64] | None = None) -> list[Found]:
    """Of each class but the background, for masks uint8 [N, S, S].

    spacing: mm between rows and between columns of each [N, 2], in which distances then are; None: they are in pixels.
    """
    one, other = (one_hot(torch.from_numpy(masks)[:, None].long(), classes) for masks in (predicted, true))
    sides = np.ones((len(true), 2)) if spacing is None else spacing
    diagonal = np.hypot(sides[:, 0] * true.shape[1], sides[:, 1] * true.shape[2])
    apart: dict[str, Any] = {"spacing": sides.tolist()}
    confusion = get_confusion_matrix(one, other, include_background=False).double().numpy()
    hits, false_alarms, _, misses = confusion.transpose(2, 0, 1)
    with np.errstate(invalid="ignore"):
        precision, recall = hits / (hits + false_alarms), hits / (hits + misses)
    measured = {
        "Dice": compute_dice(one, other, include_background=False).numpy(),
        "IoU": compute_iou(one, other, include_background=False).numpy(),
        "HD95": _quietly(compute_hausdorff_distance, one, other, percentile=95, **apart),
        "ASD": _quietly(compute_average_surface_distance, one, other, symmetric=True, **apart),
        "precision": precision,
        "recall": recall,
    }
    return [_of_class(measured, predicted == k, true == k, k - 1, diagonal) for k in range(1, classes)]


def _quietly(distance: Any, one: Tensor, other: Tensor, **options: Any) -> NDArray[np.float64]:
    """MONAI warns of each empty mask; they are counted below."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values: Tensor = distance(one, other, include_background=False, **options)
    return values.double().numpy()


def _of_class(
    measured: Mapping[str, NDArray[np.float64]],
    predicted: NDArray[np.bool_],
    true: NDArray[np.bool_],
    column: int,
    diagonal: NDArray[np.float64],
) -> Found:
    found, there = predicted.any((1, 2)), true.any((1, 2))
    figures = {}
    for name, values in measured.items():
        column_of = values[:, column].astype(np.float64)
        column_of[found != there] = diagonal[found != there] if name in DISTANCES else 0.0
        column_of[~found & ~there] = np.nan
        figures[name] = column_of
    return Found(figures, there, found)
