"""Generators of masks, or of images under them, that others have trained, in the layouts of medgen's families.

Edirisooriya et al., "Balancing Fidelity, Utility, and Privacy in Synthetic Cardiac MRI Generation" (SynCMRI): masks by
MONAI's UNet, images by diffusers' with the mask beside them, or by MONAI's UNet and ControlNet in MOTFM's layout, one
state dict of ``unet.`` and ``controlnet.``. Konz et al. 2024 (arXiv 2402.05210): as the second, of one channel k / 255;
``seg_guided`` is that of breasts. ``controlnet`` is as the third, but of diffusion, and in two files too, as MONAI's
tutorial of ControlNet saves them.

Their classes may have another order, and lie in one channel of indices: what sees a mask is rearranged, exactly.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training import CheckpointError
from training.cardiac_families import spacing
from training.data.classes import HEART, LESION
from training.family import Family
from training.imports import read_pickle
from training.imports.diffusers_folder import read_folder
from training.imports.found import checked
from training.imports.generative import in_new_layout
from training.imports.monai_files import state_dict
from training.models import load_family

CLASSES: Mapping[str, tuple[str, ...]] = {
    "cmr_mask": HEART,
    "cmr_ddpm_image": HEART,
    "cmr_flow_image": HEART,
    "seg_guided": LESION,
    "controlnet": LESION,
}
BESIDE = ("cmr_ddpm_image", "seg_guided")  # diffusers' UNet, the mask beside the image
LIKE_OURS = (-1.0, 1.0)
ROUNDED = "its authors round the time that the network is told to whole timesteps; medgen does not"


@dataclasses.dataclass(frozen=True)
class SaidOfMasks:
    """wanted: the family's classes. labels: theirs, from 0 up. range: between which values their pictures lay. spacing:
    mm between pixels; None of a family whose pixels are of any size."""

    wanted: tuple[str, ...]
    labels: tuple[str, ...]
    spacing: tuple[float, float] | None = None
    range: tuple[float, float] | None = None
    mask_encoding: str | None = None
    steps: int | None = None
    solver: str | None = None

    def __post_init__(self) -> None:
        if sorted(self.labels) != sorted(self.wanted):
            raise CheckpointError(
                f"--labels are {', '.join(self.labels)}; they must be {', '.join(self.wanted)} in some order"
            )
        if self.range not in (None, LIKE_OURS):
            raise CheckpointError(
                f"--range is {self.range}; pictures of medgen's own families lie between -1 and 1: use --as imported, "
                "which takes no ControlNet"
            )

    @property
    def order(self) -> list[int]:
        """Their index of each of our classes."""
        return [self.labels.index(name) for name in self.wanted]


def import_under_masks(
    model: str,
    source: Path,
    preset: str,
    fields: Mapping[str, Any],
    said: SaidOfMasks,
    key: str | None,
    config: Path | None,
    control: Path | None,
) -> tuple[Family, dict[str, Any], tuple[str, ...]]:
    """The model, what ``config.json`` records of where it came from, and what is to be said of it.

    key: under which a file holds the state dict. config: scheduler_config.json of a lone network of diffusers'.
    control: the ControlNet's file, where source is of the UNet alone.

    Raises:
        CheckpointError: the files are of another layout, or of another network than the preset's.
    """
    kind = load_family(model)
    if preset not in kind.presets:
        raise CheckpointError(f"--preset is {preset!r}; {model} has {', '.join(kind.presets)}")
    try:
        if model in BESIDE:
            family, digests = painter(kind, kind.presets[preset], fields, source, config, said)
        else:
            family = kind(kind.presets[preset].replaced(fields))
            content, digest = read_pickle(source)
            digests = {"weights": digest}
            weights = state_dict(content, source, key)
            if control is not None:
                content, digests["control"] = read_pickle(control)
                parts = {"unet": weights, "controlnet": state_dict(content, control, key)}
                weights = {f"{part}.{name}": each for part, own in parts.items() for name, each in own.items()}
            load = mask_weights if model == "cmr_mask" else flow_weights
            family.load_state_dict(load(family, weights, said, source))
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    where = spacing(family.preset.size)
    if said.spacing and not all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(said.spacing, where, strict=True)):
        raise CheckpointError(
            f"--spacing is {said.spacing}; hearts of medgen's lie {where[0]:g} mm apart at this size: use --as imported"
        )
    told = {name: value for name, value in dataclasses.asdict(said).items() if name != "wanted"}
    options = {name: value for name, value in told.items() if value is not None}
    origin = {"format": model, "sha256": digests, "options": {"preset": preset, **options, "set": dict(fields)}}
    return family.eval(), origin, (ROUNDED,) if model == "cmr_flow_image" else ()


def mask_weights(family: Family, weights: Mapping[str, Tensor], said: SaidOfMasks, file: Path) -> dict[str, Tensor]:
    """Of one UNet, whose states have a channel for each class."""
    wanted = family.get_submodule("denoiser.unet").state_dict()
    named = checked(in_new_layout(weights, wanted), wanted, f"{file} (see --set)")
    named["conv_in.conv.weight"] = named["conv_in.conv.weight"][:, said.order]
    for kind in ("weight", "bias"):
        named[f"out.2.conv.{kind}"] = named[f"out.2.conv.{kind}"][said.order]
    return {f"denoiser.unet.{name}": tensor for name, tensor in named.items()}


def flow_weights(family: Family, weights: Mapping[str, Tensor], said: SaidOfMasks, file: Path) -> dict[str, Tensor]:
    """Of a UNet and a ControlNet."""
    seen = "controlnet.controlnet_cond_embedding.conv_in.conv.weight"
    if seen not in weights:
        raise CheckpointError(
            f"{file} has no {seen}; it must hold a UNet as unet. and a ControlNet as controlnet., as MONAI names them, "
            "or that one alone and --control the other"
        )
    known = {**weights, seen: columns(weights[seen], said)}
    out: dict[str, Tensor] = {}
    for theirs, ours in {"unet": "denoiser.unet", "controlnet": "denoiser.control"}.items():
        wanted = family.get_submodule(ours).state_dict()
        own = {name.removeprefix(f"{theirs}."): known.pop(name) for name in [*known] if name.startswith(f"{theirs}.")}
        named = checked(in_new_layout(own, wanted), wanted, f"{theirs} in {file} (see --set)")
        out |= {f"{ours}.{name}": tensor for name, tensor in named.items()}
    if known:
        raise CheckpointError(f"{file} holds {min(known)}, which is of neither network")
    return out


def painter(
    kind: type[Family], base: Any, fields: Mapping[str, Any], folder: Path, config: Path | None, said: SaidOfMasks
) -> tuple[Family, dict[str, str]]:
    """Of diffusers' UNet on [noisy image, mask], and its scheduler."""
    found = read_folder(folder, config)
    if found.autoencoder is not None:
        raise CheckpointError(f"{folder} has an autoencoder; {kind.name} draws pictures")
    theirs = found.denoiser.config
    if found.size is None or found.size[0] != found.size[1] or theirs["out_channels"] != 1:
        raise CheckpointError(f"{folder} must draw square pictures of one channel; sample_size is {found.size}")
    solver, steps = said.solver or found.sampling.solver, said.steps
    if solver is None or steps is None:
        raise CheckpointError(f"the files do not say how to sample: give --steps{'' if solver else ' and --solver'}")
    shape = {
        "size": found.size[0],
        "widths": theirs["block_out_channels"],
        "attention": [k for k, block in enumerate(theirs["down_block_types"]) if block == "AttnDownBlock2D"],
        "layers": theirs["layers_per_block"],
        "head_dim": theirs["attention_head_dim"] or 1,
        "norm_groups": theirs["norm_num_groups"],
        "schedule": dataclasses.asdict(found.sampling.schedule),
        "clip": found.sampling.clip,
        "default_solver": solver,
        "default_steps": steps,
    }
    family = kind(base.replaced({**shape, **fields}))
    unet: Any = family.get_submodule("denoiser.unet")
    for name, value in unet.config.items():
        written = theirs.get(name)
        if name != "in_channels" and not name.startswith("_") and as_list(written) != as_list(value):
            raise CheckpointError(f"{folder}: {name} is {written!r}; {kind.name} has {value!r}: use --as imported")
    weights = dict(found.denoiser.weights)
    first = weights["conv_in.weight"]
    weights["conv_in.weight"] = torch.cat([first[:, :1], columns(first[:, 1:], said)], dim=1)
    named = checked(weights, unet.state_dict(), str(folder))
    family.load_state_dict({f"denoiser.unet.{name}": tensor for name, tensor in named.items()})
    return family, dict(found.sha256)


def columns(weight: Tensor, said: SaidOfMasks) -> Tensor:
    """What a convolution [out, channels, h, w] does with their mask, for one channel of each of our classes."""
    channels = len(said.wanted) if said.mask_encoding == "one-hot" else 1
    if weight.shape[1] != channels:
        raise CheckpointError(
            f"--mask-encoding is {said.mask_encoding}, of {channels} channels; the network sees {weight.shape[1]}"
        )
    if said.mask_encoding == "one-hot":
        return weight[:, said.order]
    unit = 255 if said.mask_encoding == "index/255" else 1
    return torch.cat([weight * (index / unit) for index in said.order], dim=1)


def as_list(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
