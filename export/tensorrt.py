"""ONNX graphs -> TensorRT plans for the GPU that is here, with TensorRT 10.9 or newer. Not measured on hardware."""

import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsInt

import onnx

from export import BuildError, Progress
from export.options import PlanOptions
from kernels.language import INSTALLED
from kernels.onnx_functions import DOMAIN, split_large_groups
from kernels.plugin import register_plugins
from serving.bundle import Manifest, buckets
from serving.engines.device import Device
from serving.engines.memory import in_plain_words
from serving.user import cache_folder
from training.fit import stop_requests

if TYPE_CHECKING:
    import tensorrt as trt

LESS = "a smaller --workspace or --max-batch takes less"


def describe_target(max_batch: int, options: PlanOptions) -> dict[str, Any]:
    """A manifest's target for plans that are built here and now.

    Raises BuildError if TensorRT is not installed or is a version that does not do, EngineError if there is no GPU.
    """
    try:
        import tensorrt as trt
    except ImportError as error:
        raise BuildError(f"TensorRT is not installed: pip install tensorrt ({error})") from None
    version = trt.__version__
    major, minor = (int(number) for number in version.split(".")[:2])
    if (major, minor) < (10, 9) or (major, minor) == (10, 14):
        raise BuildError(f"TensorRT is {version}; plugins need 10.9 or newer, and not 10.14: pip install -U tensorrt")
    device = Device()
    return {
        "name": "tensorrt",
        "tensorrt": version,
        "gpu": device.name,
        "compute_capability": ".".join(map(str, device.compute_capability)),
        "driver": driver_version(),
        "hardware_compatibility": options.hardware_compatibility,
        "buckets": list(buckets(max_batch)),
    }


def driver_version() -> str:
    """NVIDIA's driver, such as "580.65.06"."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, check=True, capture_output=True, text=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def build_plans(
    graphs: Mapping[str, onnx.ModelProto], manifest: Manifest, options: PlanOptions, progress: Progress
) -> dict[str, bytes]:
    """Files of plans, such as "step.plan", of graphs by name, with one optimisation profile for each bucket.

    The manifest has the target that ``describe_target`` gave. Ctrl-C stops TensorRT and raises KeyboardInterrupt.
    Raises BuildError if TensorRT cannot build a graph, naming the node if it is one that it does not know, and if there
    was no time left.
    """
    return {
        f"{name}.plan": build_plan(name, prepared(graph), manifest, options, progress) for name, graph in graphs.items()
    }


def prepared(graph: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in the form that TensorRT takes: it reads and writes bytes in nothing but casts to and from floats."""
    graph = onnx.ModelProto.FromString(graph.SerializeToString())
    split_large_groups(graph)
    nodes = [cast_once(value.name, graph) for value in graph.graph.input if is_bytes(value)]
    for node in graph.graph.node:
        if node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.UINT8:
            between = f"{node.output[0]}_float"
            nodes.append(cast_to_float(node.input[0], between))
            node.input[0] = between
        nodes.append(node)
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    return graph


def is_bytes(value: onnx.ValueInfoProto) -> bool:
    return value.type.tensor_type.elem_type == onnx.TensorProto.UINT8


def cast_once(name: str, graph: onnx.ModelProto) -> onnx.NodeProto:
    """The node that makes floats of an input; all others of the graph read those from now on."""
    floats = f"{name}_float"
    for node in graph.graph.node:
        node.input[:] = [floats if given == name else given for given in node.input]
    return cast_to_float(name, floats)


def cast_to_float(name: str, floats: str) -> onnx.NodeProto:
    return onnx.helper.make_node("Cast", [name], [floats], to=onnx.TensorProto.FLOAT)


def build_plan(
    name: str, graph: onnx.ModelProto, manifest: Manifest, options: PlanOptions, progress: Progress
) -> bytes:
    import tensorrt as trt

    if any(node.domain == DOMAIN for node in graph.graph.node):
        register(manifest.target)
    log = make_log()
    trt.init_libnvinfer_plugins(log, "")
    builder = trt.Builder(log)
    network = builder.create_network(network_flags())
    parser = trt.OnnxParser(network, log)
    if not parser.parse(graph.SerializeToString()):
        raise BuildError(f"TensorRT cannot read the {name} graph: {parser_errors(parser)}")
    config = builder.create_builder_config()
    (config.set_flag if manifest.precision == "tf32" else config.clear_flag)(trt.BuilderFlag.TF32)
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options.workspace * 2**30))
    level = trt.HardwareCompatibilityLevel.__members__[options.hardware_compatibility.upper()]
    config.hardware_compatibility_level = level
    for bucket in manifest.target["buckets"]:
        profile = builder.create_optimization_profile()
        for k in range(network.num_inputs):
            tensor = network.get_input(k)
            shape = tensor.shape
            shape[0] = bucket
            profile.set_shape(tensor.name, shape, shape, shape)
        config.add_optimization_profile(profile)
    timings = timings_file(manifest.target)
    use_timings(config, timings)
    with stop_requests() as stops:

        def goes_on() -> bool:
            return not stops and time.monotonic() < options.deadline

        monitor = make_monitor(f"building {name}.plan", progress, goes_on)  # TensorRT does not keep it alive
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
    keep_timings(config, timings)
    if stops:
        raise KeyboardInterrupt
    if plan is None and time.monotonic() >= options.deadline:
        raise BuildError(f"there was no time left to build the {name} plan")
    if plan is None:
        raise BuildError(f"TensorRT cannot build the {name} plan: {in_plain_words('; '.join(log.errors[-3:]), LESS)}")
    return bytes(plan)


def register(target: Mapping[str, Any]) -> None:
    """Have TensorRT find the fused operators, compiled for the oldest GPU that the plans are to run on."""
    if not INSTALLED:
        raise BuildError("the fused operators need Triton: pip install triton, or build with --no-fuse")
    capability = int(target["compute_capability"].replace(".", ""))
    register_plugins(80 if target["hardware_compatibility"] == "ampere_plus" else capability)


def network_flags() -> int:
    """Types as the graph has them, and kernels of plugins that were compiled before."""
    import tensorrt as trt

    flags = trt.NetworkDefinitionCreationFlag
    return 1 << int(flags.STRONGLY_TYPED) | 1 << int(flags.PREFER_AOT_PYTHON_PLUGINS)


def parser_errors(parser: "trt.OnnxParser") -> str:
    errors = [parser.get_error(k) for k in range(parser.num_errors)]
    return "; ".join(f"node {error.node_name()} ({error.node_operator()}): {error.desc()}" for error in errors)


def timings_file(target: Mapping[str, Any]) -> Path:
    """Where TensorRT's timings of kernels are kept from build to build."""
    name = re.sub(r"[^a-z0-9.]+", "-", f"{target['gpu']} tensorrt {target['tensorrt']}".lower())
    return cache_folder() / f"{name}.timings"


def use_timings(config: "trt.IBuilderConfig", file: Path) -> None:
    kept = config.create_timing_cache(file.read_bytes() if file.exists() else b"")
    if kept is None or not config.set_timing_cache(kept, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def keep_timings(config: "trt.IBuilderConfig", file: Path) -> None:
    aside = file.with_suffix(f".{os.getpid()}")
    with suppress(OSError):  # without them the next build takes longer, that is all
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(bytes(config.get_timing_cache().serialize()))
        aside.replace(file)


def make_log() -> Any:
    """A logger for TensorRT that keeps its errors, which its calls do not return."""
    import tensorrt as trt

    severities = trt.ILogger.Severity

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            if severity in (severities.INTERNAL_ERROR, severities.ERROR):
                self.errors.append(msg)

    return Log()


def make_monitor(line: str, progress: Progress, goes_on: Callable[[], bool]) -> "trt.IProgressMonitor":
    """Passes on how far TensorRT is, and ends its work once it is not to go on."""
    import tensorrt as trt

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.lock = threading.Lock()  # TensorRT calls from several threads

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: SupportsInt) -> None:
            with self.lock:
                self.steps[phase_name] = int(num_steps)
                progress(f"{line}: {phase_name}", 0, int(num_steps))

        def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
            with self.lock:
                progress(f"{line}: {phase_name}", int(step) + 1, self.steps[phase_name])
                return goes_on()

        def phase_finish(self, phase_name: str) -> None:
            with self.lock:
                del self.steps[phase_name]

    return Monitor()
