"""Engines: what runs a bundle's graphs, a whole trajectory at a time."""

import abc
import dataclasses
import logging
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serving.bundle import MANIFEST, Bundle, BundleError, file_digest
from serving.sampling.solvers import HISTORY

Float32 = NDArray[np.float32]
History = tuple[Float32, ...]  # the latest predictions, newest first


class EngineError(RuntimeError):
    """An engine cannot run here, or gave values that are no samples."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectory:
    """The work of one batch, from the first noise to the last state: all that an engine needs, known beforehand.

    start: float32 [B, C, H, W], see ``serving.sampling.noise.draw_starts``.
    lengths: int [B], how many table rows each sample has, longest first: those still under way at a row come first.
    coeffs: float32 [rows, B, 12]; past its last row a sample has a = 1 and all else 0, which leaves it as it is.
    noise: row -> float32 [live, C, H, W], zero where a sample's row is deterministic; the next call overwrites it.
    condition: [B, C, H, W] of the manifest's dtype, or None for a model that has none.
    """

    start: Float32
    lengths: NDArray[np.intp]
    coeffs: Float32
    noise: Callable[[int], Float32]
    condition: NDArray[Any] | None = None

    @property
    def rows(self) -> int:
        return len(self.coeffs)

    def live(self, row: int) -> int:
        """How many samples are still under way at this row."""
        return int(np.count_nonzero(self.lengths > row))


class Engine(Protocol):
    """Runs whole trajectories; sample i of the result depends on sample i of the trajectory alone."""

    def generate(self, trajectory: Trajectory) -> tuple[Float32, dict[str, NDArray]]:
        """The last state, float32 [B, C, H, W], and the manifest's outputs by name, [B, ...] each."""
        ...


class StepEngine(abc.ABC):
    """An engine that runs one step at a time; the host loops.

    buckets: the batches that all others are padded to, smallest first; None if none is.
    joins: whether requests may join between two steps at no loss; else it is at its best with whole trajectories.
    machine: the library, and what of this machine the bits of a batch's rows may depend on, where they may.
    """

    buckets: tuple[int, ...] | None = None
    joins = True
    machine = ""

    @abc.abstractmethod
    def step(
        self,
        sample: Float32,
        history: History,
        noise: Float32,
        coeffs: Float32,
        condition: NDArray[Any] | None = None,
    ) -> tuple[Float32, Float32]:
        """One table row for each sample: states [B, C, H, W], coeffs [B, 12] -> (next states, predictions)."""

    @abc.abstractmethod
    def finish(self, sample: Float32, condition: NDArray[Any] | None = None) -> dict[str, NDArray]:
        """The last states [B, C, H, W] -> the manifest's outputs by name, [B, ...] each."""

    def generate(self, trajectory: Trajectory) -> tuple[Float32, dict[str, NDArray]]:
        sample, condition = trajectory.start, trajectory.condition
        last = np.empty_like(sample)
        zeros = np.zeros_like(sample)
        history: History = (zeros,) * HISTORY
        for row in range(trajectory.rows):
            live = trajectory.live(row)
            last[live : len(sample)] = sample[live:]
            sample, history = sample[:live], tuple(h[:live] for h in history)
            rows = None if condition is None else condition[:live]
            sample, prediction = self.step(sample, history, trajectory.noise(row), trajectory.coeffs[row, :live], rows)
            history = (prediction, *history[:-1])
        last[: len(sample)] = sample
        return last, self.finish(last, condition)


def open_engine(bundle: Bundle, device: int | None = None) -> Engine:
    """The engine for the bundle's target, on GPU ``device`` or, if that is None, the first.

    ONNX graphs run on the CPU where ONNX Runtime cannot use a GPU; if one was asked for or promised, the log says why.
    On a CPU it is given one row at a time unless a sample's bits are known to be the same in every batch, and the log
    says so. Raises ``BundleError`` for a target that this version does not serve, ``EngineError`` for one that cannot
    run here.
    """
    return _checked(open_as_built(bundle, device), bundle)


def open_as_built(bundle: Bundle, device: int | None = None) -> Engine:
    """``open_engine``, but given whole batches, whatever is known of its rows."""
    target = bundle.manifest.target.get("name")
    # Imported here, as a host has only the runtime that it serves with.
    if target == "tensorrt":
        from serving.engines.tensorrt import TensorRTEngine

        return TensorRTEngine(bundle, device or 0)
    if target == "tensorrt-rtx":
        from serving.engines.tensorrt_rtx import TensorRTForRTXEngine

        return TensorRTForRTXEngine(bundle, device or 0)
    if target == "openvino":
        return _open_openvino(bundle)
    if target == "onnx":
        return _open_onnx(bundle, device)
    raise _unknown_target(bundle)


def open_on_cpu(bundle: Bundle) -> Engine:
    """The engine that leaves every GPU alone; raises as ``open_engine`` does, and for plans, which need one."""
    target = bundle.manifest.target.get("name")
    if target in ("tensorrt", "tensorrt-rtx"):
        raise EngineError(
            f"{bundle.manifest.model} is a TensorRT bundle, and cannot run on the CPU: "
            "use KIND_GPU or KIND_AUTO in its config.pbtxt, or build it with --target onnx"
        )
    if target == "openvino":
        return _checked(_open_openvino(bundle), bundle)
    if target == "onnx":
        from serving.engines.onnxruntime import OnnxRuntimeEngine

        return _checked(OnnxRuntimeEngine(bundle), bundle)
    raise _unknown_target(bundle)


def _check_is_there(bundle: Bundle) -> None:
    """Raises BundleError if another bundle has taken its place since it was loaded: an engine that was opened meanwhile
    may have read the other's files."""
    try:
        found = file_digest(bundle.folder / MANIFEST)
    except OSError:
        found = "nothing"
    if found != bundle.digest:
        raise BundleError(
            f"{bundle.folder} was replaced while it was opened: it held {bundle.digest}, and holds {found}; "
            "open it again"
        )


def _unknown_target(bundle: Bundle) -> BundleError:
    target = bundle.manifest.target.get("name")
    return BundleError(
        f"{bundle.folder}: target is {target!r}; this version of medgen serves onnx, openvino, tensorrt and "
        "tensorrt-rtx"
    )


def _open_openvino(bundle: Bundle) -> Engine:
    from serving.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(bundle)


def _checked(engine: Engine, bundle: Bundle) -> Engine:
    """The engine, on a CPU given one row at a time unless a sample's bits are known to be the same in every batch.

    They are where the build has seen it, with this version of the library and on a machine like this one. Raises
    BundleError if the engine may be that of another bundle.
    """
    _check_is_there(bundle)
    if not isinstance(engine, StepEngine) or engine.buckets is not None:
        return engine
    independent, seen_on = (bundle.manifest.target.get(key) for key in ("rows_are_independent", "seen_on"))
    if independent is False:
        why = "a row's bits depend on its batch"
    elif independent is None or seen_on is None:
        why = (
            "its build does not say where it saw that a row's bits do not depend on its batch; "
            "build it here to have batches"
        )
    elif seen_on != engine.machine:
        why = (
            f"that a row's bits do not depend on its batch was seen with {seen_on}, and here is {engine.machine}; "
            "build it here to have batches"
        )
    else:
        return engine
    from serving.engines.one_by_one import OneByOneEngine

    logging.getLogger(__name__).warning("%s is computed a sample at a time: %s", bundle.manifest.model, why)
    return OneByOneEngine(engine)


def _open_onnx(bundle: Bundle, device: int | None) -> Engine:
    from serving.engines.device import NoGpuError
    from serving.engines.onnxruntime import OnnxRuntimeEngine
    from serving.engines.onnxruntime_cuda import OnnxRuntimeCudaEngine, is_promised

    if device is not None or is_promised():
        try:
            return OnnxRuntimeCudaEngine(bundle, device or 0)
        except NoGpuError as error:
            logging.getLogger(__name__).warning("%s runs on the CPU: %s", bundle.manifest.model, error)
    return OnnxRuntimeEngine(bundle)
