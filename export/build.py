"""A checkpoint -> a bundle in the model repository, or nothing at all."""

import importlib.metadata
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.graphs import OPSET, finish_graph, step_graph
from export.parity import Figures, measure_parity
from serving.bundle import (
    MANIFEST,
    REPOSITORY,
    Bundle,
    EngineFile,
    Manifest,
    bundle_folder,
    file_digest,
    load_bundle,
)
from serving.engines import StepEngine, open_engine
from training.checkpoint import load_checkpoint
from training.family import Family

TOOLS = ("torch", "diffusers", "onnx", "onnxscript", "onnxruntime", "numpy")


class BuildError(Exception):
    """The bundle was not built; the message says why."""


@dataclass(frozen=True)
class Tolerance:
    """The largest differences from PyTorch that a bundle may have, see ``measure_parity``."""

    step: float = 1e-4
    end_to_end: float = 1e-3


@dataclass(frozen=True)
class Options:
    """What may be chosen about a bundle."""

    max_batch: int = 16
    opset: int = OPSET
    fused: bool = True
    tolerance: Tolerance = Tolerance()


def build(
    model: str,
    checkpoint: Path,
    repository: Path = REPOSITORY,
    options: Options = Options(),
    progress: Callable[[str], None] = lambda line: None,
) -> Bundle:
    """Export a checkpoint's graphs, compare them with PyTorch, and put the bundle in its place.

    A repository that has no folder for the model gets one like the one in this checkout. Whatever fails, the bundle
    that was there before stays as it was.

    Raises:
        CheckpointError: the checkpoint is missing or broken.
        BuildError: the checkpoint is of another model, or the tolerance is missed.
        OSError: the bundle cannot be written.
    """
    progress(f"loading {checkpoint}")
    family, config = load_checkpoint(checkpoint)
    if family.name != model:
        raise BuildError(f"{checkpoint} holds a {family.name}; --model is {model}")
    prepare_repository(repository, model)
    with written_aside(bundle_folder(repository, model)) as folder:
        engines = {}
        for name, graph in (("step", step_graph), ("finish", finish_graph)):
            progress(f"exporting the {name} graph")
            file = folder / f"{name}.onnx"
            file.write_bytes(graph(family, options.opset, options.fused).SerializeToString())
            engines[name] = EngineFile(file.name, file_digest(file))
        manifest = describe(family, config, engines, options)
        (folder / MANIFEST).write_text(manifest.to_json())

        engine = open_engine(load_bundle(folder))
        assert isinstance(engine, StepEngine)
        figures = measure_parity(family, engine, progress)
        check(figures, options.tolerance)
        (folder / "parity.json").write_text(json.dumps(figures, indent=1) + "\n")
        parity = {name: figures[name] for name in ("random", "step", "end_to_end")}
        tolerance = {"step": options.tolerance.step, "end_to_end": options.tolerance.end_to_end}
        (folder / MANIFEST).write_text(
            describe(family, config, engines, options, {**parity, "tolerance": tolerance}).to_json()
        )
    return load_bundle(bundle_folder(repository, model))


def describe(
    family: Family,
    config: Mapping[str, Any],
    engines: Mapping[str, EngineFile],
    options: Options,
    parity: Mapping[str, Any] | None = None,
) -> Manifest:
    """The manifest of a family's bundle."""
    origin = {key: config[key] for key in ("digest", "data", "step", "seed") if key in config}
    return Manifest(
        model=family.name,
        preset=config.get("preset_name", "custom"),
        sample_shape=family.sample_shape,
        condition=family.condition,
        outputs=family.outputs,
        schedule=family.preset.schedule,
        default_solver=family.preset.default_solver,
        default_steps=family.preset.default_steps,
        max_batch=options.max_batch,
        precision="fp32",
        engines=dict(engines),
        target={"name": "onnx", "opset": options.opset, "fused": options.fused},
        parity=parity or {},
        checkpoint=origin,
        tools={"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in TOOLS}},
    )


def check(figures: Figures, tolerance: Tolerance) -> None:
    """Raise BuildError, naming the figure, if one is beyond the tolerance."""
    limits = {"random": tolerance.step, "step": tolerance.step, "end_to_end": tolerance.end_to_end}
    for kind, limit in limits.items():
        for name, difference in figures[kind].items():
            if not difference <= limit:
                raise BuildError(
                    f"{kind.replace('_', ' ')}: {name} differs from PyTorch by {difference:.2e}, tolerance {limit:.2e}"
                )


def prepare_repository(repository: Path, model: str) -> None:
    """Give the repository this model's config.pbtxt and model.py, if it has none yet."""
    ours = REPOSITORY / model
    if not ours.is_dir():
        raise BuildError(f"{ours} is missing: a model family needs its folder in model_repository")
    if not (repository / model).is_dir():
        shutil.copytree(ours, repository / model, ignore=shutil.ignore_patterns("bundle", ".bundle-*", "__pycache__"))


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``folder`` if the block ends well, and vanishes if it does not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bundle-", dir=folder.parent) as holder:
        aside, old = Path(holder) / "new", Path(holder) / "old"
        aside.mkdir()
        yield aside
        for file in aside.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        if folder.exists():
            folder.rename(old)
        try:
            aside.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
