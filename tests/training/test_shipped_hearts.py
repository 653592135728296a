"""The checkpoints that come with medgen draw hearts, and pictures that show them."""

import numpy as np
import pytest
import torch

from benchmarks.quality.anatomy import LV, MYO, RV, faults
from serving.sampling.noise import draw
from serving.sampling.solvers import solver_table
from training.checkpoint import load_checkpoint, shipped_checkpoint
from training.data.phantom_heart import heart_pair


def drawn(model: str, steps: int, count: int, condition: torch.Tensor | None = None) -> np.ndarray:
    """Seeds from 0 on, with the model's default solver."""
    family, _ = load_checkpoint(shipped_checkpoint(model))
    solver = family.preset.default_solver
    rows = len(solver_table(solver, family.preset.schedule, steps))
    noises = np.empty((rows + 1, count, *family.sample_shape), np.float32)
    for number, noise in enumerate(noises):
        for seed, sample in enumerate(noise):
            draw(seed, model, number, out=sample)
    (output,) = family.sample(list(torch.from_numpy(noises)), solver, steps, condition)
    return output.numpy()


def test_masks_are_hearts():
    masks = drawn("cmr_mask", steps=25, count=2)
    assert [faults(mask[0]) for mask in masks] == [[], []]
    assert (masks[0] != masks[1]).any()


@pytest.mark.parametrize("model", ["cmr_ddpm_image", "cmr_ldm_image", "cmr_flow_image"])
def test_pictures_follow_their_masks(model):
    _, masks = zip(*(heart_pair(seed, 64) for seed in range(4)), strict=True)
    masks = np.stack(masks)
    pictures = drawn(model, steps=6, count=4, condition=torch.from_numpy(masks))
    blood, muscle = (np.isin(masks, classes) for classes in ([LV, RV], [MYO]))
    for k, picture in enumerate(pictures):
        assert picture[blood[k]].mean() > picture[muscle[k]].mean() + 0.2
