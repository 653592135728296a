"""ONNX graphs -> plans of TensorRT, for the GPU that is here, or of TensorRT for RTX. Not measured on hardware."""

import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import onnx

from export import BuildError, Progress
from export.options import PlanOptions
from export.tensorrt_callbacks import make_monitor
from export.tensorrt_libraries import LIBRARIES
from export.tensorrt_parser import Reading
from serving.bundle import Manifest
from serving.engines.memory import in_plain_words
from serving.kept import KeptFile
from training.fit import stop_requests

if TYPE_CHECKING:
    import tensorrt as trt

LESS = "a smaller --workspace or --max-batch takes less"


def describe_target(name: str, max_batch: int, options: PlanOptions) -> dict[str, Any]:
    """A manifest's target for plans that are built here and now; ``name`` is one of ``LIBRARIES``.

    Raises BuildError if the library is not installed or is a version that does not do, EngineError if it needs a GPU
    and there is none, or one whose driver is too old for it.
    """
    return {"name": name, **LIBRARIES[name].describe(max_batch, options.hardware_compatibility)}


def build_plans(
    graphs: Mapping[str, onnx.ModelProto], manifest: Manifest, options: PlanOptions, progress: Progress
) -> dict[str, bytes]:
    """Files of plans, such as "step.plan", of graphs by name.

    The manifest has the target that ``describe_target`` gave. Ctrl-C stops the library and raises KeyboardInterrupt.
    Raises BuildError if it cannot build a graph, naming the nodes that it does not know, and if there was no time left.
    """
    return {f"{name}.plan": build_plan(name, graph, manifest, options, progress) for name, graph in graphs.items()}


def build_plan(
    name: str, graph: onnx.ModelProto, manifest: Manifest, options: PlanOptions, progress: Progress
) -> bytes:
    target = manifest.target
    library = LIBRARIES[target["name"]]
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = library.load()
    library.before(graph, target)
    reading = Reading(library, name, library.prepared(graph, trt.__version__))
    builder, network = reading.builder, reading.network
    config = builder.create_builder_config()
    (config.set_flag if manifest.precision == "tf32" else config.clear_flag)(trt.BuilderFlag.TF32)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace * 2**30))
    library.configure(config, target)
    for batches in library.profiles(target):
        profile = builder.create_optimization_profile()
        for k in range(network.num_inputs):
            tensor = network.get_input(k)
            least, usual, most = (trt.Dims((batch, *tuple(tensor.shape)[1:])) for batch in batches)
            profile.set_shape(tensor.name, least, usual, most)
        config.add_optimization_profile(profile)
    timings = kept_timings(library.timings_name(target))
    if timings:
        use_timings(config, timings)
    with stop_requests() as stops:

        def goes_on() -> bool:
            return not stops and time.monotonic() < options.deadline

        monitor = make_monitor(trt, f"building {name}.plan", progress, goes_on)  # the library does not keep it alive
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
    if timings:
        timings.write(bytes(config.get_timing_cache().serialize()))
    if stops:
        raise KeyboardInterrupt
    if plan is None and time.monotonic() >= options.deadline:
        raise BuildError(f"there was no time left to build the {name} plan")
    if plan is None:
        said = "; ".join(reading.log.errors[-3:])
        raise BuildError(f"{library.title} cannot build the {name} plan: {in_plain_words(said, LESS)}")
    return bytes(plan)


def kept_timings(name: str | None) -> KeptFile | None:
    """Where timings of kernels are kept from build to build."""
    return KeptFile(f"{re.sub(r'[^a-z0-9.]+', '-', name.lower())}.timings") if name else None


def use_timings(config: "trt.IBuilderConfig", file: KeptFile) -> None:
    kept = config.create_timing_cache(file.read() or b"")
    if kept is None or not config.set_timing_cache(kept, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
