"""TensorRT for RTX: plans for many GPUs, whose kernels are made where they run, and kept for the next time."""

import importlib
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from serving.bundle import Bundle
from serving.engines.compatibility import check_capability
from serving.engines.device import Device
from serving.engines.tensorrt import TensorRTEngine
from serving.user import cache_folder

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
        self._kernels: dict[str, tuple[Path, Any, Any]] = {}  # of each plan: the file, the configuration, the cache
        self._digests = {name: engine.sha256 for name, engine in bundle.manifest.engines.items()}
        super().__init__(bundle, number)
        for file, _, cache in self._kernels.values():
            keep(file, cache)

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

    def _configure(self, name: str, plan: Any) -> tuple[Path, Any, Any]:
        rtx = importlib.import_module(self.module)
        configuration = plan.create_runtime_config()
        configuration.set_execution_context_allocation_strategy(rtx.ExecutionContextAllocationStrategy.USER_MANAGED)
        configuration.dynamic_shapes_kernel_specialization_strategy = (
            rtx.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        configuration.cuda_graph_strategy = rtx.CudaGraphStrategy.DISABLED  # the trajectory is captured as a whole
        cache = configuration.create_runtime_cache()
        file = cache_file(self._digests[name], self._device.name)
        if file.is_file():
            cache.deserialize(file.read_bytes())  # checks for itself whether it fits
        self._check(configuration.set_runtime_cache(cache), f"keep the kernels of the {name} plan")
        return file, configuration, cache


def cache_file(digest: str, gpu: str) -> Path:
    return cache_folder() / f"{re.sub('[^a-z0-9]+', '-', gpu.lower())}-{digest[:16]}.kernels"


def keep(file: Path, cache: Any) -> None:
    aside = file.with_suffix(f".{os.getpid()}")
    with suppress(OSError):  # without it the next start takes longer, that is all
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(bytes(cache.serialize()))
        aside.replace(file)
