"""Trajectories on a GPU: the host sends what they need, starts them as a whole, and fetches the samples."""

import abc
import functools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Bundle
from serving.engines import EngineError, Float32, History, StepEngine, Trajectory
from serving.engines.device import DeadGpuError, Device, DeviceArray
from serving.engines.rows import RowBuffer
from serving.engines.staging import Staging
from serving.sampling.solvers import COLUMNS, HISTORY, longest_table

A, S = COLUMNS.index("a"), COLUMNS.index("s")
ROUND = math.lcm(2, HISTORY + 1)  # rows after which states and history are in the buffers they began in
WARM_UPS = 2  # ONNX Runtime takes memory in the second run of a shape too, when it knows what the first one needed


@dataclass(frozen=True)
class Segment:
    """Rows that are started together, ROUND at most, and the finish after the last of them."""

    bucket: int
    rows: int
    finishes: bool


class GpuEngine(StepEngine):
    """Runs trajectories without the host between their first row and their outputs.

    A batch is padded to the next of the engine's ``buckets``. The state goes back and forth between two buffers, and
    the predictions around a ring of four: no state is copied, and every four rows all are where they were. So a
    trajectory is the same four rows again and again, then the rows that are left and the finish: five CUDA graphs
    of each bucket serve any number of steps, and ``prepare`` captures them all. Coefficients are uploaded once, all of
    them; noise goes up four rows at a time, and the host draws the next while the GPU runs those before. ``step`` and
    ``finish`` are for comparisons, and wait for each call.

    The bits of a sample do not depend on what else is in its bucket as long as the engine's kernels treat every row
    alike; other buckets may have other kernels.

    What is returned is a copy that the caller may keep.

    captures: whether the engine's work is captured; where it cannot be, the host starts every row, and waits for none.
    outputs: the arrays of the latest batch on the GPU, by name, [B, ...] each; the next batch overwrites them.
    """

    buckets: tuple[int, ...]
    joins = False  # a step alone is not captured, and its states come from the host and go back to it
    captures = True

    def __init__(self, bundle: Bundle, device: Device, buckets: Sequence[int]) -> None:
        manifest = bundle.manifest
        self._device, self.buckets = device, tuple(buckets)
        self._model = manifest.model
        self._largest = self.buckets[-1]
        self._shape = manifest.sample_shape
        self._states = [self._array(self._shape) for _ in range(2)]
        self._ring = [self._array(self._shape) for _ in range(HISTORY + 1)]
        given = manifest.condition
        self._condition = self._array(given.shape, given.dtype) if given else None
        self._results = {output.name: self._array(output.shape, output.dtype) for output in manifest.outputs}
        self._staged_start, self._staged_state = self._staging(self._shape), self._staging(self._shape)
        self._staged_condition = self._staging(given.shape, given.dtype) if given else None
        self._staged = {output.name: self._staging(output.shape, output.dtype) for output in manifest.outputs}
        self._longest = longest_table(manifest.schedule) if manifest.schedule else 0
        self._coeffs = RowBuffer(device, max(1, self._longest) * RowBuffer.stride((self._largest, len(COLUMNS))))
        self._noise = RowBuffer(device, ROUND * RowBuffer.stride((self._largest, *self._shape)))
        self._noise.silence()
        self._graphs: dict[Segment, Callable[[], None]] = {}
        self.outputs: dict[str, DeviceArray] = {}

    @abc.abstractmethod
    def enqueue(self, graph: str, tensors: Mapping[str, DeviceArray]) -> None:
        """Put "step" or "finish" on the device's stream and do not wait; the tensors are [bucket, ...] each."""

    def check_capturable(self, bucket: int) -> None:
        """Raise EngineError where a runtime says of a bucket's work, which has run, that it cannot be captured."""

    def prepare(self) -> None:
        """Run every bucket, as the first runs of a shape load kernels and take memory, and capture its graphs.

        An engine calls it when it can ``enqueue``. Work that cannot be captured costs speed, and no request.
        """
        for bucket in self.buckets:
            given = self._condition
            condition = None if given is None else np.zeros((bucket, *given.shape[1:]), given.dtype)
            self._load(np.zeros((bucket, *self._shape), np.float32), condition)
            self._upload_coeffs(bucket, np.zeros((min(1, self._longest), bucket, len(COLUMNS)), np.float32))
            for _ in range(WARM_UPS):
                self._warm_up(bucket)
            if self.captures:
                self._capture(bucket)

    def _warm_up(self, bucket: int) -> None:
        self._enqueue(Segment(bucket, min(1, self._longest), finishes=True))
        self._device.synchronize()

    def _capture(self, bucket: int) -> None:
        segments = [Segment(bucket, rows, finishes=True) for rows in range(min(ROUND, self._longest + 1))]
        if self._longest >= ROUND:
            segments.append(Segment(bucket, ROUND, finishes=False))
        try:
            self.check_capturable(bucket)
            for segment in segments:
                self._graphs[segment] = self._device.capture(functools.partial(self._enqueue, segment)).launch
        except DeadGpuError:
            raise
        except EngineError as error:
            self.captures = False
            self._graphs.clear()
            logging.getLogger(__name__).warning(
                "%s: the host starts every step, as they cannot be captured as a CUDA graph: %s", self._model, error
            )
            with suppress(EngineError):  # CUDA's runtime says once more what went wrong, to whoever asks it next
                self._warm_up(bucket)
            self._warm_up(bucket)

    def generate(self, trajectory: Trajectory) -> tuple[Float32, dict[str, NDArray]]:
        with self._at_work():
            count, rows = len(trajectory.start), trajectory.rows
            bucket, noisy = self._bucket(count), bool(trajectory.coeffs[:, :, S].any())
            self._load(trajectory.start, trajectory.condition)
            self._upload_coeffs(bucket, trajectory.coeffs)
            if not noisy:
                self._noise.silence()
            for first in range(0, rows + 1, ROUND):
                segment = Segment(bucket, min(ROUND, rows - first), finishes=rows - first < ROUND)
                if first and segment.rows:
                    self._coeffs.move_to_front(range(first, first + segment.rows), (bucket, len(COLUMNS)))
                if noisy and segment.rows:
                    self._upload_noise(bucket, map(trajectory.noise, range(first, first + segment.rows)))
                self._launch(segment)
            self.outputs = {name: array.first(count) for name, array in self._results.items()}
            last = self._staged_state, self._state(rows).first(count)
            state, *outputs = self._fetch([last, *self._staged_outputs(self.outputs)])
            return state, dict(zip(self.outputs, outputs, strict=True))

    def step(
        self,
        sample: Float32,
        history: History,
        noise: Float32,
        coeffs: Float32,
        condition: NDArray[Any] | None = None,
    ) -> tuple[Float32, Float32]:
        with self._at_work():
            count = len(sample)
            bucket = self._bucket(count)
            self._load(sample, condition)
            for array, state in zip(self._ring[1:], history, strict=True):
                self._device.upload(np.ascontiguousarray(state), array)
            self._upload_coeffs(bucket, coeffs[None])
            self._upload_noise(bucket, [noise])
            self._enqueue(Segment(bucket, rows=1, finishes=False))
            results = (self._staged_state, self._state(1)), (self._staged_prediction, self._ring[0])
            sample_next, prediction = self._fetch([(staging, array.first(count)) for staging, array in results])
            return sample_next, prediction

    def finish(self, sample: Float32, condition: NDArray[Any] | None = None) -> dict[str, NDArray]:
        with self._at_work():
            count = len(sample)
            self._load(sample, condition)
            self._enqueue(Segment(self._bucket(count), rows=0, finishes=True))
            results = {name: array.first(count) for name, array in self._results.items()}
            return dict(zip(results, self._fetch(self._staged_outputs(results)), strict=True))

    @contextmanager
    def _at_work(self) -> Iterator[None]:
        """The device is the calling thread's, and what fails within is looked at: whether it was the GPU's end."""
        self._device.activate()
        try:
            yield
        except Exception:
            self._device.check()
            raise

    def _array(self, shape: tuple[int, ...], dtype: str = "float32") -> DeviceArray:
        return self._device.array((self._largest, *shape), dtype)

    def _staging(self, shape: tuple[int, ...], dtype: str = "float32") -> Staging:
        return Staging(self._device, (self._largest, *shape), dtype)

    @cached_property
    def _staged_prediction(self) -> Staging:
        """Of single steps alone."""
        return self._staging(self._shape)

    def _bucket(self, count: int) -> int:
        if count > self._largest:
            raise EngineError(f"a batch of {count}; the engines of this bundle take at most {self._largest}")
        return min(bucket for bucket in self.buckets if bucket >= count)

    def _launch(self, segment: Segment) -> None:
        if segment in self._graphs:
            self._graphs[segment]()
        else:
            self._enqueue(segment)

    def _load(self, sample: Float32, condition: NDArray[Any] | None) -> None:
        """The first states, with zeros for padding and in all of the history."""
        for array in (self._states[0], *self._ring):
            self._device.zero(array)
        self._staged_start.upload(sample, self._states[0])
        if self._condition is None or self._staged_condition is None:
            return
        if condition is None:
            raise EngineError("this model draws under a condition, and none was given")
        self._device.zero(self._condition)
        self._staged_condition.upload(condition, self._condition)

    def _upload_coeffs(self, bucket: int, coeffs: Float32) -> None:
        """All that a trajectory has, [rows, B, 12]."""
        rows, count, columns = coeffs.shape
        if rows > self._longest:
            raise EngineError(f"a trajectory of {rows} rows; this bundle's solvers have {self._longest}")
        if rows == 0:
            return
        padded = np.zeros((rows, bucket, columns), np.float32)
        padded[:, :, A] = 1  # leaves padding as it is
        padded[:, :count] = coeffs
        self._coeffs.on_host(rows, (bucket, columns))[:] = padded.reshape(rows, -1)
        self._coeffs.upload(rows, (bucket, columns))

    def _upload_noise(self, bucket: int, noises: Iterable[Float32]) -> None:
        """For the rows of a segment, [up to B, C, H, W] each."""
        shape = (bucket, *self._shape)
        rows = 0
        for row, noise in zip(self._noise.on_host(ROUND, shape), noises, strict=False):
            row[: noise.size] = noise.reshape(-1)
            row[noise.size :] = 0
            rows += 1
        self._noise.upload(rows, shape)

    def _enqueue(self, segment: Segment) -> None:
        bucket = segment.bucket
        condition = {} if self._condition is None else {"condition": self._condition.first(bucket)}
        for row in range(segment.rows):
            prediction, *history = (self._ring[(k - row) % len(self._ring)].first(bucket) for k in range(HISTORY + 1))
            tensors = {
                "sample": self._state(row).first(bucket),
                **{f"history_{k}": array for k, array in enumerate(history, start=1)},
                "noise": self._noise.on_device(row, (bucket, *self._shape)),
                "coeffs": self._coeffs.on_device(row, (bucket, len(COLUMNS))),
                "sample_next": self._state(row + 1).first(bucket),
                "prediction": prediction,
            }
            self.enqueue("step", tensors | condition)
        if segment.finishes:
            results = {name: array.first(bucket) for name, array in self._results.items()}
            self.enqueue("finish", {"sample": self._state(segment.rows).first(bucket), **results, **condition})

    def _state(self, row: int) -> DeviceArray:
        return self._states[row % 2]

    def _staged_outputs(self, arrays: Mapping[str, DeviceArray]) -> list[tuple[Staging, DeviceArray]]:
        return [(self._staged[name], array) for name, array in arrays.items()]

    def _fetch(self, arrays: Sequence[tuple[Staging, DeviceArray]]) -> list[NDArray]:
        staged = [staging.download(array) for staging, array in arrays]
        self._device.synchronize()
        return [values.copy() for values in staged]
