"""A GPU through NVIDIA's cuda-python, as much of it as serving needs: memory, one stream, and graphs of its work."""

import ctypes
import gc
import math
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from serving.engines import EngineError
from serving.engines.memory import TAKE_LESS

PLAIN_WORDS = {
    "CUDA_ERROR_OUT_OF_MEMORY": f"it is out of memory; {TAKE_LESS}",
    "CUDA_ERROR_NO_DEVICE": "the driver sees no GPU",
    "CUDA_ERROR_ILLEGAL_ADDRESS": "a kernel left its memory",
    "CUDA_ERROR_LAUNCH_FAILED": "a kernel crashed",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "the driver was updated and not yet loaded; restart the machine",
    "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE": "its driver is too old",
}
# After one of these every call of this process fails, whoever makes it.
FATAL = frozenset(
    f"CUDA_ERROR_{name}"
    for name in (
        "ASSERT",
        "CONTAINED",
        "CONTEXT_IS_DESTROYED",
        "ECC_UNCORRECTABLE",
        "HARDWARE_STACK_ERROR",
        "ILLEGAL_ADDRESS",
        "ILLEGAL_INSTRUCTION",
        "INVALID_ADDRESS_SPACE",
        "INVALID_PC",
        "LAUNCH_FAILED",
        "LAUNCH_TIMEOUT",
        "MISALIGNED_ADDRESS",
        "MPS_CLIENT_TERMINATED",
        "NVLINK_UNCORRECTABLE",
        "TENSOR_MEMORY_LEAK",
        "UNKNOWN",  # what a GPU that is gone from the bus gives
    )
)
DLPACK_CUDA = 2


class NoGpuError(EngineError):
    """There is no GPU here that could be used."""


class DeadGpuError(EngineError):
    """This process cannot use the GPU any more; a new one can."""


@dataclass(frozen=True, eq=False)
class DeviceArray:
    """Values in a GPU's memory, C-ordered, that PyTorch, CuPy and pycuda use without a copy.

    device: the GPU's number. owner: the array whose memory this one is a view of; it is kept alive.
    """

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int
    owner: "DeviceArray | None" = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def view(self, shape: tuple[int, ...], dtype: DTypeLike, offset: int = 0) -> "DeviceArray":
        """Other values in the same memory, from ``offset`` bytes on."""
        return DeviceArray(self.address + offset, shape, np.dtype(dtype), self.device, self.owner or self)

    def first(self, count: int) -> "DeviceArray":
        """The first ``count`` along the first axis."""
        return self.view((count, *self.shape[1:]), self.dtype)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        # No stream: an engine hands its arrays out when the work on them is done.
        interface = {"shape": self.shape, "typestr": self.dtype.str, "data": (self.address, False)}
        return {**interface, "strides": None, "stream": None, "version": 3}

    def __dlpack__(self, **asked: Any) -> Any:
        from cuda.core.utils import StridedMemoryView

        return StridedMemoryView.from_cuda_array_interface(self, stream_ptr=-1).__dlpack__(**asked)

    def __dlpack_device__(self) -> tuple[int, int]:
        return DLPACK_CUDA, self.device


class Device:
    """GPU ``number`` and one stream on it, in which all work is done in order.

    It uses the GPU's primary context, as PyTorch, CuPy, ONNX Runtime and TensorRT do. Every call raises ``EngineError``
    if the driver refuses it; making a Device raises ``NoGpuError`` where there is no such GPU.
    """

    def __init__(self, number: int = 0) -> None:
        self.number = number
        try:
            from cuda.bindings import driver
        except ImportError:
            raise NoGpuError("a GPU needs NVIDIA's cuda-python: pip install cuda-bindings cuda-core") from None
        self._driver = driver
        try:
            self._call("cuInit", 0)
            count = self._call("cuDeviceGetCount")
        except Exception as error:  # without a driver each version of cuda-python raises something else
            raise NoGpuError(f"no NVIDIA driver that works on this machine: {error}") from None
        if number >= count:
            raise NoGpuError(f"there is no GPU {number}; this machine has {count}, counted from 0")
        self._handle = self._call("cuDeviceGet", number)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._handle)
        self.activate()
        # Not held up by the default stream, on which other libraries in this process may work.
        self.stream = int(self._call("cuStreamCreate", int(driver.CUstream_flags.CU_STREAM_NON_BLOCKING)))
        weakref.finalize(self, driver.cuStreamDestroy, self.stream).atexit = False

    @cached_property
    def name(self) -> str:
        """What the driver calls it, such as "NVIDIA H200"."""
        text: bytes = self._call("cuDeviceGetName", 256, self._handle)
        return text.partition(b"\0")[0].decode().strip()

    @cached_property
    def compute_capability(self) -> tuple[int, int]:
        attribute = self._driver.CUdevice_attribute
        major = self._call("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, self._handle)
        minor = self._call("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, self._handle)
        return major, minor

    def activate(self) -> None:
        """Make this the GPU of the calling thread; each thread needs it once."""
        self._call("cuCtxSetCurrent", self._context)

    def array(self, shape: tuple[int, ...], dtype: DTypeLike) -> DeviceArray:
        """New memory, of undefined values; it is freed when the last view of it is gone."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        address = int(self._call("cuMemAlloc", nbytes))
        array = DeviceArray(address, shape, np.dtype(dtype), self.number)
        self._when_gone(array, "cuMemFree", address)
        return array

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Host memory that the GPU reads by itself while the host goes on."""
        address = int(self._call("cuMemAllocHost", nbytes))
        memory = (ctypes.c_uint8 * nbytes).from_address(address)
        self._when_gone(memory, "cuMemFreeHost", address)
        return np.ctypeslib.as_array(memory)

    def zero(self, array: DeviceArray) -> None:
        self._call("cuMemsetD8Async", array.address, 0, array.nbytes, self.stream)

    def upload(self, values: NDArray[Any], array: DeviceArray) -> None:
        """Copy C-ordered values to the front of an array; pinned ones must not change until the copy is done."""
        self._call("cuMemcpyHtoDAsync", array.address, values.ctypes.data, values.nbytes, self.stream)

    def download(self, array: DeviceArray, values: NDArray[Any]) -> None:
        """Copy an array into C-ordered memory of its size; it is there after ``synchronize``."""
        self._call("cuMemcpyDtoHAsync", values.ctypes.data, array.address, array.nbytes, self.stream)

    def copy(self, source: DeviceArray, target: DeviceArray) -> None:
        """Copy an array to the front of another, which it does not overlap."""
        self._call("cuMemcpyDtoDAsync", target.address, source.address, source.nbytes, self.stream)

    def synchronize(self) -> None:
        """Wait for all work."""
        self._call("cuStreamSynchronize", self.stream)

    def capture(self, enqueue: Callable[[], None]) -> "Graph":
        """What ``enqueue`` puts on the stream, as a graph; none of it runs now.

        Work that calls the host is refused with ``EngineError``: what it is to find there is gone at the second launch
        (ONNX Runtime frees host memory in this way, and would do so every time).
        """
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        collecting = gc.isenabled()
        gc.disable()  # memory that is given back meanwhile would spoil the capture
        try:
            self._call("cuStreamBeginCapture", self.stream, mode)
            try:
                enqueue()
            except BaseException:
                _, unfinished = self._driver.cuStreamEndCapture(self.stream)  # else it would take no other work
                if unfinished:
                    self._driver.cuGraphDestroy(unfinished)
                raise
        finally:
            if collecting:
                gc.enable()
        recorded = self._call("cuStreamEndCapture", self.stream)
        try:
            if self._calls_the_host(recorded):
                raise EngineError(f"GPU {self.number}: the work calls the host, and cannot be started again by itself")
            return Graph(self, self._call("cuGraphInstantiate", recorded, 0))
        finally:
            self._call("cuGraphDestroy", recorded)

    def _calls_the_host(self, recorded: Any) -> bool:
        _, count = self._call("cuGraphGetNodes", recorded)
        nodes, _ = self._call("cuGraphGetNodes", recorded, count)
        host = self._driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_HOST
        return any(self._call("cuGraphNodeGetType", node) == host for node in nodes)

    def check(self) -> None:
        """Raises ``DeadGpuError`` if the GPU takes no work of this process any more."""
        try:
            self._call("cuCtxSynchronize")
        except DeadGpuError:
            raise
        except EngineError:
            return

    def _call(self, function: str, *arguments: Any) -> Any:
        code, *values = getattr(self._driver, function)(*arguments)
        if code != self._driver.CUresult.CUDA_SUCCESS:
            said = f"GPU {self.number}: {PLAIN_WORDS.get(code.name, code.name)}"
            if code.name in FATAL:
                raise DeadGpuError(f"{said}; this process cannot use the GPU any more ({function})")
            raise EngineError(f"{said} ({function})")
        return values[0] if len(values) == 1 else values

    def _when_gone(self, thing: object, function: str, handle: Any) -> None:
        """Give a handle back to the driver once ``thing`` is garbage; at exit the driver does it by itself."""

        def give_back() -> None:
            with suppress(DeadGpuError):
                self.activate()
                self._call(function, handle)

        weakref.finalize(thing, give_back).atexit = False


class Mark:
    """A point of the device's stream that the host can wait for."""

    def __init__(self, device: Device) -> None:
        self._device = device
        timeless = device._driver.CUevent_flags.CU_EVENT_DISABLE_TIMING
        self._handle = device._call("cuEventCreate", int(timeless))
        device._when_gone(self, "cuEventDestroy", self._handle)

    def set(self) -> None:
        self._device._call("cuEventRecord", self._handle, self._device.stream)

    def wait(self) -> None:
        """Wait until the stream has passed where it was set last; if it never was, do not."""
        self._device._call("cuEventSynchronize", self._handle)


class Graph:
    """Work that was captured once, and is started as a whole by one call."""

    def __init__(self, device: Device, handle: Any) -> None:
        self._device, self._handle = device, handle
        device._when_gone(self, "cuGraphExecDestroy", handle)

    def launch(self) -> None:
        """Start it on the device's stream, after what is there already."""
        self._device._call("cuGraphLaunch", self._handle, self._device.stream)
