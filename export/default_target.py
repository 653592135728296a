"""What a bundle is built for if nobody says."""

import importlib
import importlib.util
from collections.abc import Iterator

from serving.engines import EngineError
from serving.engines.device import Device


def default_targets(precision: str) -> Iterator[tuple[str, str]]:
    """Targets, the best first, and why; the next one is for where the one before misses the tolerance.

    Without a GPU OpenVINO comes before ONNX Runtime: with PIG's `small` in float32 it took 0.73 of the time, on two
    cores of an AMD EPYC with AVX-512. On other CPUs it was not measured.
    """
    if gpu := gpu_here():
        yield "onnx", f"there is a GPU here ({gpu}); --target tensorrt builds plans for it"
    elif precision == "tf32":
        yield "onnx", "tf32 is for GPUs, and there is none here"
    elif why_not := without_openvino():
        yield "onnx", f"there is no GPU here, and OpenVINO, which is faster on a CPU, {why_not}"
    else:
        yield "openvino", "there is no GPU here, and OpenVINO is the fastest engine for CPUs that is installed"
        if precision != "bf16":
            yield "onnx", "OpenVINO missed the tolerance here"


def without_openvino() -> str | None:
    """Why it cannot be used, if so."""
    if importlib.util.find_spec("openvino") is None:
        return "is not installed"
    try:
        importlib.import_module("openvino")
    except ImportError as error:
        return f"does not load ({error})"
    return None


def gpu_here() -> str | None:
    """The name of the GPU that bundles would be served on."""
    try:
        return Device().name
    except EngineError:
        return None
