"""A pipeline as diffusers saves it: model_index.json, and a folder for each of its parts.

A folder of one network, config.json beside its weights, is read too; its scheduler is then a file of its own.
"""

from pathlib import Path
from typing import Any

import diffusers

from serving.bundle import file_digest
from training import CheckpointError
from training.imports.found import Found, Network, Sampling, checked, read_object, refuse_unknown
from training.imports.schedulers import from_diffusers
from training.models.imported import AUTOENCODERS, DENOISERS

INDEX = "model_index.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
DENOISER, AUTOENCODER, SCHEDULER = "unet", "vae", "scheduler"


def read_folder(folder: Path, scheduler: Path | None) -> Found:
    """What a folder of diffusers' says. scheduler: the scheduler_config.json of a folder that has none.

    Raises:
        CheckpointError: a part is missing, broken or of another kind, or what it holds is not its config's.
    """
    if (folder / INDEX).is_file():
        parts = parts_of(folder / INDEX)
        if scheduler is not None:
            raise CheckpointError(f"--config is {scheduler}; {folder} has a scheduler of its own")
        where = {name: folder / name for name in parts}
        scheduler = folder / SCHEDULER / "scheduler_config.json"
    elif (folder / "config.json").is_file():
        if scheduler is None:
            raise CheckpointError(f"{folder} is a network alone; give its scheduler_config.json with --config")
        where = {DENOISER: folder}
    else:
        raise CheckpointError(f"{folder} has neither {INDEX} nor config.json: it is no folder of diffusers'")
    denoiser = read_network(where[DENOISER], DENOISERS)
    autoencoder = read_network(where[AUTOENCODER], AUTOENCODERS) if AUTOENCODER in where else None
    if autoencoder is not None and (autoencoder.config.get("latents_mean") or autoencoder.config.get("latents_std")):
        raise CheckpointError(
            f"{where[AUTOENCODER]} has latents_mean and latents_std; medgen scales by one number alone"
        )
    sampling: Sampling = from_diffusers(read_object(scheduler), str(scheduler))
    size = denoiser.config.get("sample_size")
    # As it is written: where it is not, the library's default is a guess.
    latents = {} if autoencoder is None else read_object(where[AUTOENCODER] / "config.json")
    files = {f"{name}/{file.name}": file for name in where for file in sorted(where[name].glob("*.safetensors"))}
    return Found(
        format="diffusers",
        denoiser=denoiser,
        autoencoder=autoencoder,
        sampling=sampling,
        size=(size, size) if isinstance(size, int) else tuple(size) if size else None,
        scale=latents.get("scaling_factor"),
        shift=latents.get("shift_factor") or 0.0,
        sha256={name: file_digest(file) for name, file in files.items()},
    )


def parts_of(index: Path) -> list[str]:
    """Names of the networks' folders."""
    written = read_object(index)
    parts = {
        name: kind for name, kind in written.items() if isinstance(kind, list) and len(kind) == 2 and all(kind)
    }  # one that the pipeline goes without is [null, null]
    if odd := parts.keys() - {DENOISER, AUTOENCODER, SCHEDULER}:
        raise CheckpointError(
            f"{index} has {min(odd)!r}, a {parts[min(odd)][1]}; medgen imports pipelines of {DENOISER}, {SCHEDULER} "
            f"and perhaps {AUTOENCODER}"
        )
    if missing := {DENOISER, SCHEDULER} - parts.keys():
        raise CheckpointError(f"{index} has no {min(missing)!r}")
    return [name for name in (DENOISER, AUTOENCODER) if name in parts]


def read_network(folder: Path, classes: tuple[str, ...]) -> Network:
    """A network's config and weights, by the library's own loader, which knows its older spellings."""
    file = folder / "config.json"
    written = read_object(file)
    name = written.get("_class_name")
    if name not in classes or not hasattr(diffusers, str(name)):
        raise CheckpointError(f"{file} is of a {name}; medgen imports {', '.join(c for c in classes)}")
    config = {key: value for key, value in written.items() if not key.startswith("_")}
    kind: Any = getattr(diffusers, str(name))
    refuse_unknown(config, kind, str(file))
    if not any(folder.glob(f"{WEIGHTS}*")):
        there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
        raise CheckpointError(
            f"{folder} has no {WEIGHTS}, but {there}: where it was made, save it again with "
            "pipeline.save_pretrained(FOLDER, safe_serialization=True)"
        )
    try:
        network, told = kind.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, local_files_only=True, low_cpu_mem_usage=False
        )
    except Exception as error:  # of what is broken in a folder the library raises anything
        raise CheckpointError(f"{folder} cannot be read: {' '.join(str(error).split())[:300]}") from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if odd := told.get(problem):
            what = problem.replace("_keys", "")
            raise CheckpointError(
                f"{folder}: {len(odd)} weights are {what} for its config, as {sorted(odd, key=str)[0]}"
            )
    weights = network.float().state_dict()
    complete = {**{key: value for key, value in network.config.items() if not key.startswith("_")}, **config}
    described = {"library": "diffusers", "class": name, "config": complete}
    return Network(described, checked(weights, weights, str(folder)))
