"""Every family small enough to train in a test."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.family import Batch, Family
from training.federated.site import Site, SitesHere
from training.federated.terms import Terms
from training.models import family_names, load_family
from training.models.dmgan_image import DmGanImage
from training.reconstructions import Pairs

SIZE = 32
STEPS = 2
UNET = {"size": SIZE, "widths": [8, 16], "attention": [1], "layers": 1, "head_dim": 8, "norm_groups": 4}
# Of UNets that take steps, beside UNET.
STEPPING: dict[str, dict[str, Any]] = {
    "pig": {},
    "cmr_mask": {},
    "ddpm": {"paired": True},
    "seg_guided": {},
    "controlnet": {"control_channels": 8},
    "cmr_ddpm_image": {"mask_dropout": 0.5},
    "cmr_ldm_image": {"autoencoder_widths": [8, 16], "codes": 16, "spade_channels": 8},
    "cmr_flow_image": {"control_channels": 8, "transformer_layers": 1, "resblock_updown": True},
}
# What PIG is compared with. No checkpoint is shipped, and the networks are those of `cmr_ddpm_image` and
# `cmr_flow_image`, as the imported one is `cmr_mask`'s. Tests of the papers' tables and of imports build them; with
# MEDGEN_ALL_GRAPHS alone they are exported in every way that those are.
BASELINES = ("ddpm", "seg_guided", "controlnet")
ONE_PASS: dict[str, dict[str, Any]] = {
    "cyclegan": {"size": SIZE, "width": 4, "blocks": 1, "critic_width": 4, "pool": 3},
    "dcgan": {"size": SIZE, "latent": 8, "widths": [16, 12, 8]},
    "pggan": {"size": SIZE, "latent": 8, "widths": [12, 12, 8, 8], "group": 4},
}
PRIOR = load_family("pggan").presets["small"].replaced(ONE_PASS["pggan"])
MADE: dict[str, dict[str, Any]] = {
    "mganprior": {"size": SIZE, "prior": dataclasses.asdict(PRIOR), "codes": 3, "layer": 4, "default_steps": STEPS},
}
THROUGH: dict[str, dict[str, Any]] = {
    "dmgan_image": {"size": SIZE, "width": 4, "blocks": 1, "critic_width": 4, "codes": 3, "layer": 4,
                    "inversion_steps": 3},
}  # fmt: skip
# A network of MONAI's under a mask; it learns nothing here.
IMPORTED: dict[str, dict[str, Any]] = {
    "imported": {
        "size": SIZE,
        "state": [1, SIZE, SIZE],
        "default_steps": STEPS,
        "labels": ["background", "lesion"],
        "mask_encoding": "index",
        "network": {
            "library": "monai",
            "class": "DiffusionModelUNet",
            "config": {
                "spatial_dims": 2,
                "in_channels": 2,
                "out_channels": 1,
                "num_res_blocks": 1,
                "channels": [8, 16],
                "attention_levels": [False, True],
                "num_head_channels": 8,
                "norm_num_groups": 4,
            },
        },
    },
}
FIELDS = {name: {**UNET, "default_steps": STEPS, **fields} for name, fields in STEPPING.items()}
FIELDS |= ONE_PASS | MADE | THROUGH | IMPORTED
FAMILIES = family_names()
EXPORTED = [name for name in FAMILIES if name not in {*BASELINES, *IMPORTED} or os.environ.get("MEDGEN_ALL_GRAPHS")]
LEARNING = [name for name in FAMILIES if name not in {*MADE, *IMPORTED}]


def fields_of(name: str) -> dict[str, Any]:
    return FIELDS[name]


def set_options(name: str) -> list[str]:
    """The same on the command line."""
    return [word for field, value in fields_of(name).items() for word in ("--set", f"{field}={json.dumps(value)}")]


def tiny_family(name: str, **fields: Any) -> Family:
    """An untrained model in eval mode, the same at every call; layers that begin as zeros have weights too."""
    family = load_family(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(20)
        model = family(family.presets["small"].replaced({**fields_of(name), **fields})).eval()
        for weight in model.parameters():
            if not weight.any() and weight.ndim > 1:
                torch.nn.init.normal_(weight, std=0.05)
    judged_here(model)
    return model


def judged_here(model: Family, folder: Path | None = None) -> None:
    """Give a model that needs judges one in this process, with a few pictures of its own."""
    if isinstance(model, DmGanImage):
        batch = random_batch(6)
        site = Site("here", Pairs(batch["image"], batch["condition"]), Terms(model.name, model.preset, 0, ""), folder)
        model.panel = SitesHere({"here": site})


def classes_of(family: Family) -> int:
    classes = family.condition.classes if family.condition else max(len(output.labels) for output in family.outputs)
    return classes or 2


def random_batch(count: int, seed: int = 0, classes: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(2, count, 1, SIZE // 8, SIZE // 8, generator=generator)
    image, mask = coarse.repeat_interleave(8, -1).repeat_interleave(8, -2)
    image, mask = image * 2 - 1, (mask * classes).to(torch.uint8)
    return {"image": image, "mask": mask, "a": image, "b": -image.flip(0), "condition": 0.9 * image}


def random_state(family: Family, count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *family.sample_shape, generator=torch.Generator().manual_seed(seed))


def random_condition(family: Family, count: int, seed: int = 0) -> tuple[Tensor, ...]:
    """A mask or picture for each sample, or nothing for the families that take none."""
    if family.condition is None:
        return ()
    if family.condition.is_label:
        return (torch.arange(count)[:, None] % family.condition.classes,)
    batch = random_batch(count, seed, classes_of(family))
    low, high = family.condition.limits
    return (batch["mask"] if family.condition.classes else low + (batch["image"] + 1) / 2 * (high - low),)
