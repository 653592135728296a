"""ONNX Runtime on the CPU."""

from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from serving.bundle import Bundle
from serving.engines import EngineError, Float32, History, StepEngine


class OnnxRuntimeEngine(StepEngine):
    """Runs ``step.onnx`` and ``finish.onnx``; a sample's bits are the same in every batch."""

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self._sessions = {name: open_session(bundle.engine_path(name)) for name in manifest.engines}
        self._outputs = [output.name for output in manifest.outputs]

    def step(
        self,
        sample: Float32,
        history: History,
        noise: Float32,
        coeffs: Float32,
        condition: NDArray[Any] | None = None,
    ) -> tuple[Float32, Float32]:
        states = {f"history_{k}": state for k, state in enumerate(history, start=1)}
        feeds = {"sample": sample, **states, "noise": noise, "coeffs": coeffs, "condition": condition}
        sample_next, prediction = self._run("step", ["sample_next", "prediction"], feeds)
        return sample_next, prediction

    def finish(self, sample: Float32, condition: NDArray[Any] | None = None) -> dict[str, NDArray]:
        arrays = self._run("finish", self._outputs, {"sample": sample, "condition": condition})
        return dict(zip(self._outputs, arrays, strict=True))

    def _run(self, name: str, outputs: list[str], feeds: dict[str, NDArray | None]) -> list[NDArray]:
        session = self._sessions[name]
        try:
            return session.run(outputs, {node.name: feeds[node.name] for node in session.get_inputs()})
        except Exception as error:  # ONNX Runtime's own classes share no better base
            raise EngineError(f"ONNX Runtime failed in the {name} graph: {error}") from error


def open_session(path: Path, *gpu: tuple[str, dict[str, Any]]) -> onnxruntime.InferenceSession:
    """A session on the CPU, or on the GPU with the provider and its options that ``gpu`` names."""
    options = onnxruntime.SessionOptions()
    options.use_deterministic_compute = True
    # Threads that spin between operators take the cores from all else that runs: twice as slow on a busy machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=[*gpu, "CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(f"ONNX Runtime cannot open {path}: {error}") from error
