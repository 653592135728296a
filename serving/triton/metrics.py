"""What goes on in a loop, among Triton's own metrics."""

import dataclasses
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence

import triton_python_backend_utils as pb

from serving.sampling.loop import Counts, Loop
from serving.triton.disk_watch import DiskWatch

GAUGES = {
    "rows_in_flight": "Samples that have begun and are not done",
    "rows_waiting": "Samples that have not begun",
    "steps_per_second": "Steps of samples, batched or not, lately",
}
COUNTERS = {
    "rows_joined": "Samples that have begun",
    "rows_left": "Samples that were answered",
    "rows_cancelled": "Samples whose client went away",
    "rows_timed_out": "Samples whose request's timeout was over",
    "rows_refused": "Samples of requests that found the queue full",
    "rows_failed": "Samples that the engine failed at",
    "launches": "Batches that took a step",
    "steps": "Steps of samples, batched or not",
    "network_seconds": "Seconds in the engine",
    "busy_seconds": "Seconds in which there was work",
    "behind_disk_seconds": "Seconds in which the bundle on disk was not the one that is served",
}
# Upper limits, in seconds.
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0)
HISTOGRAM_SECONDS = 1.0  # between two tellings of a histogram, which has many figures
OF_REQUESTS = {
    "request_done": "Steps that a request in flight has done",
    "request_steps": "Steps that a request in flight has in all",
}


@dataclasses.dataclass(frozen=True)
class State:
    """Of a loop, at ``now`` in seconds, as its own thread sees it; what is counted is counted from the start."""

    now: float
    rows_in_flight: int
    rows_waiting: int
    counts: Counts
    network_seconds: float
    named: Mapping[str, tuple[int, int]]
    durations: Sequence[float]  # as ``Durations.counted``

    @classmethod
    def of(cls, loop: Loop, now: float, durations: Sequence[float]) -> "State":
        counts = dataclasses.replace(loop.counts)
        return cls(now, loop.rows_in_flight, loop.rows_waiting, counts, loop.network_seconds, loop.named, durations)


class Teller:
    """Publishes the newest state on a thread of its own: to tell one takes as long as the step of a small model."""

    def __init__(self, metrics: "Metrics") -> None:
        self._changed = threading.Condition()
        self._newest: State | None = None
        self._is_telling = self._is_stopping = False
        self._thread = threading.Thread(target=self._run, args=(metrics,), name="metrics", daemon=True)
        self._thread.start()

    def tell(self, state: State) -> None:
        with self._changed:
            self._newest = state
            self._changed.notify_all()

    def wait(self, seconds: float) -> None:
        """Until all is told, but no longer than that."""
        with self._changed:
            self._changed.wait_for(lambda: self._newest is None and not self._is_telling, seconds)

    def stop(self, seconds: float) -> None:
        """When all is told, let go of the metrics: else Triton tells them for as long as it runs."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        self._thread.join(seconds)

    def _run(self, metrics: "Metrics") -> None:
        while (state := self._next()) is not None:
            try:
                metrics.publish(state)
            except Exception:  # it is no reason to tell nothing from now on
                logging.getLogger(__name__).exception("the metrics could not be told")

    def _next(self) -> State | None:
        with self._changed:
            self._is_telling = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._newest is not None or self._is_stopping)
            state, self._newest = self._newest, None
            self._is_telling = state is not None
            return state


class Metrics:
    """``medgen_NAME`` for every gauge and ``medgen_NAME_total`` for every counter, of one instance of a model.

    Those of requests have the label ``request``, which is the request's id, and are there while it is in flight.
    """

    def __init__(self, labels: Mapping[str, str], disk: DiskWatch) -> None:
        family = pb.MetricFamily
        self._families = [
            *(family(f"medgen_{name}", text, family.GAUGE) for name, text in GAUGES.items()),
            *(family(f"medgen_{name}_total", text, family.COUNTER) for name, text in COUNTERS.items()),
        ]
        names = (*GAUGES, *COUNTERS)
        self._metrics = {name: one.Metric(labels=labels) for name, one in zip(names, self._families, strict=True)}
        self._labels, self._disk = dict(labels), disk
        self._requests: dict[str, _OfRequest] = {}
        self._told = dict.fromkeys(names, 0.0)
        self._last = 0.0
        self._durations, self._last_durations = _Histogram(labels), 0.0

    def publish(self, state: State) -> None:
        """Tells Triton what has changed: each metric costs a tenth of a millisecond."""
        for name, value in self._values(state):
            if value == self._told[name]:
                continue
            if name in GAUGES:
                self._metrics[name].set(value)
            else:
                self._metrics[name].increment(value - self._told[name])
            self._told[name] = value
        self._last = state.now
        self._publish_requests(state.named)
        if state.now - self._last_durations >= HISTOGRAM_SECONDS:
            self._last_durations = state.now
            self._durations.publish(state.durations)

    def _publish_requests(self, named: Mapping[str, tuple[int, int]]) -> None:
        for name in self._requests.keys() - named.keys():
            del self._requests[name]
        for name, values in named.items():
            if name not in self._requests:
                self._requests[name] = _OfRequest({**self._labels, "request": name})
            self._requests[name].set(*values)

    def _values(self, state: State) -> Iterator[tuple[str, float]]:
        counts = state.counts
        yield "rows_in_flight", state.rows_in_flight
        yield "rows_waiting", state.rows_waiting
        yield "steps_per_second", (counts.row_steps - self._told["steps"]) / max(1e-3, state.now - self._last)
        for name in ("joined", "left", "cancelled", "timed_out", "refused", "failed"):
            yield f"rows_{name}", getattr(counts, name)
        yield "launches", counts.launches
        yield "steps", counts.row_steps
        yield "network_seconds", state.network_seconds
        yield "busy_seconds", counts.busy_seconds
        yield "behind_disk_seconds", self._disk.seconds


class Durations:
    """From when a request has come until it is answered with samples, as a histogram."""

    def __init__(self) -> None:
        self.counted = [0.0] * (len(BUCKETS) + 3)  # requests within each limit, all, seconds, and all again

    def add(self, seconds: float) -> None:
        within = [float(seconds <= limit) for limit in BUCKETS]
        self.counted = [old + more for old, more in zip(self.counted, [*within, 1.0, seconds, 1.0], strict=True)]


class _Histogram:
    """``medgen_request_seconds``, whose parts are counters: Triton's own kind of histogram is not in all of its
    versions."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        kind = pb.MetricFamily
        text = "Seconds from a request's arrival to its samples"
        named = {
            part: kind(f"medgen_request_seconds_{part}", text, kind.COUNTER) for part in ("bucket", "sum", "count")
        }
        limits = [*(f"{limit:g}" for limit in BUCKETS), "+Inf"]
        self._families = named
        self._metrics = [
            *(named["bucket"].Metric(labels={**labels, "le": limit}) for limit in limits),
            named["sum"].Metric(labels=labels),
            named["count"].Metric(labels=labels),
        ]
        self._told = [0.0] * len(self._metrics)

    def publish(self, counted: Sequence[float]) -> None:
        for metric, value, told in zip(self._metrics, counted, self._told, strict=True):
            if value != told:
                metric.increment(value - told)
        self._told = list(counted)


class _OfRequest:
    """Triton forgets a metric when its family has gone, so each request has families of its own, of the same names."""

    def __init__(self, labels: Mapping[str, str]) -> None:
        kind = pb.MetricFamily
        self._families = [kind(f"medgen_{name}", text, kind.GAUGE) for name, text in OF_REQUESTS.items()]
        self._done, self._steps = (family.Metric(labels=labels) for family in self._families)

    def set(self, done: int, steps: int) -> None:
        self._done.set(done)
        self._steps.set(steps)
