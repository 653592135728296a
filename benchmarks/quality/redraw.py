"""Where between noise and mask a model breaks rings: phantoms' thinnest, noised so far and drawn again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from benchmarks.evaluation.progress import followed
from benchmarks.quality.anatomy import LV, MYO, faults
from serving.sampling.solvers import solver_table
from training import CheckpointError
from training.checkpoint import load_checkpoint
from training.data.phantom_heart import HeartPhantoms
from training.models.cmr_mask import CmrMask
from training.noising import noised

SOLVER = "ddpm"  # its rows need no others before them, so a trajectory can begin at any
BATCH = 32


def redraw(
    checkpoint: Path, timesteps: Sequence[int], count: int, of: int, steps: int | None, seed: int
) -> list[dict[str, Any]]:
    """A row for each timestep: from where, in how many steps, how many of how many broke, and how many pixels changed.

    Raises ClickException, naming the value, if the model draws no masks of hearts or has no such timesteps.
    """
    try:
        family, _ = load_checkpoint(checkpoint)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error
    if not isinstance(family, CmrMask):
        raise click.ClickException(f"{checkpoint} is a {family.name}; it must be a cmr_mask, which draws rings")
    last = family.preset.schedule.num_train_timesteps - 1
    if outside := [t for t in timesteps if t > last]:
        raise click.ClickException(f"--from is {outside[0]}; it must be from 0 to {last}")
    try:
        table = solver_table(SOLVER, family.preset.schedule, steps or family.preset.default_steps)
    except ValueError as error:
        raise click.ClickException(f"--steps is {steps}: {error}") from error
    masks = thinnest(count, of, family.preset.size, seed)
    return [{**_drawn_again(family, masks, table[table[:, 0] <= t], seed), "of": len(masks)} for t in timesteps]


def thinnest(count: int, of: int, size: int, seed: int) -> Tensor:
    """Masks uint8 [count, 1, size, size] of those of ``of`` phantoms whose ring is the thinnest somewhere."""
    hearts = HeartPhantoms(of, size, seed)
    masks = torch.stack([hearts[k]["mask"] for k in followed(range(of), "phantoms")])
    return masks[np.argsort([wall(mask[0].numpy()) for mask in masks], kind="stable")[:count]]


def wall(mask: NDArray[np.uint8]) -> float:
    """How near the LV of a mask [H, W] comes to what is outside LV and MYO, in pixels."""
    to_outside = ndimage.distance_transform_edt(np.isin(mask, (LV, MYO)))
    return float(to_outside[mask == LV].min(initial=np.inf))


@torch.no_grad()
def _drawn_again(family: CmrMask, masks: Tensor, table: NDArray[np.float64], seed: int) -> dict[str, Any]:
    generator, start = torch.Generator().manual_seed(seed), int(table[0, 0])
    broken = changed = 0
    for part in followed(masks.split(BATCH), f"from t = {start}"):
        data = family.data({"mask": part})
        noise = torch.randn(data.shape, generator=generator)
        state, _ = noised(family.preset.schedule, data, noise, torch.full((len(part),), start))
        for row in torch.tensor(table, dtype=torch.float32):
            noise, none = torch.randn(state.shape, generator=generator), torch.zeros_like(state)
            state, _ = family.step(state, none, none, none, noise, row.expand(len(part), -1))
        (drawn,) = family.finish(state)
        broken += sum(bool(faults(mask[0])) for mask in drawn.numpy())
        changed += int((drawn != part).sum())
    return {"from": start, "steps": len(table), "broken": broken, "pixels": changed / len(masks)}
