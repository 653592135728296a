"""PIG small enough to train in a test."""

from typing import Any

import torch
from tiny_families import SIZE, fields_of, set_options, tiny_family

from training.family import Batch
from training.models.pig import Pig

__all__ = ["FIELDS", "SET_OPTIONS", "SIZE", "random_batch", "tiny_pig"]

FIELDS = fields_of("pig")
SET_OPTIONS = set_options("pig")


def tiny_pig(**fields: Any) -> Pig:
    """An untrained model in eval mode, the same at every call."""
    pig = tiny_family("pig", **fields)
    assert isinstance(pig, Pig)
    return pig


def random_batch(count: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    image, mask = torch.rand(2, count, 1, SIZE, SIZE, generator=generator)
    return {"image": image * 2 - 1, "mask": (mask > 0.7).to(torch.uint8)}
