"""Samples small enough to look at: of a mammogram, of a heart whose pixels have a size, and of something else."""

import numpy as np

from serving.bundle import Output
from serving.sample_set import Samples

HEART = ("background", "LV", "MYO", "RV")


def pairs(model: str, modality: str | None, labels: tuple[str, ...], spacing: tuple[float, float] | None) -> Samples:
    """Two pictures of 24 rows and 32 columns, brighter to the right, under masks with every class."""
    mask = np.zeros((2, 1, 24, 32), np.uint8)
    for label in range(1, len(labels)):
        mask[:, 0, 4 * label : 4 * label + 3, 5:11] = label
    mask[1] = mask[1, :, :, ::-1]
    image = np.broadcast_to(np.linspace(-1, 3, 32, dtype=np.float32), (2, 1, 24, 32)).copy()
    shape = (1, 24, 32)
    outputs = (
        Output("mask", "uint8", shape, 0, len(labels) - 1, labels, spacing),
        Output("image", "float32", shape, -1.0, 3.0, (), spacing, modality),
    )
    made = [{"model": model, "bundle": "b" * 64, "seed": seed, "solver": "ddim", "steps": 4} for seed in (7, 8)]
    return Samples({"mask": mask, "image": image}, made, outputs)
