"""From what was asked for to what every row does, checked before any row is opened."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.latency.contenders import Case, Stage
from benchmarks.latency.masks import conditions
from export.chain import by_model, check_known
from serving.bundle import Bundle, Condition, Manifest, Output, bundle_folder, file_digest, load_bundle
from serving.chain import check_stages, read_chain
from serving.engines.cpu import threads
from serving.picture_files import PictureFileError, read_pictures
from serving.sampling.requests import parse_request
from serving.sampling.solvers import solvers_for
from training.checkpoint import find_checkpoint, shipped_checkpoint

STEPS, SOLVER = 8, "dpmpp_2m"


def make_case(
    model: str,
    checkpoints: Sequence[Path],
    repository: Path,
    batch: int,
    parameters: Mapping[str, Any],
    pictures: Sequence[Path] = (),
) -> Case:
    """A case of a model or a chain.

    Args:
        checkpoints: those of stages whose bundles were built from elsewhere than they say.
        parameters: as of a request: steps, solver, mask_steps, mask_solver. Of a model that takes steps, 8 of dpmpp_2m
            unless others are given, or of the model's own solver where that does not fit.
        pictures: files of those to draw under, one for each sample of a batch.

    Raises:
        BundleError, ChainError: something is not built or broken, or the stages do not fit together.
        CheckpointError: a checkpoint is missing or broken.
        BuildError: there is no such model; a checkpoint is of no stage, or two are of the same.
        ValueError: a checkpoint's weights are not the bundle's, or a solver does not fit a model.
    """
    check_known(repository, model)
    chain = read_chain(repository, model)
    models = [stage.model for stage in chain.stages] if chain else [model]
    bundles = {name: load_bundle(bundle_folder(repository, name)) for name in models}
    if chain:
        check_stages(chain, {name: bundle.manifest for name, bundle in bundles.items()})
        names = [(stage.inputs, stage.outputs) for stage in chain.stages]
    else:
        names = [own_names(bundle) for bundle in bundles.values()]
    given = by_model(checkpoints, models)
    parameters = with_defaults(parameters, [bundle.manifest for bundle in bundles.values()])
    condition = None if chain else bundles[model].manifest.condition
    stages = [
        make_stage(bundles[name], given.get(name), parameters, *tensors)
        for name, tensors in zip(models, names, strict=True)
    ]
    return Case(
        model,
        tuple(stages),
        condition,
        parameters,
        tuple(output for stage in stages for output in drawn(stage, bundles[stage.model])),
        repository.resolve(),
        batch,
        threads=threads(),
        pictures=read(pictures, condition, model, batch),
    )


def with_defaults(parameters: Mapping[str, Any], manifests: Sequence[Manifest]) -> dict[str, Any]:
    stepping = [manifest for manifest in manifests if manifest.schedule is not None]
    if not stepping:
        return dict(parameters)
    first, last = stepping[0], stepping[-1]
    fits = all(SOLVER in solvers_for(manifest.schedule) for manifest in stepping if manifest.schedule)
    usual = {"steps": STEPS, "solver": SOLVER if fits else last.default_solver}
    found = {**usual, **learnt(last), **parameters}
    if len(stepping) > 1 and (first.student or last.student):
        own = learnt(first) or {name: value for name, value in usual.items() if name not in parameters}
        found = {**{f"{first.outputs[0].name}_{name}": value for name, value in own.items()}, **found}
    return found


def learnt(manifest: Manifest) -> dict[str, Any]:
    """Of a student, which takes no others."""
    return {"steps": manifest.student.steps, "solver": manifest.student.solver} if manifest.student else {}


def read(files: Sequence[Path], condition: Condition | None, model: str, batch: int) -> NDArray[np.float32] | None:
    """As many pictures as a batch needs; raises ValueError."""
    if not files:
        return None
    if condition is None or condition.classes is not None:
        raise ValueError(f"--condition is for models that draw under pictures; {model} does not")
    try:
        found, _ = read_pictures(files, condition)
    except PictureFileError as error:
        raise ValueError(str(error)) from None
    if len(found.values) < batch:
        raise ValueError(f"--condition has {len(found.values)} pictures; a batch has {batch} samples")
    return found.values[:batch]


def own_names(bundle: Bundle) -> tuple[dict[str, str], dict[str, str]]:
    manifest = bundle.manifest
    inputs = {manifest.condition.name: manifest.condition.name} if manifest.condition else {}
    return inputs, {output.name: output.name for output in manifest.outputs}


def make_stage(
    bundle: Bundle,
    checkpoint: Path | None,
    parameters: Mapping[str, Any],
    inputs: Mapping[str, str],
    outputs: Mapping[str, str],
) -> Stage:
    manifest = bundle.manifest
    condition = None if manifest.condition is None else conditions(manifest.condition, 1)
    request = parse_request(manifest, np.zeros((1, 1), np.int64), parameters, condition)
    folder = find_checkpoint(checkpoint or built_from(bundle))
    if file_digest(folder / "model.safetensors") != manifest.checkpoint.get("digest"):
        raise ValueError(f"{bundle.folder} was not built from {folder}: give --checkpoint the one it was built from")
    built = (bundle.digest, manifest)
    return Stage(manifest.model, folder.resolve(), *built, request.solver, request.steps, inputs, outputs)


def built_from(bundle: Bundle) -> Path:
    """The checkpoint that a bundle was compared with when it was built, or the one that medgen ships."""
    try:
        recorded = Path(json.loads((bundle.folder / "parity.json").read_text())["checkpoint"])
    except (OSError, ValueError, KeyError):
        return shipped_checkpoint(bundle.manifest.model)
    return recorded if recorded.is_dir() else shipped_checkpoint(bundle.manifest.model)


def drawn(stage: Stage, bundle: Bundle) -> list[Output]:
    """A stage's outputs that are the case's, under their names there."""
    known = stage.outputs
    return [replace(output, name=known[output.name]) for output in bundle.manifest.outputs if output.name in known]
