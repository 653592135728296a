"""TensorRT for RTX: plans for many GPUs, whose kernels are made where they run, and kept for the next time."""

import importlib
import re
from typing import TYPE_CHECKING, Any, ClassVar

from serving.bundle import Bundle
from serving.engines.compatibility import check_capability
from serving.engines.device import Device
from serving.engines.tensorrt import TensorRTEngine
from serving.kept import KeptFile

if TYPE_CHECKING:
    import tensorrt as trt


class TensorRTForRTXEngine(TensorRTEngine):
    """Runs plans that have one profile for all batches. Not measured on hardware.

    Kernels are made for a bucket's shapes before its first run (EAGER): by default others take their place in the
    background, and with them the bits of samples would change half-way. They are kept in the user's cache folder, by
    plan and GPU; what was kept by another version or driver is not used.
    """

    title: ClassVar[str] = "TensorRT for RTX"
    module: ClassVar[str] = "tensorrt_rtx"

    def __init__(self, bundle: Bundle, number: int) -> None:
        self._kernels: dict[str, tuple[KeptFile, Any, Any]] = {}  # of each plan: the file, the configuration, the cache
        self._digests = {name: engine.sha256 for name, engine in bundle.manifest.engines.items()}
        super().__init__(bundle, number)
        for file, _, cache in self._kernels.values():
            file.write(bytes(cache.serialize()))

    def _check_gpu(self, bundle: Bundle, device: Device) -> None:
        check_capability(bundle.manifest, device.name, device.compute_capability)

    def check_capturable(self, bucket: int) -> None:
        for name in self._plans:
            context: Any = self._contexts[name, bucket]
            self._check(context.is_stream_capturable(self._device.stream), f"have the {name} plan captured")

    def _profile(self, bucket: int) -> int:
        return 0

    def _new_context(self, name: str, plan: "trt.ICudaEngine") -> "trt.IExecutionContext":
        if name not in self._kernels:
            self._kernels[name] = self._configure(name, plan)
        configuration: Any = self._kernels[name][1]
        context: trt.IExecutionContext = plan.create_execution_context(configuration)
        return context

    def _configure(self, name: str, plan: Any) -> tuple[KeptFile, Any, Any]:
        rtx = importlib.import_module(self.module)
        configuration = plan.create_runtime_config()
        configuration.set_execution_context_allocation_strategy(rtx.ExecutionContextAllocationStrategy.USER_MANAGED)
        configuration.dynamic_shapes_kernel_specialization_strategy = (
            rtx.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        configuration.cuda_graph_strategy = rtx.CudaGraphStrategy.DISABLED  # the trajectory is captured as a whole
        cache = configuration.create_runtime_cache()
        file = kept_kernels(self._digests[name], self._device.name)
        if (kernels := file.read()) is not None:
            cache.deserialize(kernels)  # checks for itself whether it fits
        self._check(configuration.set_runtime_cache(cache), f"keep the kernels of the {name} plan")
        return file, configuration, cache


def kept_kernels(digest: str, gpu: str) -> KeptFile:
    return KeptFile(f"{re.sub('[^a-z0-9]+', '-', gpu.lower())}-{digest[:16]}.kernels")
