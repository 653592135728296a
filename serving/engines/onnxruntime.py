"""ONNX Runtime: on the CPU everywhere, on an NVIDIA GPU where onnxruntime-gpu finds one."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from serving.bundle import Bundle
from serving.engines import EngineError, Float32, History, StepEngine


class OnnxRuntimeEngine(StepEngine):
    """Runs ``step.onnx`` and ``finish.onnx``.

    On the CPU a sample's bits are the same in every batch. On a GPU they are the same for equal batch sizes.
    """

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self._sessions = {name: _open(bundle.engine_path(name)) for name in manifest.engines}
        self._outputs = [output.name for output in manifest.outputs]

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

    def _run(self, name: str, outputs: list[str], feeds: dict[str, NDArray | None]) -> list[NDArray]:
        session = self._sessions[name]
        try:
            return session.run(outputs, {node.name: feeds[node.name] for node in session.get_inputs()})
        except Exception as error:  # ONNX Runtime's own classes share no better base
            raise EngineError(f"ONNX Runtime failed in the {name} graph: {error}") from error


def _open(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.use_deterministic_compute = True
    # Threads that spin between operators take the cores from all else that runs: twice as slow on a busy machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # An exhaustive search of convolution algorithms goes by the clock: each process might choose others.
    cuda = {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": 0}
    providers: list[Any] = ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        providers = [("CUDAExecutionProvider", cuda), *providers]
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:
        raise EngineError(f"ONNX Runtime cannot open {path}: {error}") from error
