"""OpenVINO on the CPU."""

import logging
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Bundle, buckets
from serving.engines import EngineError, Float32, History, StepEngine
from serving.engines.threads import threads
from serving.user import cache_folder

UNITS = {"bf16": "avx512_bf16 or AMX", "fp16": "avx512_fp16"}


class OpenVinoEngine(StepEngine):
    """Runs ``step.xml`` and ``finish.xml``, with a compiled model for batches of 1, 2, 4, ...

    Each is made when it is first needed, and kept in the user's cache for the next process. Other batches are done in
    pieces: their rows are those of the pieces, and on a CPU a batch costs about as much as its rows.
    """

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        openvino = load(manifest.model)
        self._bundle = bundle
        self._core = openvino.Core()
        if warning := lacking(self._core, manifest.precision):
            logging.getLogger(__name__).warning("%s: %s", manifest.model, warning)
        self._sizes = buckets(manifest.max_batch)[::-1]
        self._outputs = [output.name for output in manifest.outputs]
        self._requests: dict[tuple[str, int], Any] = {}

    def step(
        self,
        sample: Float32,
        history: History,
        noise: Float32,
        coeffs: Float32,
        condition: NDArray[np.uint8] | None = None,
    ) -> tuple[Float32, Float32]:
        states = {f"history_{k}": state for k, state in enumerate(history, start=1)}
        feeds = {"sample": sample, **states, "noise": noise, "coeffs": coeffs, "condition": condition}
        sample_next, prediction = self._run("step", ["sample_next", "prediction"], feeds)
        return sample_next, prediction

    def finish(self, sample: Float32, condition: NDArray[np.uint8] | None = None) -> dict[str, NDArray]:
        arrays = self._run("finish", self._outputs, {"sample": sample, "condition": condition})
        return dict(zip(self._outputs, arrays, strict=True))

    def _run(self, name: str, outputs: list[str], feeds: Mapping[str, NDArray | None]) -> list[NDArray]:
        rows = len(feeds["sample"])  # type: ignore[arg-type]
        pieces = [self._run_piece(name, outputs, feeds, piece) for piece in pieces_of(rows, self._sizes)]
        return pieces[0] if len(pieces) == 1 else [np.concatenate(parts) for parts in zip(*pieces, strict=True)]

    def _run_piece(
        self, name: str, outputs: list[str], feeds: Mapping[str, NDArray | None], piece: slice
    ) -> list[NDArray]:
        request = self._request(name, piece.stop - piece.start)
        try:
            given = [feeds[name_of(tensor)][piece] for tensor in request.model_inputs]  # type: ignore[index]
            request.infer([np.ascontiguousarray(values) for values in given], share_inputs=True)
            return [np.array(request.get_output_tensor(number).data) for number in range(len(outputs))]
        except Exception as error:  # OpenVINO's own are RuntimeErrors, and what is wrong with an input is anything
            raise EngineError(f"OpenVINO failed in the {name} graph: {error}") from error

    def _request(self, name: str, size: int) -> Any:
        if (name, size) not in self._requests:
            self._requests[name, size] = self._compiled(name, size).create_infer_request()
        return self._requests[name, size]

    def _compiled(self, name: str, size: int) -> Any:
        path = self._bundle.engine_path(name)
        options = {
            "INFERENCE_PRECISION_HINT": "dynamic",  # each node in what the graph says
            "INFERENCE_NUM_THREADS": threads(),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # another process on these cores would wait for them
            **cache_options(),
        }
        try:
            model = self._core.read_model(path)
            model.reshape({tensor: [size, *list(tensor.partial_shape)[1:]] for tensor in model.inputs})
            return self._core.compile_model(model, "CPU", options)
        except Exception as error:
            built = self._bundle.manifest.target.get("openvino")
            raise EngineError(f"OpenVINO cannot open {path}, which OpenVINO {built} wrote: {error}") from error


def load(model: str) -> ModuleType:
    """The library. Raises EngineError where it is not installed, or does not load."""
    try:
        import openvino
    except ImportError as error:
        raise EngineError(f"{model} needs OpenVINO: pip install openvino ({error})") from None
    return openvino


def lacking(core: Any, precision: str) -> str | None:
    """What it costs, if this CPU has no units that compute in a precision."""
    if precision not in UNITS or precision.upper() in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return None
    return (
        f"this CPU does not compute in {precision}, for which it needs {UNITS[precision]}: it rounds to it and "
        "computes in float32, which is no faster than --precision fp32"
    )


def name_of(tensor: Any) -> str:
    """An input's name in the graph; the tensor itself may have others too."""
    return str(tensor.node.friendly_name)


def cache_options() -> dict[str, str]:
    """Where compiled models are kept, if the user has a place for them."""
    try:
        return {"CACHE_DIR": str(cache_folder() / "openvino")}
    except OSError:
        return {}


def pieces_of(rows: int, sizes: tuple[int, ...]) -> Iterator[slice]:
    """Rows in pieces of these sizes, the largest of which come first."""
    first = 0
    for size in sizes:
        while rows - first >= size:
            yield slice(first, first + size)
            first += size
