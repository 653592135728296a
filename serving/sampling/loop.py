"""In-flight batching: one thread takes all requests through their steps, and answers each when it is done."""

import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from serving.bundle import Bundle, Manifest
from serving.engines import Engine, StepEngine
from serving.engines.device import DeadGpuError
from serving.sampling.flight import Flight, States
from serving.sampling.requests import SampleRequest
from serving.sampling.rows import Row, provenance, rows_of
from serving.sampling.scheduler import DEFAULT, ArrivalRate, Cost, Scheduler, Work
from serving.sampling.solvers import longest_table
from serving.sampling.whole_flight import Pending, WholeFlight

Answer = dict[str, NDArray] | Exception  # as of Sampler.sample, or why there are no samples

MOST_WAITING = 128  # requests
ASK_SECONDS = 0.1  # between two questions whether a request's client is still there
BATCHES_HELD = 4  # as many rows as in that many of the largest batches may hold states, paused or not


class NotServed(RuntimeError):  # noqa: N818  most are nobody's error
    """A request that was right has no samples."""


class QueueFull(NotServed):
    """More requests wait than may."""


class TimeUp(NotServed):
    """The time that the request had is over."""


class ClientGone(NotServed):
    """Nobody waits for the answer any more."""


class Stopped(NotServed):
    """The loop takes no requests any more."""


@dataclasses.dataclass
class Counts:
    """Of rows since the loop was started, but for launches, which are steps of a batch, and for seconds."""

    joined: int = 0
    left: int = 0
    cancelled: int = 0
    timed_out: int = 0
    refused: int = 0
    failed: int = 0
    launches: int = 0
    row_steps: int = 0
    busy_seconds: float = 0.0


@dataclasses.dataclass(eq=False)
class _Ticket:
    rows: Sequence[Row]
    answer: Callable[[Answer], object]
    is_gone: Callable[[], bool]
    arrival: float
    deadline: float | None
    priority: int
    name: str
    states: States | Pending | None = None
    asked: float = -math.inf  # when it was last asked whether it is gone

    @property
    def left(self) -> int:
        """Steps."""
        return self.states.left if self.states else len(self.rows[0].table)

    @property
    def work(self) -> Work:
        """For a model without steps the finish is the step."""
        return Work(len(self.rows), max(1, self.left), self.arrival, self.priority, begun=self.states is not None)


class Loop:
    """Requests join at the next step and leave after their last, whatever their solvers and steps.

    Start it by ``start``; ``submit`` is for any thread, and answers are given by the loop's own. A sample is the same,
    bit for bit, as that of ``Sampler`` wherever the engine's rows do not depend on each other.

    On an engine that is at its best with whole trajectories a step is such a trajectory, as long as the longest in it.

    between: called by the loop's thread before and after every launch and while nothing is to be done, once a second at
    least.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        cost: Cost,
        most_waiting: int = MOST_WAITING,
        between: Callable[["Loop"], object] = lambda loop: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        manifest = bundle.manifest
        self._bundle, self._most_waiting, self._between, self._clock = bundle, most_waiting, between, clock
        self._flight: Any = _flight(engine, manifest)
        longest = longest_table(manifest.schedule) if manifest.schedule else 1
        is_whole = isinstance(self._flight, WholeFlight)
        self._scheduler = Scheduler(cost, longest, BATCHES_HELD * manifest.max_batch, is_whole)
        self._rate = ArrivalRate()
        self._tickets: list[_Ticket] = []
        self._chosen: list[_Ticket] | None = None  # until somebody comes or leaves
        self._asked = 0
        self._arrived: list[_Ticket] = []
        self._waiting = 0  # requests without states
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="steps", daemon=True)
        self.counts = Counts()

    def start(self) -> None:
        self._thread.start()

    def submit(
        self,
        request: SampleRequest,
        answer: Callable[[Answer], object],
        *,
        priority: int = DEFAULT,
        timeout: float | None = None,
        is_gone: Callable[[], bool] = lambda: False,
        name: str = "",
    ) -> None:
        """Have a request of at most the largest batch served; ``answer`` is called once, and soon returns.

        Its arrays are views that it may keep. timeout: in seconds. is_gone: whether nobody waits for the answer any
        more; asked before the first step, and from then on before one in every ASK_SECONDS. name: by which ``named``
        has it. Raises QueueFull or Stopped, and then ``answer`` is not called.
        """
        rows = rows_of(self._bundle, request)
        with self._changed:
            if self._stopping:
                raise Stopped(f"{self._bundle.manifest.model} is being unloaded")
            if self._waiting >= self._most_waiting:
                self.counts.refused += len(rows)
                raise QueueFull(f"the queue of {self._bundle.manifest.model} is full: {self._waiting} requests wait")
            self._waiting += 1
            now = self._clock()
            self._rate.count(now)
            deadline = None if timeout is None else now + timeout
            self._arrived.append(_Ticket(rows, answer, is_gone, now, deadline, priority, name))
            self._changed.notify()

    def stop(self) -> None:
        """Take no more requests, and return when all are answered."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def rows_waiting(self) -> int:
        return sum(len(ticket.rows) for ticket in [*self._arrived, *self._tickets] if not ticket.states)

    @property
    def rows_in_flight(self) -> int:
        return sum(len(ticket.rows) for ticket in self._tickets if ticket.states)

    @property
    def named(self) -> dict[str, tuple[int, int]]:
        """(steps done, steps in all) of the requests in flight that have a name; for the loop's own thread."""
        found = [(ticket.name, len(ticket.rows[0].table), ticket.left) for ticket in self._tickets if ticket.states]
        return {name: (steps - left, steps) for name, steps, left in found if name}

    @property
    def network_seconds(self) -> float:
        return self._flight.network_seconds

    def _run(self) -> None:
        while self._wait_for_work():
            self.turn()

    def turn(self) -> None:
        """From one step boundary to the next: what the thread does for as long as there are requests."""
        began = self._clock()
        try:
            self._take_in()
            self._tell()
            self._boundary()
        except DeadGpuError as error:
            self._take_in()
            self._fail_all(error)
        except Exception as error:  # none is expected here; nobody may wait for ever for that
            logging.getLogger(__name__).exception("the loop failed")
            self._fail_all(error)
        self.counts.busy_seconds += self._clock() - began
        self._tell()

    def _wait_for_work(self) -> bool:
        """Takes in who has arrived; False when there is nothing left to do, and will not be."""
        while True:
            with self._changed:
                if not (self._tickets or self._arrived or self._stopping):
                    self._changed.wait(1.0)
                self._take_in()
                if self._tickets or self._stopping:
                    return bool(self._tickets)
            self._tell()

    def _tell(self) -> None:
        try:
            self._between(self)
        except Exception:  # it is no reason to serve nobody
            logging.getLogger(__name__).exception("what happens between two steps failed")

    def _fail_all(self, error: Exception) -> None:
        for ticket in list(self._tickets):
            self._leave(ticket, error)

    def _take_in(self) -> None:
        with self._changed:
            if self._arrived:
                self._tickets += self._arrived
                self._arrived, self._chosen = [], None

    def _boundary(self) -> None:
        now = self._clock()
        for ticket in [ticket for ticket in self._tickets if ticket.deadline is not None and ticket.deadline <= now]:
            self._leave(ticket, TimeUp(self._over_time(ticket)))
        while gone := [ticket for ticket in self._who_to_ask(now) if self._is_gone(ticket, now)]:
            for ticket in gone:
                self._leave(ticket, ClientGone("nobody waits for this any more"))
        if chosen := self._choose():
            self._launch(chosen)

    def _over_time(self, ticket: _Ticket) -> str:
        steps = len(ticket.rows[0].table)
        return f"the request's timeout is over, after {steps - ticket.left} of {steps} steps"

    def _who_to_ask(self, now: float) -> list[_Ticket]:
        """Those that step, if it is ASK_SECONDS since, and of the others one, every time another.

        To ask costs a tenth of a millisecond, and those others can wait.
        """
        chosen = self._choose()
        due = [ticket for ticket in chosen if now - ticket.asked >= ASK_SECONDS]
        if others := [ticket for ticket in self._tickets if ticket not in chosen]:
            self._asked += 1
            return [*due, others[self._asked % len(others)]]
        return due

    def _is_gone(self, ticket: _Ticket, now: float) -> bool:
        ticket.asked = now
        return ticket.is_gone()

    def _choose(self) -> list[_Ticket]:
        if self._chosen is None:
            works = [ticket.work for ticket in self._tickets]
            chosen = self._scheduler.choose(works, self._rate.at(self._clock()))
            self._chosen = [self._tickets[k] for k in chosen]
        return self._chosen

    def _launch(self, tickets: Sequence[_Ticket]) -> None:
        """A step for all, and the finish for those that are done."""
        for ticket in [ticket for ticket in tickets if ticket.states is None]:
            self._each_for_itself(self._begin, [ticket])
        self._each_for_itself(self._step, [ticket for ticket in tickets if ticket.states and ticket.left])
        self._each_for_itself(self._finish, [ticket for ticket in self._tickets if ticket.states and not ticket.left])

    def _each_for_itself(self, run: Callable[[Sequence[_Ticket]], None], tickets: Sequence[_Ticket]) -> None:
        """If they fail together they are tried one by one, so that each fails alone; but nobody can use a dead GPU."""
        if not tickets:
            return
        try:
            run(tickets)
        except DeadGpuError:
            raise
        except Exception as error:
            if len(tickets) == 1:
                self._leave(tickets[0], error)
                return
            for ticket in tickets:
                self._each_for_itself(run, [ticket])

    def _begin(self, tickets: Sequence[_Ticket]) -> None:
        for ticket in tickets:
            ticket.states = self._flight.begin(ticket.rows)
            self._no_longer_waiting()
            self.counts.joined += len(ticket.rows)

    def _step(self, tickets: Sequence[_Ticket]) -> None:
        self.counts.row_steps += self._flight.step([ticket.states for ticket in tickets if ticket.states])
        self.counts.launches += 1

    def _finish(self, tickets: Sequence[_Ticket]) -> None:
        outputs = self._flight.finish([ticket.states for ticket in tickets if ticket.states])
        for ticket, arrays in zip(tickets, outputs, strict=True):
            if isinstance(arrays, dict):
                arrays["provenance"] = provenance(self._bundle, ticket.rows)
            self._leave(ticket, arrays)

    def _no_longer_waiting(self) -> None:
        with self._changed:
            self._waiting -= 1

    def _leave(self, ticket: _Ticket, answer: Answer) -> None:
        self._tickets.remove(ticket)
        self._chosen = None
        if ticket.states is None:
            self._no_longer_waiting()
        if isinstance(answer, dict):
            self.counts.left += len(ticket.rows)
        elif isinstance(answer, TimeUp):
            self.counts.timed_out += len(ticket.rows)
        elif isinstance(answer, ClientGone):
            self.counts.cancelled += len(ticket.rows)
        else:
            self.counts.failed += len(ticket.rows)
        try:
            ticket.answer(answer)
        except Exception:
            logging.getLogger(__name__).exception("an answer could not be given")


def _flight(engine: Engine, manifest: Manifest) -> Flight | WholeFlight:
    if isinstance(engine, StepEngine) and engine.joins:
        return Flight(engine, manifest)
    return WholeFlight(engine, manifest)
