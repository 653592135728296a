"""The scheduler against schedules that were found by trying all, and what it promises to those that wait."""

import dataclasses
import itertools
import random
from functools import cache

import pytest

from serving.sampling.scheduler import DEFAULT, FIRST, LAST, STRETCH, ArrivalRate, Cost, Scheduler, Work

LINEAR = Cost({rows: 0.02 * rows for rows in (1, 2, 4, 8)})
NEARLY_LINEAR = Cost({1: 0.020, 2: 0.042, 4: 0.077, 8: 0.135})
FLAT = Cost({rows: 0.008 + 0.0005 * rows for rows in (1, 2, 4, 8)}, padded=True)
COSTS = {"linear": LINEAR, "nearly linear": NEARLY_LINEAR, "flat": FLAT}


def scheduler(cost: Cost, longest: int = 50, most_held: int = 1000) -> Scheduler:
    return Scheduler(cost, longest, most_held)


def after(works: list[Work], chosen: list[int]) -> list[Work]:
    """A launch later; those that are done have no steps."""
    stepped = {k: dataclasses.replace(works[k], steps=works[k].steps - 1, begun=True) for k in chosen}
    return [stepped.get(k, work) for k, work in enumerate(works)]


def seconds_waited(cost: Cost, works: list[Work]) -> float:
    """By all requests together, if the scheduler serves them and no more arrive."""
    plan, total = scheduler(cost), 0.0
    while works:
        chosen = plan.choose(works)
        total += len(works) * cost.of[sum(works[k].rows for k in chosen)]
        works = [work for work in after(works, chosen) if work.steps]
    return total


def least_seconds(cost: Cost, works: list[Work]) -> float:
    """The same for the best of all schedules."""
    rows = [work.rows for work in works]

    @cache
    def least(steps: tuple[int, ...]) -> float:
        live = [k for k, left in enumerate(steps) if left]
        launches = itertools.chain.from_iterable(itertools.combinations(live, n + 1) for n in range(len(live)))
        totals = (
            len(live) * cost.of[batch] + least(tuple(left - (k in chosen) for k, left in enumerate(steps)))
            for chosen in launches
            if (batch := sum(rows[k] for k in chosen)) < len(cost.of)
        )
        return min(totals, default=0.0)

    return least(tuple(work.steps for work in works))


@pytest.mark.parametrize(("cost", "worst"), [("linear", 1.0), ("nearly linear", 1.02), ("flat", 1.2)])
def test_hardly_worse_than_the_best_of_all_schedules(cost: str, worst: float) -> None:
    dice = random.Random(cost)
    ratios = []
    for _ in range(60):
        works = [Work(dice.randint(1, 5), dice.randint(1, 5), 0.0) for _ in range(dice.randint(2, 4))]
        ratios.append(seconds_waited(COSTS[cost], works) / least_seconds(COSTS[cost], works))
    assert min(ratios) > 1 - 1e-9
    assert max(ratios) < worst + 1e-9
    assert sum(ratios) < 1.005 * len(ratios)


def least_seconds_of_whole(cost: Cost, works: list[Work]) -> float:
    """That of the best schedule of batches that run until their longest is done."""

    @cache
    def least(live: frozenset[int]) -> float:
        launches = itertools.chain.from_iterable(itertools.combinations(live, n + 1) for n in range(len(live)))
        totals = (
            len(live) * max(works[k].steps for k in chosen) * cost.of[batch] + least(live.difference(chosen))
            for chosen in launches
            if (batch := sum(works[k].rows for k in chosen)) < len(cost.of)
        )
        return min(totals, default=0.0)

    return least(frozenset(range(len(works))))


@pytest.mark.parametrize(("cost", "worst"), [("linear", 1.0), ("nearly linear", 1.0), ("flat", 1.05)])
def test_whole_batches_are_hardly_worse_than_the_best(cost: str, worst: float) -> None:
    dice = random.Random(cost)
    ratios = []
    for _ in range(60):
        works = [Work(dice.randint(1, 5), dice.choice([2, 8, 50]), 0.0) for _ in range(dice.randint(2, 5))]
        plan, left, total = Scheduler(COSTS[cost], 50, 1000, whole=True), works, 0.0
        while left:
            chosen = plan.choose(left)
            seconds = max(left[k].steps for k in chosen) * COSTS[cost].of[sum(left[k].rows for k in chosen)]
            total += len(left) * seconds
            left = [work for k, work in enumerate(left) if k not in chosen]
        ratios.append(total / least_seconds_of_whole(COSTS[cost], works))
    assert min(ratios) > 1 - 1e-9
    assert max(ratios) < worst + 1e-9
    assert sum(ratios) < 1.005 * len(ratios)


def test_the_short_do_not_wait_for_the_long_in_whole_batches() -> None:
    """Though there is room for it: they would be answered with it."""
    works = [Work(3, 8, 0.0), Work(1, 50, 0.0), Work(1, 8, 0.0)]
    assert scheduler(FLAT).choose(works) == [2, 0, 1]
    whole = dataclasses.replace(scheduler(FLAT), whole=True)
    assert whole.choose(works) == [2, 0]
    assert whole.choose(works[1:2]) == [0]
    assert whole.choose([works[0], works[1], works[0]]) == [0, 2]


def test_what_costs_as_much_one_by_one_is_served_one_by_one() -> None:
    works = [Work(2, 9, 0.0), Work(1, 4, 0.0), Work(1, 3, 0.0)]
    assert scheduler(LINEAR).choose(works) == [2]
    assert scheduler(FLAT).choose(works) == [2, 1, 0]


def test_rows_that_cost_nothing_run_along() -> None:
    """Five rows are padded to eight, and the three that are due last fit in."""
    works = [Work(5, 2, 0.0), Work(4, 3, 0.0), Work(3, 40, 0.0)]
    assert scheduler(FLAT).choose(works) == [0, 2]


def test_a_batch_grows_with_those_who_will_come() -> None:
    works = [Work(1, 8, 0.0), *(Work(1, 50, 0.0) for _ in range(7))]
    sizes = [len(scheduler(NEARLY_LINEAR).choose(works, rate)) for rate in (0.0, 5.0)]
    assert sizes == [1, 8]


@pytest.mark.parametrize("cost", COSTS)
def test_shorter_work_comes_first_and_older_work_before_equal(cost: str) -> None:
    works = [Work(4, 50, 0.0), Work(4, 8, 1.0), Work(4, 8, 0.5), Work(4, 50, 10.0)]
    plan = scheduler(COSTS[cost])
    assert sorted(range(4), key=lambda k: plan.due(works[k])) == [2, 1, 0, 3]
    assert plan.choose(works)[0] == 2


@pytest.mark.parametrize("cost", COSTS)
def test_priority_overtakes(cost: str) -> None:
    """The longest of one level is due before the shortest of the next, and so pauses nobody but those behind it."""
    plan = scheduler(COSTS[cost])
    longest, shortest = Work(8, 50, 1.0, priority=DEFAULT - 1), Work(1, 1, 1.0)
    assert plan.choose([shortest, longest]) == [1]
    assert plan.choose([dataclasses.replace(shortest, begun=True), longest]) == [1]
    levels = [plan.due(Work(1, 1, 0.0, priority)) for priority in range(FIRST, LAST + 1)]
    assert levels == sorted(levels)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("most_held", [8, 1000])
def test_nothing_starves(monkeypatch: pytest.MonkeyPatch, cost: str, most_held: int) -> None:
    """Under more load than can be served, every request is gone after as many launches as are promised.

    From when it is due on, they are no more than the steps left in it and in all that arrived before.
    """
    monkeypatch.setattr("serving.sampling.scheduler.STRETCH", 0.5)  # many are due while they wait
    dice, plan = random.Random(5), scheduler(COSTS[cost], longest=30, most_held=most_held)
    now, works, allowed = 0.0, [], {}
    overtaken = 0
    for launch in range(6000):
        arrivals = dice.random() < 0.4 and len(works) < 40
        if launch < 4000 and arrivals:
            works.append(Work(dice.randint(1, 8), dice.choice([1, 2, 30]), now, dice.choice([4, 5, 5])))
        if not works:
            continue
        for work in works:
            if plan.due(work) <= now and work.arrival not in allowed:
                allowed[work.arrival] = sum(other.steps for other in works)
        chosen = plan.choose(works)
        assert sum(works[k].rows for k in chosen) <= 8
        overtaken += works[chosen[0]].arrival > min(work.arrival for work in works)
        now += COSTS[cost].of[sum(works[k].rows for k in chosen)]
        works = [work for work in after(works, chosen) if work.steps]
        for work in works:
            if work.arrival in allowed:
                allowed[work.arrival] -= 1
                assert allowed[work.arrival] > 0
        assert sum(work.rows for work in works if work.begun) <= most_held + 8
    assert overtaken > 500
    assert len(allowed) > 50
    assert works == []


def test_without_ageing_the_long_would_starve(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above is worth: one long request under a stream of short ones."""

    def launches_until_done(stretch: float) -> int:
        monkeypatch.setattr("serving.sampling.scheduler.STRETCH", stretch)
        plan, now, works = scheduler(LINEAR), 0.0, [Work(1, 50, 0.0)]
        for launch in range(2000):
            works.append(Work(1, 1, now))
            chosen = plan.choose(works)
            now += LINEAR.of[len(chosen)]
            works = [work for work in after(works, chosen) if work.steps]
            if all(work.arrival for work in works):
                return launch
        return 2000

    assert launches_until_done(1e9) == 2000
    assert launches_until_done(STRETCH) < 50 * (STRETCH + 2)


def test_states_take_no_more_memory_than_allowed() -> None:
    plan = scheduler(FLAT, most_held=8)
    begun = [Work(4, 9, 0.0, begun=True), Work(3, 9, 0.0, begun=True)]
    assert plan.choose([*begun, Work(2, 1, 0.0)])[0] == 0
    assert plan.choose([*begun, Work(1, 1, 0.0)])[0] == 2
    # What waits for room is not overtaken in the room by what needs less.
    assert plan.choose([*begun, Work(2, 1, 0.0), Work(1, 5, 0.0)]) == [0, 1]


def test_priority_overtakes_what_fills_the_memory() -> None:
    plan = scheduler(FLAT, most_held=8)
    paused = [Work(8, 30, 0.0, DEFAULT, begun=True)]
    assert plan.choose([*paused, Work(8, 2, 1.0, FIRST)])[0] == 1
    assert plan.choose([*paused, Work(8, 2, 1.0, DEFAULT)])[0] == 0
    urgent = Work(8, 2, 1.0, FIRST, begun=True)
    assert plan.choose([*paused, urgent, Work(8, 1, 1.0, FIRST)])[0] == 1, "one largest batch, no more"


def test_no_requests_no_launch() -> None:
    assert scheduler(LINEAR).choose([]) == []


def test_costs_between_those_measured() -> None:
    assert Cost({1: 1.0, 2: 3.0, 4: 4.0}).of == (0.0, 1.0, 3.0, 3.5, 4.0)
    assert Cost({1: 1.0, 2: 3.0, 4: 4.0, 5: 4.5}, padded=True).of == (0.0, 1.0, 3.0, 4.0, 4.0, 4.5)
    assert Cost({1: 2.0, 2: 1.0, 3: 4.0}).of == (0.0, 2.0, 2.0, 4.0), "a measurement that is off"


def test_the_rate_of_arrivals() -> None:
    rate = ArrivalRate()
    assert rate.at(0.0) == 0
    for k in range(2000):
        rate.count(k / 4)
    assert rate.at(500.0) == pytest.approx(4.0, rel=0.02)
    assert rate.at(2000.0) < 1e-6
