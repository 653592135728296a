"""Samples of a bundle, as it is served, some at a time and kept."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from benchmarks.evaluation.cache import Arrays, Cache
from benchmarks.evaluation.pairs import EvaluationError, Pairs
from benchmarks.papers.models import Model
from serving.client import LocalClient, SamplingError
from serving.progress import NowAndThen

PART = 32  # samples: a run that is cut short loses no more


def drawn(
    model: Model,
    count: int,
    cache: Cache,
    masks: Pairs | None = None,
    solver: str | None = None,
    steps: int | None = None,
    name: str | None = None,
) -> Pairs:
    """Samples of seeds from 0 up; masks: what it draws under, in turn, where it does. Of a model that draws masks alone
    the pictures are black, of one that draws pictures alone the masks are empty.

    Raises EvaluationError if they cannot be drawn.
    """
    client, line = LocalClient(model.repository), NowAndThen()
    asked: dict[str, Any] = {"solver": solver, "steps": steps}
    given = None if masks is None else masks.masks[np.arange(count) % len(masks)][:, None]
    parts: list[Arrays] = []
    for first in range(0, count, PART):
        line(f"{name or model.name}: {first} of {count} samples")
        some = range(first, min(first + PART, count))
        made_of = [model.digest, asked, some.start, len(some), None if masks is None else masks.digest]
        parts.append(cache.arrays("papers", made_of, partial(_draw, client, model, some, given, asked)))
    images, of_masks = (np.concatenate([part[what] for part in parts]) for what in ("images", "masks"))
    names = patients = tuple(f"seed {seed}" for seed in range(count))
    if masks is not None:  # samples under masks of one patient are no more independent than the masks
        patients = tuple(masks.patients[row % len(masks)] for row in range(count))
    labels = model.family.labels or (masks.labels if masks else ())
    facts = {"bundle": model.digest, "solver": solver, "steps": steps}
    return Pairs(name or model.name, images, of_masks, labels, names, patients, True, facts, has_masks=bool(labels))


def _draw(
    client: LocalClient, model: Model, seeds: range, given: np.ndarray | None, asked: Mapping[str, Any]
) -> Arrays:
    under = None if given is None else given[seeds.start : seeds.stop]
    try:
        arrays = client.sample(model.name, seeds=seeds, condition=under, **asked).arrays
    except SamplingError as error:
        raise EvaluationError(f"{model.name}: {error}") from error
    return pictures(arrays, len(seeds))


def pictures(arrays: Arrays, count: int) -> Arrays:
    """Images [N, S, S] and masks [N, S, S] of a client's arrays; zeros of what there is not."""
    found = next(arrays[name] for name in ("image", "mask") if name in arrays)
    shape = (count, *found.shape[2:])
    image = arrays["image"][:, 0].astype(np.float32) if "image" in arrays else np.zeros(shape, np.float32)
    mask = arrays["mask"][:, 0] if "mask" in arrays else np.zeros(shape, np.uint8)
    return {"images": image, "masks": mask}
