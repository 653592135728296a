"""A checkpoint -> a bundle in the model repository, or nothing at all."""

import dataclasses
import importlib.metadata
import json
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from export import BuildError, Progress, ToleranceError, openvino, silent, tensorrt
from export.card import CARD, model_card
from export.graphs import finish_graph, step_graph
from export.options import BF16_OPSET, DEFAULTS, OPSET, TOLERANCES, Options, PlanOptions, Tolerance
from export.packets import in_whole_packets
from export.parity import BATCH, Figures, compare_batches, compare_engines, measure_parity, seconds_a_step
from export.precision import DTYPES, widened
from export.rows import rows_are_independent
from export.sums import summed_by_products
from export.tensorrt_libraries import LIBRARIES
from export.threads import are_cut
from serving.bundle import (
    MANIFEST,
    PARITY,
    REPOSITORY,
    Bundle,
    EngineFile,
    Manifest,
    SealedFile,
    Student,
    bundle_folder,
    decoded,
    file_digest,
    load_bundle,
    seal,
)
from serving.engines import EngineError, StepEngine, open_as_built
from serving.engines.onnxruntime import OnnxRuntimeEngine
from serving.engines.openvino import lacking, the_core
from serving.folders import Busy, replacing
from serving.repository import prepare_repository
from training.checkpoint import check_chosen, find_checkpoint, goes_on, load_model, phases_of, unfinished
from training.family import Family
from training.lineage import ancestors
from training.models import load_family

KINDS = ("random", "step", "end_to_end", "onnx", "batches")  # of parity figures; a GPU has one of the last two
ON_GRAPHS = "Compared in ONNX Runtime, on the graphs that the plans were made from; the plans were not run."
NO_TF32 = "Compared on a CPU, which has no TF32: these differences are those of float32."
UNTRAINED = (
    ". So does one that predicts noise and was hardly trained: near the last timestep rounding is divided by alpha"
)
WEIGHTS = ".bin"  # of a graph "step.xml" they are in "step.bin"
ANCESTRY = ("digest", "data", "imported", "elsewhere")  # of each of a checkpoint's ancestors
ON_CPUS = ("onnx", "openvino")  # targets that run there
TOOLS = ("torch", "diffusers", "onnx", "onnxscript", "numpy")


def build(
    model: str,
    checkpoint: Path,
    repository: Path = REPOSITORY,
    options: Options = DEFAULTS,
    progress: Progress = silent,
) -> Bundle:
    """Export a checkpoint's graphs, compare them with PyTorch, and put the bundle in its place.

    A repository that has no folder for the model gets one like medgen's own. Whatever fails, the bundle
    that was there before stays as it was.

    Raises:
        CheckpointError: the checkpoint is missing or broken, or of another model, or what is chosen is not possible.
        BuildError: the checkpoint's training was not through, the bundle is being built by
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
    if unknown := options.chosen.keys() - {name for model in checkpoints for name in choosable(model, options.chosen)}:
        (model, *_) = checkpoints
        check_chosen(load_family(model), {name: options.chosen[name] for name in unknown})
    loaded = {}
    found = {model: find_checkpoint(path) for model, path in checkpoints.items()}  # a run may write another meanwhile
    for model, checkpoint in checkpoints.items():
        progress(f"loading {checkpoint}")
        chosen = options.chosen if len(checkpoints) == 1 else choosable(model, options.chosen)
        family, config = load_model(model, found[model], options.preset, chosen)
        refuse_unfinished(f"{checkpoint} was", unfinished(family, config), config, options)
        loaded[model] = family, describe(family, config, dataclasses.replace(options, chosen=chosen), target)
    check_manifests({model: manifest for model, (_, manifest) in loaded.items()})
    places = [bundle_folder(repository, model) for model in loaded]
    try:
        for model in loaded:
            prepare_repository(repository, model)
        with replacing(*places) as folders:
            for folder, (model, (family, manifest)) in zip(folders, loaded.items(), strict=True):
                write_compared(folder, family, manifest, found[model], options, progress)
    except Busy as error:
        raise BuildError(str(error)) from None
    return {model: load_bundle(place) for model, place in zip(loaded, places, strict=True)}


def choosable(model: str, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What is chosen for a chain, as far as it is for one of its stages."""
    return {name: value for name, value in chosen.items() if name in load_family(model).chosen_when_built}


def refuse_unfinished(what: str, so_far: str | None, config: Mapping[str, Any], options: Options) -> None:
    """Raises BuildError for a training that was not through."""
    if so_far and not options.unfinished:
        raise BuildError(
            f"{what} trained to {so_far}; go on with {goes_on(config)}, or build it as it is with --unfinished"
        )


def write_compared(
    folder: Path, family: Family, manifest: Manifest, checkpoint: Path, options: Options, progress: Progress
) -> None:
    """Fill a folder with a bundle that has been compared with PyTorch and is within the tolerance."""
    tolerance = options.tolerance or TOLERANCES[options.precision]
    bundle, graphs = write_engines(folder, family, manifest, options, progress)
    target = bundle.manifest.target
    with compared_engine(bundle, graphs) as engine:
        figures = measure_parity(family, engine, progress, min(BATCH, options.max_batch))
        if options.target in ON_CPUS:
            progress("comparing rows in company with rows alone")
            target = {**target, **seen_of_rows(family, bundle, engine, graphs, options)}
        if engine.buckets is not None:
            figures |= compare_every_batch(family, engine, engine.buckets, bundle, graphs, progress)
    check(figures, tolerance, manifest)
    figures["checkpoint"] = str(checkpoint.absolute())
    (folder / PARITY).write_text(json.dumps(figures, indent=1) + "\n")
    parity = {name: figures[name] for name in KINDS if name in figures}
    limits = {name: limit for name, limit in dataclasses.asdict(tolerance).items() if limit is not None}
    notes = [NO_TF32] if manifest.precision == "tf32" and isinstance(engine, OnnxRuntimeEngine) else []
    notes += [ON_GRAPHS] if is_compared_by_graphs(manifest) else []
    if options.target == "openvino" and (warning := lacking(the_core(), manifest.precision)):
        notes.append(f"Compared where these differences are not those of {manifest.precision}: {warning}.")
    if notes:
        parity["note"] = " ".join(notes)
    manifest = dataclasses.replace(bundle.manifest, target=target, parity={**parity, "tolerance": limits})
    (folder / MANIFEST).write_text(manifest.to_json())
    (folder / CARD).write_text(model_card(manifest))
    seal(folder)


def note_rows(family: Family, bundle: Bundle, graphs: Mapping[str, onnx.ModelProto], options: Options) -> None:
    """Have a bundle that is not compared with PyTorch say what is seen of its rows."""
    target = {**bundle.manifest.target, **seen_of_rows(family, bundle, open_built(bundle), graphs, options)}
    (bundle.folder / MANIFEST).write_text(dataclasses.replace(bundle.manifest, target=target).to_json())
    seal(bundle.folder)


def seen_of_rows(
    family: Family, bundle: Bundle, engine: StepEngine, graphs: Mapping[str, onnx.ModelProto], options: Options
) -> dict[str, Any]:
    """For a target: whether a sample's bits are the same in every batch on a CPU, as far as is known and is seen here,
    and what here is. Nothing where no CPU can run it."""
    if engine.buckets is not None:  # on a GPU
        try:
            engine = OnnxRuntimeEngine(bundle)
        except EngineError:
            return {}
    most = options.max_batch
    cut = options.target == "onnx" and any(are_cut(for_onnxruntime(graph), most) for graph in graphs.values())
    independent = not cut and rows_are_independent(family, engine, most)
    return {"rows_are_independent": independent, "seen_on": engine.machine}


def describe_target(options: Options) -> dict[str, Any]:
    """A manifest's target; raises BuildError if the options do not go together or TensorRT cannot build here."""
    if options.precision == "bf16" and options.opset and options.opset < BF16_OPSET:
        raise BuildError(f"--opset {options.opset} has no bf16 convolutions; bf16 needs {BF16_OPSET} or more")
    target: dict[str, Any] = {"name": options.target}
    if options.target in LIBRARIES:
        target = tensorrt.describe_target(options.target, options.max_batch, options.plan)
    elif options.target == "openvino" and options.precision == "tf32":
        raise BuildError("--precision tf32 is for GPUs; --target openvino takes fp32, bf16 and fp16")
    elif options.target == "openvino":
        target = openvino.describe_target()
    if options.target not in LIBRARIES and options.plan != PlanOptions():
        raise BuildError("--workspace and --hardware-compatibility are for --target tensorrt")
    fused = options.fused is not False
    return {**target, "opset": options.opset or best_opset(target, options.precision, fused), "fused": fused}


def best_opset(target: Mapping[str, Any], precision: str, fused: bool) -> int:
    """The fastest for a target: one with Attention, if that becomes a layer of TensorRT's own (in half precision)."""
    opset = BF16_OPSET if precision == "bf16" else OPSET
    if target["name"] in LIBRARIES and precision in DTYPES and fused:
        return LIBRARIES[target["name"]].native_opset(target) or opset
    return opset


def describe(family: Family, config: Mapping[str, Any], options: Options, target: Mapping[str, Any]) -> Manifest:
    """The manifest of a family's bundle, without the engine files and the parity figures."""
    origin = {
        key: config[key]
        for key in ("digest", "packed_from", "data", "phase", "step", "seed", "prior", "learnt_through", "imported")
        if key in config
    }
    origin |= {key: config[key] for key in ("sites", "elsewhere", "private", "vgg16_sha256") if config.get(key)}
    origin["steps"] = dict(zip(phases_of(family, config), family.preset.steps, strict=False))
    if before := ancestors(config):
        # No more than of its own weights: summaries name files.
        origin["ancestors"] = [{key: each[key] for key in ANCESTRY if key in each} for each in before]
    if options.chosen:
        origin["chosen"] = dict(options.chosen)
    if licence := options.license or config.get("license"):
        origin["license"] = licence
    if so_far := unfinished(family, config):
        origin["unfinished"] = so_far
    if family.facts:
        origin["facts"] = dict(family.facts)
    return Manifest(
        model=family.name,
        preset=config.get("preset_name", "custom"),
        sample_shape=family.sample_shape,
        noise_channels=family.noise_channels,
        condition=family.condition,
        outputs=family.outputs,
        schedule=family.preset.schedule,
        default_solver=family.preset.default_solver,
        default_steps=family.preset.default_steps,
        notices=family.notices,
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
        student=decoded(Student, config["student"], "student") if config.get("student") else None,
    )


def write_engines(
    folder: Path, family: Family, manifest: Manifest, options: Options, progress: Progress = silent
) -> tuple[Bundle, dict[str, onnx.ModelProto]]:
    """A bundle that nothing has been compared with yet, and the graphs that it was made from."""
    if options.target == "tensorrt" and options.fused is None:
        return write_faster(folder, family, manifest, options, progress)
    graphs = {}
    makers = {"finish": finish_graph} if manifest.schedule is None else {"step": step_graph, "finish": finish_graph}
    for name, graph in makers.items():
        progress(f"exporting the {name} graph")
        graphs[name] = graph(family, manifest.target["opset"], manifest.target["fused"], options.precision)
    check_outputs(graphs["finish"], manifest)
    return write_bundle(folder, manifest, engine_files(graphs, manifest, options.plan, progress)), graphs


def check_outputs(graph: onnx.ModelProto, manifest: Manifest) -> None:
    """Raises BuildError if the finish graph's outputs are not of the manifest's types and shapes, as engines take."""
    for given, output in zip(graph.graph.output, manifest.outputs, strict=True):
        kind = given.type.tensor_type
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        shape = tuple(side.dim_value for side in kind.shape.dim[1:])
        if (dtype, shape) != (output.dtype, tuple(output.shape)):
            raise BuildError(
                f"{manifest.model}'s finish gives {output.name} as {dtype} {list(shape)} of each sample, and its "
                f"outputs say {output.dtype} {list(output.shape)}"
            )


def write_faster(
    folder: Path, family: Family, manifest: Manifest, options: Options, progress: Progress
) -> tuple[Bundle, dict[str, onnx.ModelProto]]:
    """The faster on this GPU of the bundles with and without fused operators; its target says how fast both are.

    Plugins take one layout alone, and TensorRT does not fuse across them, so which is faster is to be measured.
    """
    made = {}
    seconds = {}
    for way, fused in (("fused", True), ("plain", False)):
        target = {**manifest.target, "fused": fused}
        target["opset"] = options.opset or best_opset(target, options.precision, fused)
        aside = folder / way
        aside.mkdir()
        chosen = dataclasses.replace(options, fused=fused)
        made[way] = write_engines(aside, family, dataclasses.replace(manifest, target=target), chosen, progress)
        progress(f"timing the {way} plans")
        seconds[way] = seconds_a_step(family, open_built(made[way][0]), options.max_batch)
    best = min(seconds, key=lambda way: seconds[way])
    bundle, graphs = made[best]
    files = {engine.file: (bundle.folder / engine.file).read_bytes() for engine in bundle.manifest.engines.values()}
    timed = {**bundle.manifest.target, "timed_batch": options.max_batch, "seconds_a_step": seconds}
    manifest = dataclasses.replace(manifest, target=timed)
    for way in made:
        shutil.rmtree(folder / way)
    return write_bundle(folder, manifest, files), graphs


def engine_files(
    graphs: Mapping[str, onnx.ModelProto], manifest: Manifest, plan: PlanOptions, progress: Progress = silent
) -> dict[str, bytes]:
    """What the manifest's target runs, by file name."""
    if manifest.target["name"] in LIBRARIES:
        return tensorrt.build_plans(graphs, manifest, plan, progress)
    if manifest.target["name"] == "openvino":
        return openvino.representations(graphs, manifest)
    return onnx_files(graphs)


def onnx_files(graphs: Mapping[str, onnx.ModelProto]) -> dict[str, bytes]:
    """What ONNX Runtime runs, by file name."""
    return {f"{name}.onnx": for_onnxruntime(graph).SerializeToString() for name, graph in graphs.items()}


def for_onnxruntime(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The graph, written so that a row's bits depend on the batch as little as can be."""
    return in_whole_packets(summed_by_products(graph))


def write_bundle(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Bundle:
    """Put engine files, such as "step.onnx", and a manifest that names them into a folder."""
    for file, content in files.items():
        (folder / file).write_bytes(content)
    sealed = {file: SealedFile(file, file_digest(folder / file)) for file in files}
    engines = {
        Path(file).stem: EngineFile(file, digest.sha256, sealed.get(f"{Path(file).stem}{WEIGHTS}"))
        for file, digest in sealed.items()
        if not file.endswith(WEIGHTS)
    }
    (folder / MANIFEST).write_text(dataclasses.replace(manifest, engines=engines).to_json())
    seal(folder)
    return load_bundle(folder)


def is_compared_by_graphs(manifest: Manifest) -> bool:
    """Whether a build compares the graphs with PyTorch, since the plans may be for GPUs that are elsewhere."""
    name = manifest.target["name"]
    return name in LIBRARIES and LIBRARIES[name].parity_on_onnx


@contextmanager
def compared_engine(bundle: Bundle, graphs: Mapping[str, onnx.ModelProto]) -> Iterator[StepEngine]:
    """What a build compares with PyTorch."""
    if is_compared_by_graphs(bundle.manifest):
        with on_onnx_runtime(bundle, graphs) as engine:
            yield engine
    else:
        yield open_built(bundle)


@contextmanager
def on_onnx_runtime(bundle: Bundle, graphs: Mapping[str, onnx.ModelProto]) -> Iterator[OnnxRuntimeEngine]:
    """The graphs that a bundle's plans were made from, in ONNX Runtime on the CPU."""
    manifest = dataclasses.replace(bundle.manifest, target={"name": "onnx"})
    if manifest.precision == "bf16":
        graphs = {name: widened(graph) for name, graph in graphs.items()}
    with tempfile.TemporaryDirectory(dir=bundle.folder) as folder:
        yield OnnxRuntimeEngine(write_bundle(Path(folder), manifest, onnx_files(graphs)))


def open_built(bundle: Bundle) -> StepEngine:
    """The engine of a bundle, to be compared step by step."""
    try:
        engine = open_as_built(bundle)
    except EngineError as error:
        if (bundle.manifest.target["name"], bundle.manifest.precision) == ("onnx", "bf16"):
            raise BuildError(
                "ONNX Runtime has no bf16 convolutions here, and its CPU has none anywhere; --precision fp16 runs on "
                f"it, and bf16 is for --target openvino and tensorrt ({error})"
            ) from error
        raise
    assert isinstance(engine, StepEngine)
    return engine


def compare_every_batch(
    family: Family,
    engine: StepEngine,
    batches: Sequence[int],
    bundle: Bundle,
    graphs: Mapping[str, onnx.ModelProto],
    progress: Progress,
) -> dict[str, Figures]:
    """How far a GPU's engine is, in each batch that it pads to, from ONNX Runtime's CPU on the same graphs, as "onnx".

    Or, as "batches", from PyTorch, which where a network cuts at a threshold can decide as they do.
    """
    if family.has_threshold:
        return {"batches": compare_batches(family, engine, batches, progress)}
    with on_onnx_runtime(bundle, graphs) as reference:
        return {"onnx": compare_engines(family, engine, reference, batches, progress)}


def check(figures: Figures, tolerance: Tolerance, manifest: Manifest) -> None:
    """Raise ToleranceError, naming the figure, if one is beyond the tolerance."""
    for kind, name, difference, limit in limited(figures, tolerance, manifest):
        if not difference <= limit:
            other = "ONNX Runtime" if kind == "onnx" else "PyTorch"
            raise ToleranceError(
                f"{kind.replace('_', ' ')}: {name} differs from {other} by {difference:.2e}, tolerance {limit:.2e}"
                f"{UNTRAINED if is_imported_noise(manifest) else ''}"
            )


def is_imported_noise(manifest: Manifest) -> bool:
    schedule = manifest.schedule
    return "imported" in manifest.checkpoint and schedule is not None and schedule.prediction == "epsilon"


def limited(
    figures: Mapping[str, Any], tolerance: Tolerance, manifest: Manifest
) -> Iterator[tuple[str, str, float, float]]:
    """Each figure with its kind, the tensor's name, and its limit."""
    masks = [output.name for output in manifest.outputs if output.labels]
    descends = manifest.schedule is not None and manifest.schedule.process == "descent"
    for kind in KINDS:
        for name, difference in figures.get(kind, {}).items():
            yield kind, name, difference, tolerance.of(kind, name, masks, descends)
