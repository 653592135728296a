"""Trajectories on a GPU: the host sends what they need, starts them as a whole, and fetches the samples."""

import abc
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Bundle
from serving.engines import EngineError, Float32, History, StepEngine, Trajectory
from serving.engines.device import Device, DeviceArray
from serving.engines.rows import RowBuffer
from serving.engines.staging import Staging
from serving.sampling.solvers import COLUMNS, HISTORY, longest_table

A, S = COLUMNS.index("a"), COLUMNS.index("s")
ROUND = math.lcm(2, HISTORY + 1)  # rows after which states and history are in the buffers they began in
MOST_ROWS = 256  # of one segment: a graph of more takes long to make, and much memory
NOISE_BYTES = 256 << 20  # of one segment, in pinned memory and on the GPU, unless ROUND rows are more
KEPT_ROWS = 1024  # in all graphs that are kept


@dataclass(frozen=True)
class Segment:
    """Rows that are started together, and the finish after the last of them; a graph is captured for each kind."""

    bucket: int
    rows: int
    noisy: bool
    finishes: bool


class GpuEngine(StepEngine):
    """Runs trajectories without the host between their first row and their outputs.

    A batch is padded to the next of the engine's ``buckets``. The state goes back and forth between two buffers, and
    the predictions around a ring of four: no state is copied. Up to 256 rows are one segment, less where their noise
    would be more than 256 MiB, but four at least; a longer trajectory is several. Its coefficients are uploaded once,
    all of them; its noise goes up segment by segment, and the host draws that of one while the GPU runs the one before.
    A segment is captured as a CUDA graph, and the latest graphs are kept, of 1024 rows together. ``step`` and
    ``finish`` are for comparisons, and wait for each call.

    The bits of a sample do not depend on what else is in its bucket as long as the engine's kernels treat every row
    alike; other buckets may have other kernels. Not measured on hardware.

    What is returned is a copy that the caller may keep.

    outputs: the arrays of the latest batch on the GPU, by name, [B, ...] each; the next batch overwrites them.
    """

    captures = True  # whether the engine's work can be captured by its caller

    def __init__(self, bundle: Bundle, device: Device, buckets: Sequence[int]) -> None:
        manifest = bundle.manifest
        self._device, self._buckets = device, tuple(buckets)
        self._largest = self._buckets[-1]
        self._shape = manifest.sample_shape
        self._states = [self._array(self._shape) for _ in range(2)]
        self._ring = [self._array(self._shape) for _ in range(HISTORY + 1)]
        self._silence = self._array(self._shape)
        device.zero(self._silence)
        self._condition = self._array(manifest.condition.shape, "uint8") if manifest.condition else None
        self._results = {output.name: self._array(output.shape, output.dtype) for output in manifest.outputs}
        self._staged_start, self._staged_state = self._staging(self._shape), self._staging(self._shape)
        self._staged_condition = self._staging(manifest.condition.shape, "uint8") if manifest.condition else None
        self._staged = {output.name: self._staging(output.shape, output.dtype) for output in manifest.outputs}
        self._longest = longest_table(manifest.schedule) if manifest.schedule else 0
        self._coeffs = RowBuffer(device, max(1, self._longest) * RowBuffer.stride((self._largest, len(COLUMNS))))
        self._graphs: OrderedDict[Segment, Callable[[], None]] = OrderedDict()
        self.outputs: dict[str, DeviceArray] = {}

    @abc.abstractmethod
    def enqueue(self, graph: str, tensors: Mapping[str, DeviceArray]) -> None:
        """Put "step" or "finish" on the device's stream and do not wait; the tensors are [bucket, ...] each."""

    def generate(self, trajectory: Trajectory) -> tuple[Float32, dict[str, NDArray]]:
        self._device.activate()
        count = len(trajectory.start)
        segments = list(self._segments(trajectory))
        launches = [self._launch_of(segment) for segment in segments]
        self._load(trajectory.start, trajectory.condition)
        self._upload_coeffs(segments[0].bucket, trajectory.coeffs)
        row = 0
        for segment, launch in zip(segments, launches, strict=True):
            rows = range(row, row + segment.rows)
            if row:
                self._coeffs.move_to_front(rows, (segment.bucket, len(COLUMNS)))
            if segment.noisy:
                self._upload_noise(segment, map(trajectory.noise, rows))
            launch()
            row = rows.stop
        self.outputs = {name: array.first(count) for name, array in self._results.items()}
        last = self._staged_state, self._state(segments[-1].rows).first(count)
        state, *outputs = self._fetch([last, *self._staged_outputs(self.outputs)])
        return state, dict(zip(self.outputs, outputs, strict=True))

    def step(
        self,
        sample: Float32,
        history: History,
        noise: Float32,
        coeffs: Float32,
        condition: NDArray[np.uint8] | None = None,
    ) -> tuple[Float32, Float32]:
        self._device.activate()
        count = len(sample)
        segment = Segment(self._bucket(count), rows=1, noisy=True, finishes=False)
        self._load(sample, condition)
        for array, state in zip(self._ring[1:], history, strict=True):
            self._device.upload(np.ascontiguousarray(state), array)
        self._upload_coeffs(segment.bucket, coeffs[None])
        self._upload_noise(segment, [noise])
        self._enqueue(segment)
        results = (self._staged_state, self._state(1)), (self._staged_prediction, self._ring[0])
        sample_next, prediction = self._fetch([(staging, array.first(count)) for staging, array in results])
        return sample_next, prediction

    def finish(self, sample: Float32, condition: NDArray[np.uint8] | None = None) -> dict[str, NDArray]:
        self._device.activate()
        count = len(sample)
        self._load(sample, condition)
        self._enqueue(Segment(self._bucket(count), rows=0, noisy=False, finishes=True))
        results = {name: array.first(count) for name, array in self._results.items()}
        return dict(zip(results, self._fetch(self._staged_outputs(results)), strict=True))

    def _array(self, shape: tuple[int, ...], dtype: str = "float32") -> DeviceArray:
        return self._device.array((self._largest, *shape), dtype)

    def _staging(self, shape: tuple[int, ...], dtype: str = "float32") -> Staging:
        return Staging(self._device, (self._largest, *shape), dtype)

    @cached_property
    def _staged_prediction(self) -> Staging:
        """Of single steps alone."""
        return self._staging(self._shape)

    @cached_property
    def _noise(self) -> RowBuffer:
        """Made for the first trajectory with noise: many bundles never see one."""
        rows = {bucket: self._most_rows(bucket, noisy=True) for bucket in self._buckets}
        return RowBuffer(self._device, max(rows[k] * RowBuffer.stride((k, *self._shape)) for k in rows))

    def _bucket(self, count: int) -> int:
        if count > self._largest:
            raise EngineError(f"a batch of {count}; the engines of this bundle take at most {self._largest}")
        return min(bucket for bucket in self._buckets if bucket >= count)

    def _most_rows(self, bucket: int, noisy: bool) -> int:
        fitting = NOISE_BYTES // RowBuffer.stride((bucket, *self._shape)) if noisy else MOST_ROWS
        return max(ROUND, min(fitting, MOST_ROWS) // ROUND * ROUND)

    def _segments(self, trajectory: Trajectory) -> Iterator[Segment]:
        bucket, noisy = self._bucket(len(trajectory.start)), bool(trajectory.coeffs[:, :, S].any())
        most, left = self._most_rows(bucket, noisy), trajectory.rows
        while left > most:
            yield Segment(bucket, most, noisy, finishes=False)
            left -= most
        yield Segment(bucket, left, noisy, finishes=True)

    def _launch_of(self, segment: Segment) -> Callable[[], None]:
        if not self.captures:
            return lambda: self._enqueue(segment)
        if segment not in self._graphs:
            # The first run of a shape may load kernels and move data, which cannot be captured.
            self._enqueue(replace(segment, rows=min(segment.rows, 1)))
            self._graphs[segment] = self._device.capture(lambda: self._enqueue(segment)).launch
            while len(self._graphs) > 1 and sum(kept.rows for kept in self._graphs) > KEPT_ROWS:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(segment)
        return self._graphs[segment]

    def _load(self, sample: Float32, condition: NDArray[np.uint8] | None) -> None:
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

    def _upload_noise(self, segment: Segment, noises: Iterable[Float32]) -> None:
        """For each row of a segment [up to B, C, H, W]."""
        shape = (segment.bucket, *self._shape)
        for row, noise in zip(self._noise.on_host(segment.rows, shape), noises, strict=True):
            row[: noise.size] = noise.reshape(-1)
            row[noise.size :] = 0
        self._noise.upload(segment.rows, shape)

    def _enqueue(self, segment: Segment) -> None:
        bucket = segment.bucket
        condition = {} if self._condition is None else {"condition": self._condition.first(bucket)}
        for row in range(segment.rows):
            prediction, *history = (self._ring[(k - row) % len(self._ring)].first(bucket) for k in range(HISTORY + 1))
            tensors = {
                "sample": self._state(row).first(bucket),
                **{f"history_{k}": array for k, array in enumerate(history, start=1)},
                "noise": self._silence.first(bucket),
                "coeffs": self._coeffs.on_device(row, (bucket, len(COLUMNS))),
                "sample_next": self._state(row + 1).first(bucket),
                "prediction": prediction,
            }
            if segment.noisy:
                tensors["noise"] = self._noise.on_device(row, (bucket, *self._shape))
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
