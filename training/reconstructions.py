"""Pictures and what a prior makes of them: what a second generator learns from."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from serving.sampling.noise import draw
from training.checkpoint import CheckpointError, load_checkpoint, unfinished
from training.family import Family
from training.models.mganprior import PRESETS, MGanPrior
from training.models.pggan import Pggan

BATCH = 16
SOLVER = "heavy_ball"


class Pairs(Dataset[dict[str, Tensor]]):
    """Items are {"image": float32 [1, S, S] in [-1, 1], "condition": its reconstruction, the same}."""

    def __init__(self, images: Tensor, conditions: Tensor) -> None:
        self.images, self.conditions = images, conditions

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], "condition": self.conditions[index]}


def open_prior(path: Path, family: str, option: str = "--prior") -> tuple[Pggan, str]:
    """The trained pggan that a family learns through, and the sha256 of its weights.

    Raises CheckpointError, which says how far it came, if it is missing, broken, of another family, or half-trained.
    """
    prior, config = load_checkpoint(path)
    if not isinstance(prior, Pggan):
        raise CheckpointError(f"{option} {path} holds a {prior.name}; {family} learns through {Pggan.name}")
    lacking = [f"was trained to {so_far}"] if (so_far := unfinished(prior, config)) else []
    lacking += [f"has grown to {prior.growing}"] if prior.growing else []
    if lacking:
        last = prior.generator.stages - 1
        raise CheckpointError(
            f"{option} {path} {' and '.join(lacking)}; {family} learns through one whose training is through and which "
            f"is fully grown, to stage {last} of {last}, faded in to 1: go on with it with fit --resume"
        )
    return prior, str(config["digest"])


def reconstructions(
    prior: Family,
    images: Tensor,
    codes: int,
    layer: int,
    steps: int,
    progress: Callable[[int, int], object] = lambda *_: None,
) -> Tensor:
    """Images [N, 1, S, S] in [-1, 1] -> what `mganprior` finds of them through a trained `pggan`, the same.

    The first codes of image k are those of seed k. ``progress`` is called with (images done, in all).

    Raises:
        ValueError: the prior draws another size, or has not so many layers.
    """
    if images.shape[-1] != prior.preset.size:
        raise ValueError(
            f"the prior draws {prior.preset.size} x {prior.preset.size} pixels; the run has {images.shape[-1]}: "
            f"--set size={prior.preset.size}"
        )
    inverse = MGanPrior.of(prior, PRESETS["small"], {"codes": codes, "layer": layer}).to(images.device)
    inverse.requires_grad_(False)
    found = []
    for first in range(0, len(images), BATCH):
        part = images[first : first + BATCH]
        noise = np.empty((len(part), *inverse.sample_shape), np.float32)
        for k, row in enumerate(noise):
            draw(first + k, inverse.name, 0, out=row)
        picture, _ = inverse.sample([torch.from_numpy(noise).to(images.device)], SOLVER, steps, part)
        found.append(picture * 2 - 1)
        progress(first + len(part), len(images))
    return torch.cat(found)


def key_of(files: Mapping[str, Any] | Sequence[Any], prior: str, preset: Any) -> str:
    """Of what pairs depend on: data, the digest of the prior, and fields of the preset."""
    fields = [files, prior, preset.size, preset.codes, preset.layer, preset.inversion_steps]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def write_pairs(file: Path, pairs: Pairs, key: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.writing")
    save_file({"image": pairs.images, "condition": pairs.conditions}, aside, {"key": key})
    aside.replace(file)


def read_pairs(file: Path, key: str | None = None) -> Pairs | None:
    """The pairs of a file, or None if it is not there, not whole, or of another key than the one that is wanted."""
    try:
        with safe_open(file, "pt") as content:
            if key is not None and (content.metadata() or {}).get("key") != key:
                return None
            return Pairs(content.get_tensor("image"), content.get_tensor("condition"))
    except (OSError, SafetensorError):
        return None


def found_pairs(
    file: Path,
    dataset: Dataset[Any],
    prior: Family,
    prior_digest: str,
    preset: Any,
    files: Mapping[str, Any] | Sequence[Any],
    progress: Callable[[int, int], object] = lambda *_: None,
) -> Pairs:
    """A data set's images with their reconstructions, kept in a file: they take a while."""
    key = key_of(files, prior_digest, preset)
    if (kept := read_pairs(file, key)) is not None:
        return kept
    images = torch.stack([dataset[k]["image"] for k in range(len(dataset))])  # type: ignore[arg-type]
    found = reconstructions(prior, images, preset.codes, preset.layer, preset.inversion_steps, progress)
    pairs = Pairs(images, found)
    write_pairs(file, pairs, key)
    return pairs
