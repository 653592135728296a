"""PIG small enough to train in a test."""

import json
from typing import Any

import torch

from training.family import Batch
from training.models.pig import PRESETS, Pig

SIZE = 32
FIELDS = {
    **{"size": SIZE, "widths": [8, 16], "attention": [1], "layers": 1, "head_dim": 8, "norm_groups": 4},
    "default_steps": 2,
}
SET_OPTIONS = [word for name, value in FIELDS.items() for word in ("--set", f"{name}={json.dumps(value)}")]


def tiny_pig(**fields: Any) -> Pig:
    """An untrained model in eval mode, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        return Pig(PRESETS["small"].replaced({**FIELDS, **fields})).eval()


def random_batch(count: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    image, mask = torch.rand(2, count, 1, SIZE, SIZE, generator=generator)
    return {"image": image * 2 - 1, "mask": (mask > 0.7).to(torch.uint8)}
