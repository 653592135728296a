"""TensorRT: plans with one optimisation profile for each batch bucket, 10.x and 11.x alike; and TensorRT for RTX's."""

import importlib
import logging
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from serving.bundle import Bundle
from serving.engines import EngineError
from serving.engines.compatibility import check_gpu, check_version
from serving.engines.cuda_version import check_driver
from serving.engines.device import Device, DeviceArray
from serving.engines.gpu import GpuEngine
from serving.engines.memory import in_plain_words

if TYPE_CHECKING:
    import tensorrt as trt


class TensorRTEngine(GpuEngine):
    """Runs ``step.plan`` and ``finish.plan`` on GPU ``number``; its rows are captured as CUDA graphs.

    Each bucket has an execution context of its own in each plan. They share their scratch memory, as no two run at the
    same time.
    """

    title: ClassVar[str] = "TensorRT"
    module: ClassVar[str] = "tensorrt"  # of Python, and the key in a manifest's target under which its version is

    def __init__(self, bundle: Bundle, number: int) -> None:
        manifest = bundle.manifest
        target = manifest.target
        if TYPE_CHECKING:
            import tensorrt as trt
        else:
            trt = self._load_module(bundle)
        check_version(bundle, self.title, target[self.module], trt.__version__)
        device = Device(number)
        check_driver(self.module, trt.__version__)
        self._check_gpu(bundle, device)
        super().__init__(bundle, device, target["buckets"])
        self._log = _Log(trt)
        self._input = trt.TensorIOMode.INPUT
        trt.init_libnvinfer_plugins(self._log.logger, "")
        try:
            self._runtime = trt.Runtime(self._log.logger)
        except TypeError:  # what its bindings make of a library that gives nothing
            self._check(False, "start")
        self._plans = {name: self._load_plan(bundle, name) for name in manifest.engines}
        needed = max(plan.device_memory_size_v2 for plan in self._plans.values())
        self._scratch = device.array((max(1, needed),), np.uint8)
        self._contexts = {
            (name, bucket): self._context(name, plan, bucket)
            for name, plan in self._plans.items()
            for bucket in self.buckets
        }
        self.prepare()

    def _load_module(self, bundle: Bundle) -> ModuleType:
        try:
            return importlib.import_module(self.module)
        except ImportError as error:
            package = f"{self.module.replace('_', '-')}=={bundle.manifest.target[self.module]}"
            raise EngineError(f"{bundle.manifest.model} needs {self.title}: pip install {package} ({error})") from None

    def _check_gpu(self, bundle: Bundle, device: Device) -> None:
        check_gpu(bundle, device.name, device.compute_capability)

    def enqueue(self, graph: str, tensors: Mapping[str, DeviceArray]) -> None:
        plan = self._plans[graph]
        context = self._contexts[graph, tensors["sample"].shape[0]]
        for k in range(plan.num_io_tensors):
            name = plan.get_tensor_name(k)
            self._check(context.set_tensor_address(name, tensors[name].address), f"bind {name} of the {graph} plan")
        self._check(context.execute_async_v3(self._device.stream), f"run the {graph} plan")

    def _load_plan(self, bundle: Bundle, name: str) -> "trt.ICudaEngine":
        path = bundle.engine_path(name)
        plan = self._runtime.deserialize_cuda_engine(path.read_bytes())
        self._check(plan is not None, f"load {path}")
        return plan

    def _profile(self, bucket: int) -> int:
        return self.buckets.index(bucket)

    def _new_context(self, name: str, plan: "trt.ICudaEngine") -> "trt.IExecutionContext":
        import tensorrt as trt

        return plan.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)

    def _context(self, name: str, plan: "trt.ICudaEngine", bucket: int) -> "trt.IExecutionContext":
        """An execution context of a plan for a bucket."""
        context = self._new_context(name, plan)
        self._check(context is not None, "make an execution context")
        context.set_device_memory(self._scratch.address, self._scratch.nbytes)
        profile = self._profile(bucket)
        self._check(context.set_optimization_profile_async(profile, self._device.stream), f"use profile {profile}")
        for k in range(plan.num_io_tensors):
            tensor = plan.get_tensor_name(k)
            if plan.get_tensor_mode(tensor) == self._input:
                shape = (bucket, *plan.get_tensor_shape(tensor)[1:])
                self._check(context.set_input_shape(tensor, shape), f"give {tensor} the shape {shape}")
        return context

    def _check(self, done: bool, what: str) -> None:
        """Raises EngineError with what TensorRT has said since the last check, if anything."""
        said, self._log.latest_error = self._log.latest_error, ""
        if not done:
            raise EngineError(f"{self.title} cannot {what}: {in_plain_words(said)}")


class _Log:
    """Passes TensorRT's warnings to Python's logging and keeps its latest error, which its calls do not return."""

    def __init__(self, module: ModuleType) -> None:
        if TYPE_CHECKING:
            import tensorrt as trt
        else:
            trt = module
        log, severities = self, trt.ILogger.Severity
        self.latest_error = ""

        class Logger(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: trt.ILogger.Severity, message: str) -> None:
                if severity in (severities.INTERNAL_ERROR, severities.ERROR):
                    log.latest_error = message
                elif severity == severities.WARNING:
                    logging.getLogger(__name__).warning("%s", message)

        self.logger = Logger()
