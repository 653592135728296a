"""ONNX Runtime on the CPU."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from serving.bundle import Bundle
from serving.engines import EngineError
from serving.engines.cpu import instruction_sets, threads
from serving.engines.named_graphs import NamedGraphs


class OnnxRuntimeEngine(NamedGraphs):
    """Runs ``step.onnx`` and ``finish.onnx``."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.machine = machine()
        self._sessions = {name: open_session(bundle.engine_path(name)) for name in bundle.manifest.engines}

    def run(self, name: str, outputs: list[str], feeds: Mapping[str, NDArray | None]) -> list[NDArray]:
        session = self._sessions[name]
        try:
            return session.run(outputs, {node.name: feeds[node.name] for node in session.get_inputs()})
        except Exception as error:  # ONNX Runtime's own classes share no better base
            raise EngineError(f"ONNX Runtime failed in the {name} graph: {error}") from error


def machine() -> str:
    """Another version, more threads or other kernels may cut a batch in other places."""
    return f"ONNX Runtime {onnxruntime.__version__}, {instruction_sets()}, {threads()} threads"


def open_session(path: Path, *gpu: tuple[str, dict[str, Any]]) -> onnxruntime.InferenceSession:
    """A session on the CPU, or on the GPU with the provider and its options that ``gpu`` names."""
    options = onnxruntime.SessionOptions()
    options.use_deterministic_compute = True
    options.intra_op_num_threads = threads()
    # Threads that spin between operators take the cores from all else that runs: twice as slow on a busy machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(path, options, providers=[*gpu, "CPUExecutionProvider"])
    except Exception as error:
        raise EngineError(f"ONNX Runtime cannot open {path}: {error}") from error
