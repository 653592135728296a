"""ONNX Runtime on an NVIDIA GPU, where onnxruntime-gpu is installed and finds one."""

from collections.abc import Mapping

import onnxruntime

from serving.bundle import Bundle, buckets
from serving.engines import EngineError
from serving.engines.device import Device, DeviceArray, NoGpuError
from serving.engines.gpu import GpuEngine
from serving.engines.memory import in_plain_words
from serving.engines.onnxruntime import open_session

CUDA = "CUDAExecutionProvider"


def is_promised() -> bool:
    """Whether ONNX Runtime has a CUDA provider; onnxruntime-gpu has one on machines without a GPU too."""
    return CUDA in onnxruntime.get_available_providers()


class OnnxRuntimeCudaEngine(GpuEngine):
    """Runs ``step.onnx`` and ``finish.onnx`` on GPU ``number``, in the device's stream and on its arrays.

    ONNX Runtime promises nothing about work that its caller captures (its pull request 32081 asks for that), and on an
    H200 did it where all nodes are on the GPU and nothing takes memory meanwhile: README.md has what was seen. Its own
    option ``enable_cuda_graph`` captures single steps, for each set of addresses; it is not used.
    """

    def __init__(self, bundle: Bundle, number: int) -> None:
        if not is_promised():
            raise NoGpuError("this ONNX Runtime has no CUDA provider; install onnxruntime-gpu in its place")
        device = Device(number)
        onnxruntime.preload_dlls()  # CUDA and cuDNN from pip's packages, which the dynamic loader does not look into
        super().__init__(bundle, device, buckets(bundle.manifest.max_batch))
        options = {
            "device_id": number,
            "user_compute_stream": str(device.stream),
            # An exhaustive search of convolution algorithms goes by the clock: each process might choose others.
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": int(bundle.manifest.precision == "tf32"),
        }
        self._sessions = {
            name: open_session(bundle.engine_path(name), (CUDA, options)) for name in bundle.manifest.engines
        }
        if any(CUDA not in session.get_providers() for session in self._sessions.values()):
            raise NoGpuError("ONNX Runtime's CUDA provider does not load; it needs the CUDA libraries and cuDNN")
        self._without_waiting = onnxruntime.RunOptions()
        self._without_waiting.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self._bindings: dict[tuple[object, ...], onnxruntime.IOBinding] = {}
        self.prepare()

    def __del__(self) -> None:
        # Graphs use the sessions' memory, and their work is on the device's stream, which would be destroyed before.
        for name in ("_graphs", "_bindings", "_sessions"):
            vars(self).pop(name, None)

    def enqueue(self, graph: str, tensors: Mapping[str, DeviceArray]) -> None:
        try:
            self._sessions[graph].run_with_iobinding(self._binding(graph, tensors), self._without_waiting)
        except Exception as error:  # ONNX Runtime's own classes share no better base
            raise EngineError(f"ONNX Runtime failed in the {graph} graph: {in_plain_words(str(error))}") from error

    def _binding(self, graph: str, tensors: Mapping[str, DeviceArray]) -> onnxruntime.IOBinding:
        """The graph's inputs and outputs at these addresses; there are few, as all buffers go round."""
        bucket, *_ = tensors["sample"].shape
        key = graph, bucket, *(array.address for array in tensors.values())
        if key not in self._bindings:
            session = self._sessions[graph]
            binding = self._bindings[key] = session.io_binding()
            for nodes, bind in (
                (session.get_inputs(), binding.bind_input),
                (session.get_outputs(), binding.bind_output),
            ):
                for node in nodes:
                    array = tensors[node.name]
                    bind(node.name, "cuda", array.device, array.dtype.type, array.shape, array.address)
        return self._bindings[key]
