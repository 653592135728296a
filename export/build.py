"""A checkpoint -> a bundle in the model repository, or nothing at all."""

import dataclasses
import importlib.metadata
import json
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from export import BuildError, Progress, silent, tensorrt
from export.graphs import finish_graph, step_graph
from export.options import BF16_OPSET, DEFAULTS, OPSET, TOLERANCES, Options, PlanOptions, Tolerance
from export.parity import BATCH, Figures, compare_engines, measure_parity
from export.precision import widened
from serving.bundle import (
    MANIFEST,
    PARITY,
    REPOSITORY,
    Bundle,
    EngineFile,
    Manifest,
    bundle_folder,
    file_digest,
    load_bundle,
    seal,
)
from serving.engines import EngineError, StepEngine, open_engine
from serving.engines.onnxruntime import OnnxRuntimeEngine
from serving.folders import Busy, replacing
from training.checkpoint import find_checkpoint, load_checkpoint, unfinished
from training.family import Family

KINDS = ("random", "step", "end_to_end", "onnx")  # of parity figures; the last is of TensorRT alone
NO_TF32 = "Compared on a CPU, which has no TF32: these differences are those of float32."
OWN_FILES = ("config.pbtxt", "1/model.py", "1/.gitkeep")  # of a model in a repository
TOOLS = ("torch", "diffusers", "onnx", "onnxscript", "numpy")


def build(
    model: str,
    checkpoint: Path,
    repository: Path = REPOSITORY,
    options: Options = DEFAULTS,
    progress: Progress = silent,
) -> Bundle:
    """Export a checkpoint's graphs, compare them with PyTorch, and put the bundle in its place.

    A repository that has no folder for the model gets one like the one in this checkout. Whatever fails, the bundle
    that was there before stays as it was.

    Raises:
        CheckpointError: the checkpoint is missing or broken.
        BuildError: the checkpoint is of another model or its training was not through, the bundle is being built by
            another process, TensorRT cannot build a plan, or the tolerance is missed.
        EngineError: there is no GPU for TensorRT, or the engines do not run here.
        OSError: the bundle cannot be written.
    """
    return build_all({model: checkpoint}, repository, options, progress)[model]


def build_all(
    checkpoints: Mapping[str, Path],
    repository: Path = REPOSITORY,
    options: Options = DEFAULTS,
    progress: Progress = silent,
    check_manifests: Callable[[Mapping[str, Manifest]], object] = lambda _: None,
) -> dict[str, Bundle]:
    """Build several models' bundles from their checkpoints, all or none; see ``build``.

    check_manifests: called with what the bundles will say of themselves, before the work; may raise.
    """
    target = describe_target(options)
    loaded = {}
    for model, checkpoint in checkpoints.items():
        progress(f"loading {checkpoint}")
        family, config = load_checkpoint(checkpoint)
        if family.name != model:
            raise BuildError(f"{checkpoint} holds a {family.name}; --model is {model}")
        refuse_unfinished(f"{checkpoint} was", unfinished(family, config), options)
        loaded[model] = family, describe(family, config, options, target)
    check_manifests({model: manifest for model, (_, manifest) in loaded.items()})
    places = [bundle_folder(repository, model) for model in loaded]
    try:
        for model in loaded:
            prepare_repository(repository, model)
        with replacing(*places) as folders:
            for folder, (model, (family, manifest)) in zip(folders, loaded.items(), strict=True):
                write_compared(folder, family, manifest, checkpoints[model], options, progress)
    except Busy as error:
        raise BuildError(str(error)) from None
    return {model: load_bundle(place) for model, place in zip(loaded, places, strict=True)}


def refuse_unfinished(what: str, so_far: str | None, options: Options) -> None:
    """Raises BuildError for a training that was not through."""
    if so_far and not options.unfinished:
        raise BuildError(f"{what} trained to {so_far}; go on with fit --resume, or build it as it is with --unfinished")


def write_compared(
    folder: Path, family: Family, manifest: Manifest, checkpoint: Path, options: Options, progress: Progress
) -> None:
    """Fill a folder with a bundle that has been compared with PyTorch and is within the tolerance."""
    tolerance = options.tolerance or TOLERANCES[options.precision]
    bundle, graphs = write_engines(folder, family, manifest, options, progress)
    engine = open_built(bundle)
    figures = measure_parity(family, engine, progress, min(BATCH, options.max_batch))
    if options.target == "tensorrt":
        figures["onnx"] = compare_with_onnx(family, engine, bundle, graphs, progress)
    check(figures, tolerance, manifest)
    figures["checkpoint"] = str(find_checkpoint(checkpoint).absolute())
    (folder / PARITY).write_text(json.dumps(figures, indent=1) + "\n")
    parity = {name: figures[name] for name in KINDS if name in figures}
    limits = {name: limit for name, limit in dataclasses.asdict(tolerance).items() if limit is not None}
    if manifest.precision == "tf32" and isinstance(engine, OnnxRuntimeEngine):
        parity["note"] = NO_TF32
    manifest = dataclasses.replace(bundle.manifest, parity={**parity, "tolerance": limits})
    (folder / MANIFEST).write_text(manifest.to_json())
    seal(folder)


def describe_target(options: Options) -> dict[str, Any]:
    """A manifest's target; raises BuildError if the options do not go together or TensorRT cannot build here."""
    opset = options.opset or (BF16_OPSET if options.precision == "bf16" else OPSET)
    if options.precision == "bf16" and opset < BF16_OPSET:
        raise BuildError(f"--opset {opset} has no bf16 convolutions; bf16 needs {BF16_OPSET} or more")
    if options.target == "onnx" and options.plan != PlanOptions():
        raise BuildError("--workspace and --hardware-compatibility are for --target tensorrt")
    target: dict[str, Any] = {"name": "onnx"}
    if options.target == "tensorrt":
        target = tensorrt.describe_target(options.max_batch, options.plan)
    return {**target, "opset": opset, "fused": options.fused}


def describe(family: Family, config: Mapping[str, Any], options: Options, target: Mapping[str, Any]) -> Manifest:
    """The manifest of a family's bundle, without the engine files and the parity figures."""
    origin = {key: config[key] for key in ("digest", "data", "phase", "step", "seed") if key in config}
    origin["steps"] = dict(zip(family.phases, family.preset.steps, strict=False))
    if so_far := unfinished(family, config):
        origin["unfinished"] = so_far
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
        precision=options.precision,
        engines={},
        target=target,
        parity={},
        checkpoint=origin,
        tools={
            "python": platform.python_version(),
            "onnxruntime": onnxruntime.__version__,  # whatever the name of its package
            **{name: importlib.metadata.version(name) for name in TOOLS},
        },
    )


def write_engines(
    folder: Path, family: Family, manifest: Manifest, options: Options, progress: Progress = silent
) -> tuple[Bundle, dict[str, onnx.ModelProto]]:
    """A bundle that nothing has been compared with yet, and the graphs that it was made from."""
    graphs = {}
    for name, graph in (("step", step_graph), ("finish", finish_graph)):
        progress(f"exporting the {name} graph")
        graphs[name] = graph(family, manifest.target["opset"], options.fused, options.precision)
    return write_bundle(folder, manifest, engine_files(graphs, manifest, options.plan, progress)), graphs


def engine_files(
    graphs: Mapping[str, onnx.ModelProto], manifest: Manifest, plan: PlanOptions, progress: Progress = silent
) -> dict[str, bytes]:
    """What the manifest's target runs, by file name."""
    if manifest.target["name"] == "tensorrt":
        return tensorrt.build_plans(graphs, manifest, plan, progress)
    return {f"{name}.onnx": graph.SerializeToString() for name, graph in graphs.items()}


def write_bundle(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Put engine files, such as "step.onnx", and a manifest that names them into a folder."""
    for file, content in files.items():
        (folder / file).write_bytes(content)
    engines = {Path(file).stem: EngineFile(file, file_digest(folder / file)) for file in files}
    (folder / MANIFEST).write_text(dataclasses.replace(manifest, engines=engines).to_json())
    seal(folder)
    return load_bundle(folder)


def open_built(bundle: Bundle) -> StepEngine:
    """The engine of a bundle, to be compared step by step."""
    try:
        engine = open_engine(bundle)
    except EngineError as error:
        if (bundle.manifest.target["name"], bundle.manifest.precision) == ("onnx", "bf16"):
            raise BuildError(
                "ONNX Runtime has no bf16 convolutions here, and its CPU has none anywhere; --precision fp16 runs on "
                f"it, and bf16 is for --target tensorrt ({error})"
            ) from error
        raise
    assert isinstance(engine, StepEngine)
    return engine


def compare_with_onnx(
    family: Family, engine: StepEngine, bundle: Bundle, graphs: Mapping[str, onnx.ModelProto], progress: Progress
) -> Figures:
    """How far a bundle's plans are from ONNX Runtime on the graphs they were made from, see ``compare_engines``."""
    manifest = dataclasses.replace(bundle.manifest, target={"name": "onnx"})
    if manifest.precision == "bf16":
        graphs = {name: widened(graph) for name, graph in graphs.items()}
    files = {f"{name}.onnx": graph.SerializeToString() for name, graph in graphs.items()}
    with tempfile.TemporaryDirectory(dir=bundle.folder) as folder:
        reference = OnnxRuntimeEngine(write_bundle(Path(folder), manifest, files))
        return compare_engines(family, engine, reference, bundle.manifest.target["buckets"], progress)


def check(figures: Figures, tolerance: Tolerance, manifest: Manifest) -> None:
    """Raise BuildError, naming the figure, if one is beyond the tolerance."""
    for kind, name, difference, limit in limited(figures, tolerance, manifest):
        if not difference <= limit:
            other = "ONNX Runtime" if kind == "onnx" else "PyTorch"
            raise BuildError(
                f"{kind.replace('_', ' ')}: {name} differs from {other} by {difference:.2e}, tolerance {limit:.2e}"
            )


def limited(
    figures: Mapping[str, Any], tolerance: Tolerance, manifest: Manifest
) -> Iterator[tuple[str, str, float, float]]:
    """Each figure with its kind, the tensor's name, and its limit."""
    masks = [output.name for output in manifest.outputs if output.labels]
    for kind in KINDS:
        for name, difference in figures.get(kind, {}).items():
            yield kind, name, difference, tolerance.of(kind, name, masks)


def prepare_repository(repository: Path, model: str) -> None:
    """Give the repository the folder of a model or chain as it is in this checkout, if it has none yet.

    Of one that is there, what is missing or cut short, as a full disk leaves it, is written again; all else is kept.
    """
    ours, theirs = REPOSITORY / model, repository / model
    if not theirs.is_dir():
        if not ours.is_dir():
            raise BuildError(f"{ours} is missing: a model family needs its folder in model_repository")
        with replacing(theirs) as (new,):
            for file in OWN_FILES:
                if (ours / file).is_file():
                    (new / file).parent.mkdir(exist_ok=True)
                    shutil.copyfile(ours / file, new / file)
    for file in OWN_FILES:
        if (ours / file).is_file() and is_cut_short(theirs / file, ours / file):
            (theirs / file).parent.mkdir(exist_ok=True)
            aside = (theirs / file).with_name(f".{Path(file).name}.new")
            shutil.copyfile(ours / file, aside)
            aside.replace(theirs / file)


def is_cut_short(file: Path, whole: Path) -> bool:
    """It is not there, or ends before the end."""
    if not file.exists():
        return True
    content, all_of_it = file.read_bytes(), whole.read_bytes()
    return len(content) < len(all_of_it) and all_of_it.startswith(content)
