"""A GPU in ordinary memory: what cuda-python's driver module has, as far as serving calls it.

Work put on a stream waits there until someone waits for it, so that a host that is too early, or changes what is still
to be read, is found out. Every call is kept in ``calls``; memory that was never given out, or was given back, is an
error.
"""

import ctypes
import enum
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

Work = Callable[[], None]


class CUresult(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_ECC_UNCORRECTABLE = 214
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_UNKNOWN = 999


class FakeCuda:
    """One GPU and one stream."""

    CUresult = CUresult
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUevent_flags = SimpleNamespace(CU_EVENT_DISABLE_TIMING=2)
    CUgraphNodeType = SimpleNamespace(CU_GRAPH_NODE_TYPE_KERNEL=0, CU_GRAPH_NODE_TYPE_HOST=3)
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL="thread local")
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=0, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=1
    )
    STREAM = 7

    def __init__(self, capability: tuple[int, int] = (9, 0), name: str = "NVIDIA H200") -> None:
        self.name, self.capability = name, capability
        self.cuda_version = 13000  # that the driver knows
        self.calls: list[tuple[Any, ...]] = []
        self.refuses: dict[str, CUresult] = {}
        self._memory: dict[int, NDArray[np.uint8]] = {}  # by address
        self._on_host: set[int] = set()
        self._queue: list[Work] = []
        self._captured: list[Work] | None = None
        self._marks: dict[int, int] = {}  # how much of the queue is before each
        self.graphs: dict[int, list[Work]] = {}

    def __getattr__(self, name: str) -> Callable[..., tuple[Any, ...]]:
        """The driver's function of this name: kept, refused if it shall be, and answered as cuda-python does."""
        if not name.startswith("cu"):
            raise AttributeError(name)
        function = getattr(self, f"_{name}", lambda *arguments: None)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            if name in self.refuses:
                if name == "cuStreamEndCapture":
                    self._captured = None
                return self.refuses[name], None
            answer = function(*arguments)
            if isinstance(answer, tuple):
                return CUresult.CUDA_SUCCESS, *answer
            return (CUresult.CUDA_SUCCESS,) if answer is None else (CUresult.CUDA_SUCCESS, answer)

        return call

    def named(self, *names: str) -> list[tuple[Any, ...]]:
        return [call for call in self.calls if call[0] in names]

    @property
    def is_capturing(self) -> bool:
        return self._captured is not None

    def enqueue(self, work: Work) -> None:
        """What a kernel launch does: it runs later, or is captured."""
        (self._queue if self._captured is None else self._captured).append(work)

    def array(self, address: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """The values at an address, all of them inside one allocation."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        for start, memory in self._memory.items():
            if start <= address and address + size <= start + len(memory):
                return memory[address - start :][:size].view(dtype).reshape(shape)
        raise AssertionError(f"{size} bytes at {address:#x} are outside of all memory that was given out")

    def is_pinned(self, address: int) -> bool:
        return any(start <= address < start + len(self._memory[start]) for start in self._on_host & self._memory.keys())

    def _run(self, count: int | None = None) -> None:
        assert self._captured is None, "waiting is not allowed while work is captured"
        done, self._queue = self._queue[:count], self._queue[len(self._queue[:count]) :]
        self._marks = {mark: max(0, before - len(done)) for mark, before in self._marks.items()}
        for work in done:
            work()

    def _new(self, nbytes: int) -> int:
        assert self._captured is None, "memory is not allowed while work is captured"
        room = np.full(nbytes + 256, 0xFF, np.uint8)  # NaN, if anyone reads it
        skip = -room.ctypes.data % 256
        memory = room[skip : skip + nbytes]
        self._memory[memory.ctypes.data] = memory
        return memory.ctypes.data

    def _give_back(self, address: int) -> None:
        del self._memory[address]

    def _cuDriverGetVersion(self) -> int:
        return self.cuda_version

    def _cuDeviceGetCount(self) -> int:
        return 1

    def _cuDeviceGet(self, number: int) -> int:
        return number

    def _cuDeviceGetName(self, length: int, _: int) -> bytes:
        return self.name.encode().ljust(length, b"\0")

    def _cuDeviceGetAttribute(self, attribute: int, _: int) -> int:
        return self.capability[attribute]

    def _cuDevicePrimaryCtxRetain(self, _: int) -> str:
        return "context"

    def _cuStreamCreate(self, _: int) -> int:
        return self.STREAM

    def _cuEventCreate(self, _: int) -> int:
        self._marks[number := len(self.named("cuEventCreate"))] = 0
        return number

    def _cuEventDestroy(self, mark: int) -> None:
        del self._marks[mark]

    def _cuMemAlloc(self, nbytes: int) -> int:
        return self._new(nbytes)

    def _cuMemAllocHost(self, nbytes: int) -> int:
        address = self._new(nbytes)
        self._on_host.add(address)
        return address

    def _cuMemFree(self, address: int) -> None:
        self._give_back(address)

    def _cuMemFreeHost(self, address: int) -> None:
        self._give_back(address)

    def _cuMemsetD8Async(self, address: int, value: int, nbytes: int, _: int) -> None:
        self.enqueue(lambda: self.array(address, (nbytes,), np.uint8).fill(value))

    def _cuMemcpyHtoDAsync(self, target: int, source: int, nbytes: int, _: int) -> None:
        """From pinned memory it is read when its turn comes, from other memory at once."""
        if self.is_pinned(source):
            self.enqueue(lambda: self._copy(target, self.array(source, (nbytes,), np.uint8)))
        else:
            values = np.frombuffer(ctypes.string_at(source, nbytes), np.uint8)
            self.enqueue(lambda: self._copy(target, values))

    def _copy(self, target: int, values: NDArray[np.uint8]) -> None:
        self.array(target, values.shape, np.uint8)[:] = values

    def _cuMemcpyDtoDAsync(self, target: int, source: int, nbytes: int, _: int) -> None:
        assert abs(target - source) >= nbytes, "a copy onto itself"
        self.enqueue(lambda: self._copy(target, self.array(source, (nbytes,), np.uint8)))

    def _cuMemcpyDtoHAsync(self, target: int, source: int, nbytes: int, _: int) -> None:
        self.enqueue(
            lambda: ctypes.memmove(target, self.array(source, (nbytes,), np.uint8).ctypes.data, nbytes) and None
        )

    def _cuEventRecord(self, mark: int, _: int) -> None:
        self._marks[mark] = len(self._queue)

    def _cuEventSynchronize(self, mark: int) -> None:
        self._run(self._marks[mark])

    def _cuStreamSynchronize(self, _: int) -> None:
        self._run()

    def _cuStreamBeginCapture(self, _: int, __: Any) -> None:
        assert self._captured is None
        self._captured = []

    def _cuStreamEndCapture(self, _: int) -> list[Work] | None:
        captured, self._captured = self._captured, None
        return captured

    def call_the_host(self) -> None:
        """What cudaLaunchHostFunc does."""
        self.enqueue(self.on_host)

    def on_host(self) -> None:
        return

    def _cuGraphGetNodes(self, captured: list[Work], count: int = 0) -> tuple[list[Work], int]:
        return captured[:count], len(captured)

    def _cuGraphNodeGetType(self, work: Work) -> int:
        types = self.CUgraphNodeType
        return types.CU_GRAPH_NODE_TYPE_HOST if work == self.on_host else types.CU_GRAPH_NODE_TYPE_KERNEL

    def _cuGraphInstantiate(self, captured: list[Work], _: int) -> int:
        number = 1000 + len(self.named("cuGraphInstantiate"))
        self.graphs[number] = captured
        return number

    def _cuGraphLaunch(self, number: int, _: int) -> None:
        for work in self.graphs[number]:
            self.enqueue(work)

    def _cuGraphExecDestroy(self, number: int) -> None:
        del self.graphs[number]


@contextmanager
def installed(cuda: FakeCuda) -> Iterator[FakeCuda]:
    """``cuda.bindings.driver`` is this one."""
    package, bindings = ModuleType("cuda"), ModuleType("cuda.bindings")
    bindings.driver = cuda  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        for name, module in {"cuda": package, "cuda.bindings": bindings, "cuda.bindings.driver": cuda}.items():
            patch.setitem(sys.modules, name, module)
        yield cuda
