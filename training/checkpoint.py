"""Checkpoints: folders of ``config.json``, ``model.safetensors`` and, to resume from, ``training.pt``.

A run folder holds ``checkpoints/00001000`` and the like. A checkpoint is written beside its place and put there when it
is complete, so one that exists is whole.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from serving.bundle import Manifest, read_json
from serving.folders import Busy, recover, replacing
from training import CheckpointError
from training.distill import PHASE
from training.family import Family, Preset
from training.models import family_names, load_family

FORMAT = 1
CONFIGS = "checkpoints/[0-9]*/config.json"  # in a run folder; one that is being written has a name with a dot
TRAINING = "training.pt"
SHIPPED = Path(__file__).parent / "checkpoints"


def save_checkpoint(
    folder: Path,
    family: Family,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write one checkpoint folder whole or not at all.

    Args:
        folder: where it will be; replaced if it exists.
        family: gives the model's name and preset.
        weights: the state dict that is exported: the exponential moving average.
        config: what else ``config.json`` records, such as the preset's name, the data and the step.
        training: what ``fit`` needs to go on: tensors, numbers and strings only.

    Raises:
        CheckpointError: it cannot be written; what was there is untouched.
    """
    described = {"format": FORMAT, "model": family.name, **config, "preset": dataclasses.asdict(family.preset)}
    try:
        with replacing(folder) as (aside,):
            (aside / "config.json").write_text(json.dumps(described, indent=2) + "\n")
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, aside / "model.safetensors")
            if training is not None:
                torch.save(dict(training), aside / TRAINING)
    except (OSError, RuntimeError, SafetensorError, Busy) as error:
        raise CheckpointError(f"{folder} cannot be written: {error}") from error


def find_checkpoint(path: Path) -> Path:
    """A checkpoint folder itself, or the newest one of a run folder."""
    try:
        recover(path)
    except (OSError, Busy) as error:
        raise CheckpointError(f"{path} was being replaced when that was cut short, and still is: {error}") from error
    if (path / "config.json").is_file():
        return path
    if checkpoints := sorted(path.glob(CONFIGS)):
        return checkpoints[-1].parent
    raise CheckpointError(f"no checkpoint in {path}: neither config.json nor checkpoints/*/config.json is there")


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a checkpoint folder.

    Raises:
        CheckpointError: it is no JSON or has another format number.
    """
    file = folder / "config.json"
    try:
        config = read_json(file.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    found = config.get("format") if isinstance(config, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{file} has format {found!r}; this medgen reads format {FORMAT}")
    return config


def build_family(config: Mapping[str, Any]) -> Family:
    """The untrained model that a config describes."""
    family = load_family(config["model"])
    (any_preset, *_) = family.presets.values()
    return family(any_preset.replaced(with_defaults(any_preset, config["preset"])))


def with_defaults(preset: Preset, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a written preset: one with a default is younger than some checkpoints, which mean the default."""
    defaults = {field.name: field.default for field in dataclasses.fields(preset)}
    return {**{name: value for name, value in defaults.items() if value is not dataclasses.MISSING}, **fields}


def unfinished(family: Family, config: Mapping[str, Any]) -> str | None:
    """How far the training of a checkpoint came, such as "step 500 of 14000, in phase guider"; None if it is through.

    Of a checkpoint that ``fit`` did not write, and that does not say what it is, nothing is known: None as well.
    """
    if family.made_from is not None:
        return config.get("unfinished")
    phase, step, steps = config.get("phase"), config.get("step", 0), sum(family.preset.steps)
    if phase is None or (phase == phases_of(family, config)[-1] and step >= steps):
        return None
    return f"step {step} of {steps}, in phase {phase}"


def phases_of(family: Family, config: Mapping[str, Any]) -> tuple[str, ...]:
    """Of the training that a checkpoint is of: a student has one of its own."""
    return (PHASE,) if config.get("student") else family.phases


def goes_on(config: Mapping[str, Any]) -> str:
    """With what a training that is not through goes on."""
    return "distill --resume" if config.get("student") else "fit --resume"


def load_checkpoint(path: Path, chosen: Mapping[str, Any] | None = None) -> tuple[Family, dict[str, Any]]:
    """The trained model, float32 and in eval mode, and its config with the weights' ``digest`` (sha256) added.

    Args:
        path: a checkpoint folder or a run folder, whose newest checkpoint is taken.
        chosen: fields of the preset that are not as in training, of those in the family's ``chosen_when_built``.

    Raises:
        CheckpointError: there is none, a file of it is missing or broken, or what is chosen is not possible.
    """
    folder = find_checkpoint(path)
    config = read_config(folder)
    file = folder / "model.safetensors"
    try:
        family = build_family(config)
        if chosen:
            family = rebuilt(family, chosen)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} describes no model that medgen has: {error}") from error
    try:
        content = file.read_bytes()
        weights = load(content)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    try:
        family.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    except RuntimeError as error:
        raise CheckpointError(f"{file} does not hold the weights of the model that config.json describes") from error
    return family.eval(), {**config, "digest": hashlib.sha256(content).hexdigest()}


def rebuilt(family: Family, chosen: Mapping[str, Any]) -> Family:
    """The untrained model with other fields of its preset."""
    check_chosen(type(family), chosen)
    try:
        return type(family)(family.preset.replaced(chosen))
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def check_chosen(family: type[Family], chosen: Mapping[str, Any]) -> None:
    if unknown := chosen.keys() - set(family.chosen_when_built):
        allowed = ", ".join(family.chosen_when_built) or "none"
        raise CheckpointError(
            f"preset field {min(unknown)!r} cannot be chosen when {family.name} is built; those that can: {allowed}"
        )


def load_model(
    model: str, path: Path, preset: str | None = None, chosen: Mapping[str, Any] | None = None
) -> tuple[Family, dict[str, Any]]:
    """``load_checkpoint`` of a model, which may also be made from another family's checkpoint.

    Then ``preset`` names one of the model's own: if None, the one that is called as the checkpoint's. The config is
    that of the checkpoint but for "preset_name", with "prior", the model that it is of, and "unfinished".

    Raises:
        CheckpointError: as ``load_checkpoint`` does, or the checkpoint is of another model.
    """
    held = str(read_config(find_checkpoint(path)).get("model"))
    if held == model:
        if preset is not None:
            raise CheckpointError(f"preset {preset!r} cannot be chosen: {path} has that of its {model}")
        return load_checkpoint(path, chosen)
    made = load_family(model)
    if made.made_from != held:
        raise CheckpointError(f"{path} holds a {held}; --model is {model}")
    prior, config = load_checkpoint(path)
    name = preset or str(config.get("preset_name"))
    if name not in made.presets:
        raise CheckpointError(f"preset is {name!r}; {model} has {', '.join(made.presets)}: choose one with --preset")
    check_chosen(made, chosen or {})
    config = {**config, "preset_name": name, "prior": held, "unfinished": unfinished(prior, config)}
    try:
        return made.of(prior, made.presets[name], chosen or {}), config
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def load_built(manifest: Manifest, path: Path) -> tuple[Family, dict[str, Any]]:
    """The model that a bundle was built of, from the checkpoint at ``path``; raises as ``load_model`` does."""
    origin = manifest.checkpoint
    return load_model(manifest.model, path, manifest.preset if "prior" in origin else None, origin.get("chosen"))


def pack(path: Path, out: Path) -> Path:
    """Copy a checkpoint's weights as float16, without the state to resume from: the form to hand on.

    Raises:
        CheckpointError: there is none, or ``out`` is something else than a checkpoint, which is not replaced.
    """
    if out.exists() and not (out / "config.json").is_file():
        raise CheckpointError(f"{out} is there already and no checkpoint; name a new folder")
    if (out / TRAINING).exists():
        raise CheckpointError(f"{out} is a checkpoint that a training may go on from; name a new folder")
    family, config = load_checkpoint(path)
    kept = {key: value for key, value in config.items() if key not in ("format", "model", "preset", "digest")}
    kept.setdefault("packed_from", config["digest"])
    weights = family.state_dict()
    halved = {name: weight.half() for name, weight in weights.items()}
    for name, weight in weights.items():
        if weight.isfinite().all() and not halved[name].isfinite().all():
            raise CheckpointError(f"{path}: {name} has a weight of {weight.abs().max():g}; float16 ends at 65504")
    save_checkpoint(out, family, halved, kept)
    return out


def shipped_folder(model: str) -> Path | None:
    """Where the checkpoint of a model is that comes with medgen, if there is one."""
    return min((file.parent for file in SHIPPED.glob(f"{model}-*/config.json")), default=None)


def shipped_checkpoint(model: str) -> Path:
    """The checkpoint of a model that comes with medgen, trained on phantoms.

    Raises:
        CheckpointError: there is none of this model.
    """
    if folder := shipped_folder(model):
        return folder
    family = load_family(model) if model in family_names() else None
    if family is not None and not family.phases and family.made_from is None:
        raise CheckpointError(
            f"medgen ships no checkpoint of {model}: make one with medgen import, and name it with --checkpoint"
        )
    raise CheckpointError(
        f"medgen ships no checkpoint of {model}: train one with medgen fit --model {model} --data DIR "
        f"--out runs/{model}, and name it with --checkpoint runs/{model}"
    )
