"""OpenVINO on the CPU."""

import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Bundle
from serving.engines import EngineError
from serving.engines.cpu import cores, instruction_sets, threads
from serving.engines.named_graphs import NamedGraphs
from serving.kept import KeptFile

# Of pieces. With a dynamic one OpenVINO takes 1.7 times as long. Each takes 120 MB a stream for PIG's `small`;
# two pieces of 4 at once, instead of four of 2, would save 6 % of the time.
SIZES = (2, 1)
STREAMS = 2  # each with half of the threads: halves that need not wait for one another take 0.87 of the time
UNITS = {"bf16": "avx512_bf16 or AMX", "fp16": "avx512_fp16"}


class OpenVinoEngine(NamedGraphs):
    """Runs ``step.xml`` and ``finish.xml``, with compiled models for pieces of each of ``SIZES``.

    Two pieces of a batch are computed at once, a row that is left over by all threads. Each model is made when it is
    first needed, of the graph that was there when the bundle was opened, and kept in the user's cache for the next
    process.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        manifest = bundle.manifest
        self._openvino = load(manifest.model)
        self._bundle = bundle
        self._core = the_core()
        self._threads = threads()
        self._streams = STREAMS if self._threads % STREAMS == 0 else 1
        # Some sums are cut into as many parts as a stream has threads, and kernels are chosen by what the CPU can.
        library = f"OpenVINO {self._openvino.__version__.partition('-')[0]}"
        cpu = f"{self._core.get_property('CPU', 'FULL_DEVICE_NAME')} with {instruction_sets()}"
        self.machine = f"{library}, {cpu}, {self._threads} threads in {self._streams} streams"
        if warning := lacking(self._core, manifest.precision):
            logging.getLogger(__name__).warning("%s: %s", manifest.model, warning)
        self._graphs = {name: self._read(name) for name in manifest.engines}
        self._requests: dict[tuple[str, int, int], list[Any]] = {}

    def run(self, name: str, outputs: list[str], feeds: Mapping[str, NDArray | None]) -> list[NDArray]:
        rows = len(feeds["sample"])  # type: ignore[arg-type]
        rounds = rounds_of(rows, self._streams)
        pieces = [piece for pieces in rounds for piece in self._run_round(name, outputs, feeds, pieces)]
        return pieces[0] if len(pieces) == 1 else [np.concatenate(parts) for parts in zip(*pieces, strict=True)]

    def _run_round(
        self, name: str, outputs: list[str], feeds: Mapping[str, NDArray | None], pieces: list[slice]
    ) -> list[list[NDArray]]:
        """The outputs of each piece; they are of one size, and are computed at once."""
        requests = self._requests_for(name, pieces[0].stop - pieces[0].start, len(pieces))
        try:
            given = [
                [np.ascontiguousarray(feeds[name_of(tensor)][piece]) for tensor in request.model_inputs]  # type: ignore[index]
                for request, piece in zip(requests, pieces, strict=True)
            ]
            with ExitStack() as running:  # none is left so, even where another one fails
                for request, values in zip(requests, given, strict=True):
                    request.start_async(values, share_inputs=True)
                    running.callback(request.wait)
            return [
                [np.array(request.get_output_tensor(number).data) for number in range(len(outputs))]
                for request in requests
            ]
        except Exception as error:  # OpenVINO's own are RuntimeErrors, and what is wrong with an input is anything
            raise EngineError(f"OpenVINO failed in the {name} graph: {error}") from error

    def _requests_for(self, name: str, size: int, streams: int) -> list[Any]:
        key = name, size, streams
        if key not in self._requests:
            compiled = self._compiled(*key)
            self._requests[key] = [compiled.create_infer_request() for _ in range(streams)]
        return self._requests[key]

    def _read(self, name: str) -> Any:
        path = self._bundle.engine_path(name)
        try:
            return self._core.read_model(path)
        except RuntimeError as error:
            raise self._not_opened(name, error) from error

    def _not_opened(self, name: str, error: Exception) -> EngineError:
        path, built = self._bundle.engine_path(name), self._bundle.manifest.target.get("openvino")
        return EngineError(f"OpenVINO cannot open {path}, which OpenVINO {built} wrote: {error}")

    def _compiled(self, name: str, size: int, streams: int) -> Any:
        options = {
            "INFERENCE_PRECISION_HINT": "dynamic",  # each node in what the graph says
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": streams,
            # Without it two threads were seen to be as slow as one. Where a container has less than all cores, though,
            # it would be on the first of them, and so would all others.
            "ENABLE_CPU_PINNING": self._threads == cores(os.sched_getaffinity(0)),
        }
        # OpenVINO's own cache has no digest, and would compute with weights that were damaged on the disk.
        kept = KeptFile(f"{hashlib.sha256(self._key(name, size, options).encode()).hexdigest()[:32]}.openvino")
        try:
            if (content := kept.read()) is not None:
                with suppress(RuntimeError):  # of another build of the library, or another CPU
                    return self._core.import_model(io.BytesIO(content), "CPU", options)
            model = self._graphs[name].clone()
            model.reshape({tensor: [size, *list(tensor.partial_shape)[1:]] for tensor in model.inputs})
            compiled = self._core.compile_model(model, "CPU", options)
        except Exception as error:
            raise self._not_opened(name, error) from error
        kept.write(compiled.export_model().getvalue())
        return compiled

    def _key(self, name: str, size: int, options: Mapping[str, Any]) -> str:
        """What a compiled model is good for."""
        engine = self._bundle.manifest.engines[name]
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        facts = [engine.sha256, engine.weights and engine.weights.sha256, size, options, self.machine, capabilities]
        return json.dumps([self._openvino.__version__, *facts])


def load(model: str) -> ModuleType:
    """The library. Raises EngineError where it is not installed, or does not load."""
    try:
        import openvino
    except ImportError as error:
        raise EngineError(f"{model} needs OpenVINO: pip install openvino ({error})") from None
    return openvino


@cache
def the_core() -> Any:
    """OpenVINO's only Core of this process, which never ends.

    Each gives the thread that makes it a stack for handlers of signals, and takes its memory away in the end. If two do
    not end in the order opposite to that of their making, the thread is left with one that is gone, and the next
    signal, Ctrl-C or the end of a child, kills the process without a word (2026.4).
    """
    import openvino

    return openvino.Core()


def lacking(core: Any, precision: str) -> str | None:
    """What it costs, if this CPU has no units that compute in a precision."""
    if precision not in UNITS or precision.upper() in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return None
    return (
        f"this CPU does not compute in {precision}, for which it needs {UNITS[precision]}: it computes in float32, of "
        "rounded weights, which is no faster than --precision fp32"
    )


def name_of(tensor: Any) -> str:
    """An input's name in the graph; the tensor itself may have others too."""
    return str(tensor.node.friendly_name)


def rounds_of(rows: int, streams: int) -> Iterator[list[slice]]:
    """Rows in rounds, each of pieces of one of ``SIZES``: as many as there are streams, or one."""
    first = 0
    while left := rows - first:
        pieces = streams if left >= streams else 1
        size = max(size for size in SIZES if pieces * size <= left)
        yield [slice(start, start + size) for start in range(first, first + pieces * size, size)]
        first += pieces * size
