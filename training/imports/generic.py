"""The family ``imported`` from what files say, and what they do not say and the user must."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from training import CheckpointError
from training.imports.found import Found
from training.models.imported import PRESETS, Imported

UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Said:
    """The options of the command, by their names; None for one that was not given.

    range: of the grey levels of the pictures that the network learned from. spacing: mm between rows and between
    columns, or "unknown". size: rows and columns of the states.
    """

    range: tuple[float, float] | None = None
    spacing: tuple[float, float] | str | None = None
    steps: int | None = None
    solver: str | None = None
    scale: float | None = None
    size: tuple[int, int] | None = None
    labels: tuple[str, ...] | None = None
    mask_encoding: str | None = None
    classes: tuple[str, ...] | None = None
    modality: str | None = None


def imported_family(found: Found, said: Said, fields: Mapping[str, Any]) -> tuple[Imported, dict[str, Any]]:
    """The model, and what ``config.json`` records of where it came from.

    fields: of the preset, which go over all else.

    Raises:
        CheckpointError: something is not known or does not go together, or the network does not run.
    """
    if missing := list(unsaid(found, said)):
        raise CheckpointError("the files do not say, and nothing is guessed: " + "; ".join(missing))
    if found.autoencoder is None and said.scale is not None:
        raise CheckpointError(f"--scale is {said.scale}; the network denoises pictures, and there are no latents")
    for name, written in {"scale": found.scale, "size": found.size}.items():
        given = getattr(said, name)
        if None not in (given, written) and given != written:
            raise CheckpointError(f"--{name} is {given}; the files say {written}")
    channels = found.denoiser.config["out_channels"]
    if (channels_in := found.denoiser.config["in_channels"]) < channels:
        raise CheckpointError(
            f"the network takes {channels_in} channels and gives {channels}: learned variances are not imported"
        )
    size = found.size or said.size
    scale = found.scale if found.scale is not None else said.scale
    assert size is not None
    assert said.range is not None
    preset = {
        "network": found.denoiser.described,
        "autoencoder": found.autoencoder.described if found.autoencoder else None,
        "schedule": dataclasses.asdict(found.sampling.schedule),
        "clip": found.sampling.clip,
        "default_solver": said.solver or found.sampling.solver,
        "default_steps": said.steps,
        "state": [channels, *size],
        "size": size[0] * factor(found),
        "scale": 1.0 if scale is None else scale,
        "shift": found.shift,
        "low": said.range[0],
        "high": said.range[1],
        "spacing": None if said.spacing == UNKNOWN else said.spacing,
        "modality": said.modality,
        "labels": said.labels or (),
        "mask_encoding": said.mask_encoding,
        "classes": said.classes or (),
    }
    try:
        family = Imported(PRESETS["small"].replaced(preset).replaced(fields))  # type: ignore[arg-type]  # of its type
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    except RuntimeError as error:
        raise CheckpointError(f"the autoencoder decodes no state {preset['state']} of the denoiser: {error}") from error
    for part, network in {"denoiser.net": found.denoiser, "autoencoder": found.autoencoder}.items():
        if network is not None:
            family.get_submodule(part).load_state_dict(network.weights)
    probe(family.eval())
    options = {name: value for name, value in dataclasses.asdict(said).items() if value is not None}
    return family, {"format": found.format, "sha256": dict(found.sha256), "options": {**options, "set": dict(fields)}}


def unsaid(found: Found, said: Said) -> Iterator[str]:
    """What is needed and known from nowhere."""
    if said.range is None:
        yield "between which values the pictures lay that it learned from (--range -1,1 or 0,1)"
    if said.spacing is None:
        yield f"how far pixels are apart, in mm (--spacing 0.5,0.5 or {UNKNOWN})"
    if said.steps is None:
        yield "how many steps a sample takes (--steps 50)"
    if found.size is None and said.size is None:
        yield "rows and columns of what the network denoises, latents or pictures (--size 64,64)"
    if found.autoencoder and found.scale is None and said.scale is None:
        yield "by what latents were multiplied for training (--scale 1)"
    if found.sampling.solver is None and said.solver is None:
        yield "which of medgen's solvers to sample with, as it has not the authors' own (--solver ddim)"
    taken, given = found.denoiser.config["in_channels"], found.denoiser.config["out_channels"]
    if (classes := found.denoiser.config.get("num_class_embeds")) and said.classes is None:
        yield f"what the {classes} classes are that the network is told (--classes NAME,NAME,...)"
    if taken > given and said.labels is None:
        yield f"what {taken - given} of the network's {taken} channels are: the classes of a mask (--labels ...)"
    if taken > given and said.mask_encoding is None:
        yield "in which form they hold its classes (--mask-encoding one-hot, index or index/255)"


def factor(found: Found) -> int:
    """How much larger pictures are than states."""
    if found.autoencoder is None:
        return 1
    config = found.autoencoder.config
    widths = config.get("block_out_channels") or config.get("channels")
    return 2 ** (len(widths) - 1) if widths else 1


@torch.no_grad()
def probe(family: Imported) -> None:
    """It runs, and what it gives has the shape of what it is given."""
    state, t = torch.zeros(1, *family.sample_shape), torch.zeros(1)
    under = family.condition
    given = () if under is None else (torch.zeros(1, *under.shape, dtype=getattr(torch, under.dtype)),)
    try:
        out = family.denoiser(state, t, *given)
    except Exception as error:  # a network of any shape raises anything
        raise CheckpointError(
            f"the network does not run on states of {list(state.shape[1:])}"
            f"{f' and a {under.name}' if under else ''}: {str(error).splitlines()[0]}"
        ) from error
    if out.shape != state.shape:
        raise CheckpointError(f"the network makes {list(out.shape[1:])} of states of {list(state.shape[1:])}")
