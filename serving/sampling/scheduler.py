"""Which requests step next: a pure function of the requests that are there and of what a step costs.

Every request has a due time, and the one that is due first always steps. It is due ``STRETCH`` times the work that is
left of it after it arrived: short work comes first (shortest remaining processing time, Schrage 1968), and what waits
becomes urgent (earliest deadline first, Liu and Layland 1973). A request may pause between two steps, however often.

How many rows step with it is what keeps all requests waiting the least, with those that are to be expected: where a
batch costs as much as its rows one by one (on most CPUs) that is few, where it costs hardly more than one row
(on most GPUs) as many as there are. Where a batch runs whole trajectories, it is cut where the lengths differ so much
that this is worth a batch more.

Nothing starves: only those that arrive before a request's due time are ever ahead of it, and each launch takes a step
of the foremost. A request that is due at d has left at the latest after as many launches, from d on, as are steps left
then in it and in all that arrived before d. As the queue is bounded, so is that.
"""

import bisect
import dataclasses
import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property

STRETCH = 32.0
FIRST, DEFAULT, LAST = 1, 5, 9  # priorities; the lowest number comes first, as in Triton
HORIZON = 32  # requests that are looked at one by one when a batch is sized


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds of a step for some batches, as measured; ``padded`` if all others run as the next larger one.

    Those of others are interpolated. A batch is never taken to cost less than a smaller one.
    """

    seconds: Mapping[int, float]
    padded: bool = False

    @cached_property
    def of(self) -> tuple[float, ...]:
        """Seconds by number of rows, from 0 to the largest batch."""
        costs = [0.0]
        for size, measured in sorted(self.seconds.items()):
            before, last = len(costs) - 1, costs[-1]
            rise = max(0.0, measured - last)
            shares = (1.0 if self.padded else (rows - before) / (size - before) for rows in range(before + 1, size + 1))
            costs += [last + rise * share for share in shares]
        return tuple(costs)


@dataclasses.dataclass(frozen=True)
class Work:
    """What is left of a request.

    rows: its samples, which step together. steps: at least 1. arrival: in seconds. priority: FIRST to LAST.
    begun: whether it holds states, for which there is only so much memory.
    """

    rows: int
    steps: int
    arrival: float
    priority: int = DEFAULT
    begun: bool = False


@dataclasses.dataclass(frozen=True)
class Scheduler:
    """longest: the most steps that a request can have. most_held: rows that may hold states at the same time, and one
    largest batch more if some of them are more urgent than others.

    whole: whether a batch runs until its longest request is done, and all are answered then.
    """

    cost: Cost
    longest: int
    most_held: int
    whole: bool = False

    def due(self, work: Work) -> float:
        """A moment on the clock of arrivals. A level of priority weighs as much as the most work a request can be."""
        seconds = work.steps * self.cost.of[work.rows]
        most = self.longest * self.cost.of[-1]
        return work.arrival + STRETCH * (seconds + (work.priority - FIRST) * most)

    def choose(self, works: Sequence[Work], rate: float = 0.0) -> list[int]:
        """The requests that step next, as indices into ``works``, the first due first; none only if there are none.

        Together they have no more rows than the largest batch. rate: requests that arrive, per second.
        """
        order = self._startable(works, sorted(range(len(works)), key=lambda k: (self.due(works[k]), k)))
        if not order:
            return []
        foremost = [works[k] for k in order[:HORIZON]]
        find_size = self._size_of_whole if self.whole else self._size
        return self._fitting(works, order, find_size(foremost, len(works) - len(foremost), rate))

    def _startable(self, works: Sequence[Work], order: Sequence[int]) -> list[int]:
        """Those that hold states, and those before the first for whose states there is no room.

        What is less urgent takes no room from what is more urgent, as long as one largest batch is enough.
        """
        startable = []
        held = Counter[int]()  # rows by priority
        for work in works:
            held[work.priority] += work.rows if work.begun else 0
        for k in order:
            work = works[k]
            if not work.begun:
                as_urgent = sum(rows for priority, rows in held.items() if priority <= work.priority)
                reserve = len(self.cost.of) - 1
                if as_urgent + work.rows > self.most_held or held.total() + work.rows > self.most_held + reserve:
                    break
                held[work.priority] += work.rows
            startable.append(k)
        return startable + [k for k in order[len(startable) :] if works[k].begun]

    def _fitting(self, works: Sequence[Work], order: Sequence[int], size: int) -> list[int]:
        """Others come along where more rows than ``size`` cost no more, but none that makes a whole batch longer."""
        room = bisect.bisect_right(self.cost.of, self.cost.of[size]) - 1
        chosen: list[int] = []
        rows = longest = 0
        for k in order:
            work = works[k]
            if rows + work.rows > size:
                size = 0
            if rows + work.rows <= room and (size or not self.whole or work.steps <= longest):
                chosen.append(k)
                rows, longest = rows + work.rows, max(longest, work.steps)
        return chosen

    def _size(self, queue: Sequence[Work], behind: int, rate: float) -> int:
        """Rows of a batch, of sizes that are equally good the smallest."""
        first = queue[0].rows
        sizes = [first, *(size for size in sorted(self.cost.seconds) if size > first)]
        return min(sizes, key=lambda size: round(self._waiting(queue, behind, rate, size), 9))

    def _size_of_whole(self, queue: Sequence[Work], behind: int, rate: float) -> int:
        """Rows of the first of the batches into which the queue, in its order, is cut so that all wait the least.

        Those that arrive meanwhile wait for half of it.
        """
        largest = len(self.cost.of) - 1
        seconds = sum(work.rows * work.steps for work in queue) * self.cost.of[largest] / largest
        others = behind + rate * seconds / 2
        least, sizes = [0.0] * (len(queue) + 1), [0] * len(queue)  # from each request on
        for first in reversed(range(len(queue))):
            rows = steps = 0
            ways = []
            for last in range(first, len(queue)):
                rows, steps = rows + queue[last].rows, max(steps, queue[last].steps)
                if rows > largest:
                    break
                waiting = len(queue) - first + others
                ways.append((waiting * steps * self.cost.of[rows] + least[last + 1], rows))
            least[first], sizes[first] = min(ways)
        return sizes[0]

    def _waiting(self, queue: Sequence[Work], behind: int, rate: float, size: int) -> float:
        """Seconds that all requests together would still wait if from now on batches had up to ``size`` rows.

        behind: how many wait for all of the queue, beside those that arrive meanwhile, which wait for half of it.
        """
        under_way: list[tuple[int, int]] = []  # (the step after which it leaves, rows)
        step, rows, now, total, joined = 0, 0, 0.0, 0.0, 0
        while joined < len(queue) or under_way:
            while joined < len(queue) and (not under_way or rows + queue[joined].rows <= size):
                heapq.heappush(under_way, (step + queue[joined].steps, queue[joined].rows))
                rows += queue[joined].rows
                joined += 1
            leaves, leaving = heapq.heappop(under_way)
            now += (leaves - step) * self.cost.of[rows]
            step, rows, total = leaves, rows - leaving, total + now
        return total + (behind + rate * now / 2) * now


class ArrivalRate:
    """Requests per second, the older the less they count."""

    MEMORY = 30.0  # seconds after which one counts 1/e

    def __init__(self) -> None:
        self._rate = self._last = 0.0

    def at(self, second: float) -> float:
        return self._rate * math.exp((self._last - second) / self.MEMORY)

    def count(self, second: float) -> None:
        """One more, not before the one before."""
        self._rate, self._last = self.at(second) + 1 / self.MEMORY, second
