"""TensorRT: plans with one optimisation profile for each batch bucket, 10.x and 11.x alike."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

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

    def __init__(self, bundle: Bundle, number: int) -> None:
        manifest = bundle.manifest
        target = manifest.target
        try:
            import tensorrt as trt
        except ImportError as error:
            raise EngineError(
                f"{manifest.model} needs TensorRT: pip install tensorrt=={target['tensorrt']} ({error})"
            ) from None
        check_version(bundle, trt.__version__)
        device = Device(number)
        check_driver("tensorrt", trt.__version__)
        check_gpu(bundle, device.name, device.compute_capability)
        super().__init__(bundle, device, target["buckets"])
        self._log = _Log()
        trt.init_libnvinfer_plugins(self._log.logger, "")
        try:
            self._runtime = trt.Runtime(self._log.logger)
        except TypeError:  # what its bindings make of a library that gives nothing
            self._check(False, "start")
        self._plans = {name: self._load_plan(bundle, name) for name in manifest.engines}
        needed = max(plan.device_memory_size_v2 for plan in self._plans.values())
        self._scratch = device.array((max(1, needed),), np.uint8)
        self._contexts = {
            (name, bucket): self._context(plan, profile, bucket)
            for name, plan in self._plans.items()
            for profile, bucket in enumerate(self._buckets)
        }
        self.prepare()

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

    def _context(self, plan: "trt.ICudaEngine", profile: int, bucket: int) -> "trt.IExecutionContext":
        """An execution context for the profile of a bucket."""
        import tensorrt as trt

        context = plan.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self._check(context is not None, "make an execution context")
        context.set_device_memory(self._scratch.address, self._scratch.nbytes)
        self._check(context.set_optimization_profile_async(profile, self._device.stream), f"use profile {profile}")
        for k in range(plan.num_io_tensors):
            name = plan.get_tensor_name(k)
            if plan.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                shape = (bucket, *plan.get_tensor_shape(name)[1:])
                self._check(context.set_input_shape(name, shape), f"give {name} the shape {shape}")
        return context

    def _check(self, done: bool, what: str) -> None:
        """Raises EngineError with what TensorRT has said since the last check, if anything."""
        said, self._log.latest_error = self._log.latest_error, ""
        if not done:
            raise EngineError(f"TensorRT cannot {what}: {in_plain_words(said)}")


class _Log:
    """Passes TensorRT's warnings to Python's logging and keeps its latest error, which its calls do not return."""

    def __init__(self) -> None:
        import tensorrt as trt

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
