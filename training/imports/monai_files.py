"""Networks of MONAI: a bundle's configs/inference.json and models/, or a state dict and such a config.

The config is read as data. In what is needed of it ``@name`` is looked up, and ``$``, which is Python, is refused.
"""

import inspect
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training import CheckpointError
from training.imports import read_pickle
from training.imports.found import Found, Network, checked, read_object, refuse_unknown
from training.imports.generative import has_unused, in_new_layout
from training.imports.schedulers import MONAI_SCHEDULERS, from_monai
from training.models.imported import AUTOENCODERS, DENOISERS, LIBRARIES, made

CONFIG = "configs/inference.json"
WEIGHTS, AUTOENCODER_WEIGHTS = "models/model.pt", "models/model_autoencoder.pt"
META = ("_requires_", "_desc_")
# What GenerativeModels calls otherwise than MONAI.
RENAMED = {"num_channels": "channels", "use_checkpointing": "use_checkpoint"}
DEEPEST = 32


def read_monai(
    source: Path, config: Path | None, weights: Path | None, autoencoder_weights: Path | None, key: str | None
) -> Found:
    """What a bundle's folder says, or a file of weights and a config.

    key: under which the files hold the state dict, if there is more in them.

    Raises:
        CheckpointError: a file is missing, broken or of another kind, or what it holds is not the config's.
    """
    if source.is_dir():
        config = config or source / CONFIG
        weights = weights or source / WEIGHTS
        autoencoder_weights = autoencoder_weights or source / AUTOENCODER_WEIGHTS
    elif config is None:
        raise CheckpointError(f"{source} says nothing of its network; give the bundle's inference.json with --config")
    written = read_object(config)
    refuse_other_networks(written, config)
    denoiser = the_one(written, DENOISERS, config)
    autoencoder = the_one(written, AUTOENCODERS, config, optional=True)
    scheduler = the_one(written, tuple(MONAI_SCHEDULERS), config)
    assert denoiser is not None
    assert scheduler is not None
    (field, library, name, settings) = scheduler
    sampling = from_monai(settings, name, library, f"{config}: {field}")
    files: dict[str, str] = {}
    networks = [read_network(*denoiser, weights or source, key, files)]
    if autoencoder is not None:
        if autoencoder_weights is None:
            raise CheckpointError(f"{config} has the autoencoder {autoencoder[0]}; give its --autoencoder-weights")
        networks.append(read_network(*autoencoder, autoencoder_weights, key, files))
    elif not source.is_dir() and autoencoder_weights is not None:
        raise CheckpointError(f"--autoencoder-weights is {autoencoder_weights}; {config} has no autoencoder")
    return Found(
        format="monai",
        denoiser=networks[0],
        autoencoder=networks[1] if len(networks) > 1 else None,
        sampling=sampling,
        size=None,
        scale=None if autoencoder is None else written_scale(written, config),
        shift=0.0,
        sha256=files,
    )


def refuse_other_networks(written: Mapping[str, Any], file: Path) -> None:
    """A network that nobody would run is a part of the model all the same."""
    for where, part in parts_of(written):
        target = str(part["_target_"])
        package, _, name = target.rpartition(".")
        by_name_alone = not package and hasattr(import_module(LIBRARIES["monai"]), name)
        if (by_name_alone or ".networks.nets." in f"{package}.") and name not in (*DENOISERS, *AUTOENCODERS):
            raise CheckpointError(
                f"{file}: {where} is {target}; medgen imports DiffusionModelUNet, perhaps with AutoencoderKL, and no "
                "other network beside them"
            )


def parts_of(value: Any, where: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All that has a ``_target_``, with its place."""
    if isinstance(value, dict):
        if isinstance(value.get("_target_"), str):
            yield where, value
        for key, item in value.items():
            yield from parts_of(item, f"{where}::{key}".removeprefix("::"))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from parts_of(item, f"{where}::{number}")


def written_scale(written: Mapping[str, Any], file: Path) -> float | None:
    """By what an inferer multiplies latents, if a number is written anywhere; ``$`` ones are the user's to say."""
    found = {
        where: part["scale_factor"]
        for where, part in [("the config", written), *parts_of(written)]
        if isinstance(part.get("scale_factor"), int | float)
    }
    if len({*found.values()}) > 1:
        raise CheckpointError(f"{file} has several scale_factor: {', '.join(f'{w} {s}' for w, s in found.items())}")
    return next(map(float, found.values()), None)


Part = tuple[str, str, str, dict[str, Any]]


def the_one(written: Mapping[str, Any], classes: tuple[str, ...], file: Path, optional: bool = False) -> Part | None:
    """Field, library, class and settings of the only part of a config that is of one of these classes."""
    found = []
    for field, part in written.items():
        target = part.get("_target_") if isinstance(part, dict) else None
        if isinstance(target, str) and target.rpartition(".")[2] in classes:
            found.append((field, target))
    if not found and optional:
        return None
    if len(found) != 1:
        fields = ", ".join(field for field, _ in found) or "none"
        raise CheckpointError(f"{file} must have one field whose _target_ is {' or '.join(classes)}; it has {fields}")
    ((field, target),) = found
    package, _, name = target.rpartition(".")
    library = package.split(".")[0] or "monai"
    if library not in ("monai", "generative"):
        raise CheckpointError(f"{file}: {field} is {target}; it must be one of monai's or generative's")
    settings = {}
    for key, value in written[field].items():
        if key == "_target_" or key in META:
            continue
        if key.startswith("_"):
            raise CheckpointError(f"{file}: {field} has {key}, which medgen does not follow")
        settings[key] = literal(value, written, f"{file}: {field}.{key}")
    return field, library, name, settings


def literal(value: Any, written: Mapping[str, Any], where: str, depth: int = 0) -> Any:
    """A value with the names in it looked up."""
    if depth > DEEPEST:
        raise CheckpointError(f"{where}: its names lead round in circles")
    if isinstance(value, list):
        return [literal(item, written, where, depth + 1) for item in value]
    if isinstance(value, dict):
        return {key: literal(item, written, where, depth + 1) for key, item in value.items()}
    if isinstance(value, str) and value.startswith("@"):
        found: Any = written
        for name in value[1:].replace("#", "::").split("::"):
            try:
                found = found[int(name)] if isinstance(found, list) else found[name]
            except (IndexError, KeyError, TypeError, ValueError):
                raise CheckpointError(f"{where} is {value!r}, and there is no such field") from None
        return literal(found, written, where, depth + 1)
    if isinstance(value, str) and value[:1] in ("$", "%"):
        raise CheckpointError(f"{where} is {value!r}, which would have to be run: write down what it comes to")
    return value


def read_network(
    field: str, library: str, name: str, settings: dict[str, Any], file: Path, key: str | None, sha256: dict[str, str]
) -> Network:
    """A network of a config and its weights, whose digest is noted by the field's name."""
    content, sha256[field] = read_pickle(file)
    weights = state_dict(content, file, key)
    if library == "generative":
        settings = {RENAMED.get(setting, setting): value for setting, value in settings.items()}
        settings.pop("use_flash_attention", None)
    if has_unused(weights) and "include_fc" not in settings:
        settings["include_fc"] = False  # only transformers end with one, and networks with those are refused
    kind = getattr(import_module(LIBRARIES["monai"]), name)
    refuse_unknown(settings, kind, field)
    if settings.get("spatial_dims") != 2:
        raise CheckpointError(f"{field}: spatial_dims is {settings.get('spatial_dims')}; medgen imports what is 2-D")
    described = {"library": "monai", "class": name, "config": {**defaults(kind), **settings}}
    try:
        network = made(described, (*DENOISERS, *AUTOENCODERS))
    except ValueError as error:
        raise CheckpointError(f"{field}: {error}") from error
    wanted = network.state_dict()
    return Network(described, checked(in_new_layout(weights, wanted), wanted, str(file)))


def defaults(kind: type) -> dict[str, Any]:
    """What the class takes where it is told nothing: another version may take something else."""
    parameters = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    return {name: part.default for name, part in parameters.items() if part.default is not inspect.Parameter.empty}


def state_dict(content: Any, file: Path, key: str | None) -> dict[str, Tensor]:
    """The weights in what torch.save wrote, without the prefix that training on several GPUs gives their names."""
    if key is not None:
        if not isinstance(content, Mapping) or key not in content:
            raise CheckpointError(f"--key is {key!r}; {file} holds {summary(content)}")
        content = content[key]
    if not isinstance(content, Mapping) or not content or not all(map(torch.is_tensor, content.values())):
        raise CheckpointError(
            f"{file} holds {summary(content)}, no state dict; say which with --key, or save that alone"
        )
    return {name.removeprefix("module."): tensor for name, tensor in content.items()}


def summary(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"{{{', '.join(shown(content))}}}"
    return f"a {type(content).__name__}"


def shown(content: Mapping[str, Any]) -> Iterator[str]:
    for name in list(content)[:6]:
        yield f"{name}: {type(content[name]).__name__}"
    if len(content) > 6:
        yield "..."
