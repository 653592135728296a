"""The scheduler, and what it is instead of, on a clock that only counts: no network runs."""

import dataclasses
from collections.abc import Callable, Sequence

from benchmarks.load.arrivals import Arrival
from serving.sampling.scheduler import ArrivalRate, Cost, Scheduler, Work

# Chooses who steps next among those that are there: positions in the list.
Policy = Callable[[Sequence[Work], float], list[int]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """latencies: seconds from arrival to answer, in the order of the arrivals. end: when the last was answered."""

    latencies: list[float]
    end: float
    launches: int
    row_steps: int


def simulate(arrivals: Sequence[Arrival], cost: Cost, policy: Policy) -> Outcome:
    """Serve all arrivals; a launch takes what its rows cost, and everything else takes no time."""
    waiting = list(enumerate(arrivals))[::-1]
    live: list[tuple[int, Work]] = []
    latencies = [0.0] * len(arrivals)
    now, launches, row_steps, rate = 0.0, 0, 0, ArrivalRate()
    while waiting or live:
        if not live:
            now = max(now, waiting[-1][1].second)
        while waiting and waiting[-1][1].second <= now:
            number, arrival = waiting.pop()
            rate.count(arrival.second)
            live.append((number, Work(arrival.rows, arrival.steps, arrival.second)))
        chosen = policy([work for _, work in live], rate.at(now))
        rows = sum(live[k][1].rows for k in chosen)
        now, launches, row_steps = now + cost.of[rows], launches + 1, row_steps + rows
        for k in chosen:
            number, work = live[k]
            live[k] = number, dataclasses.replace(work, steps=work.steps - 1, begun=True)
            latencies[number] = now - arrivals[number].second
        live = [one for one in live if one[1].steps]
    return Outcome(latencies, now, launches, row_steps)


def simulate_static(arrivals: Sequence[Arrival], cost: Cost) -> Outcome:
    """As Triton's batcher does it: whoever waits first makes a batch, and all are answered when its last row is done.

    Rows that are done leave a batch's launches, but not where batches are padded: there it is one graph.
    """
    largest, first, now, launches, row_steps = max(cost.seconds), 0, 0.0, 0, 0
    latencies: list[float] = []
    while first < len(arrivals):
        now = max(now, arrivals[first].second)
        last, rows = first, 0
        while last < len(arrivals) and arrivals[last].second <= now and rows + arrivals[last].rows <= largest:
            rows += arrivals[last].rows
            last += 1
        batch = arrivals[first:last]
        for step in range(max(arrival.steps for arrival in batch)):
            live = sum(arrival.rows for arrival in batch if arrival.steps > step)
            now, launches, row_steps = now + cost.of[rows if cost.padded else live], launches + 1, row_steps + live
        latencies += [now - arrival.second for arrival in batch]
        first = last
    return Outcome(latencies, now, launches, row_steps)


def in_flight(cost: Cost, longest: int = 1000, most_held: int | None = None) -> Policy:
    """The scheduler itself."""
    return Scheduler(cost, longest, most_held or 4 * max(cost.seconds)).choose


def joining(largest: int, order: Callable[[Work], float]) -> Policy:
    """Whoever has begun stays until it is done, and others join in this order, as they fit."""

    def choose(works: Sequence[Work], rate: float) -> list[int]:
        begun = [k for k, work in enumerate(works) if work.begun]
        others = sorted((k for k, work in enumerate(works) if not work.begun), key=lambda k: order(works[k]))
        return begun + _filled(works, others, largest - sum(works[k].rows for k in begun))

    return choose


def shortest_remaining(largest: int) -> Policy:
    """Full batches of whoever has the least left, with pauses, and no ageing: long work may starve."""

    def choose(works: Sequence[Work], rate: float) -> list[int]:
        return _filled(works, sorted(range(len(works)), key=lambda k: works[k].rows * works[k].steps), largest)

    return choose


def _filled(works: Sequence[Work], order: Sequence[int], room: int) -> list[int]:
    """The first that fit; none overtakes another that does not."""
    chosen = []
    for k in order:
        if works[k].rows > room:
            break
        chosen.append(k)
        room -= works[k].rows
    return chosen
