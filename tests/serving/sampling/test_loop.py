"""Requests in flight: their bits whoever joins and leaves, and what becomes of those that cannot be served."""

import json
import os
import random
import threading
from concurrent.futures import Future
from functools import cache

import numpy as np
import pytest
from tiny import DESCENT, FLOW, LINEAR, write_tiny_bundle

from serving.bundle import Condition, load_bundle
from serving.engines import EngineError, StepEngine, open_on_cpu
from serving.engines.device import DeadGpuError
from serving.sampling.loop import ASK_SECONDS, ClientGone, Loop, QueueFull, Stopped, TimeUp
from serving.sampling.requests import parse_request
from serving.sampling.sampler import Sampler
from serving.sampling.scheduler import DEFAULT, Cost
from serving.sampling.solvers import solvers_for
from serving.sampling.step_cost import measure_cost

MIXES = int(os.environ.get("MEDGEN_MIXES", "120"))
MASK = Condition("mask", (1, 16, 16), classes=4)
PHOTO = Condition("photo", (1, 16, 16), low=0.0, high=3.0)
KINDS = {
    "diffusion": ({}, solvers_for(LINEAR)),
    "flow": ({"schedule": FLOW}, solvers_for(FLOW)),
    "conditional": ({"condition": MASK, "sample_shape": (1, 16, 16)}, solvers_for(LINEAR)),
    "no steps": ({"schedule": None}, [None]),
    "inversion": ({"schedule": DESCENT, "condition": PHOTO, "noise_channels": 1}, solvers_for(DESCENT)),
}
LINEAR_COST = Cost({rows: 0.02 * rows for rows in (1, 2, 4, 8)})
FLAT_COST = Cost({rows: 0.008 + 0.0005 * rows for rows in (1, 2, 4, 8)}, padded=True)


class Watched(StepEngine):
    """An engine that keeps count of its launches, and cannot do what it is told to fail at."""

    def __init__(self, engine):
        self._engine = engine
        self.batches, self.finished = [], []
        self.fails = lambda sample: False

    def step(self, sample, history, noise, coeffs, condition=None):
        if self.fails(sample):
            raise EngineError("thirteen is too much")
        self.batches.append(len(sample))
        return self._engine.step(sample, history, noise, coeffs, condition)

    def finish(self, sample, condition=None):
        self.finished.append(len(sample))
        return self._engine.finish(sample, condition)


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


class Bench:
    """A loop that is turned by hand, and its clock."""

    def __init__(self, bundle, cost=FLAT_COST, **options):
        self.bundle, self.clock = bundle, Clock()
        self.engine = Watched(open_on_cpu(bundle))
        self.loop = Loop(bundle, self.engine, cost, clock=self.clock, **options)

    def ask(self, seeds, solver=None, steps=None, condition=None, **how):
        given = {"solver": solver, "steps": steps}
        parameters = {name: value for name, value in given.items() if value is not None}
        request = parse_request(self.bundle.manifest, np.array(seeds)[:, None], parameters, condition)
        future = Future()

        def settle(answer):
            future.set_exception(answer) if isinstance(answer, Exception) else future.set_result(answer)

        self.loop.submit(request, settle, **how)
        return future

    def turn(self, times=1):
        for _ in range(times):
            self.loop.turn()

    def until_done(self, *futures):
        turns = 0
        while not all(future.done() for future in futures):
            self.turn()
            turns += 1
            assert turns < 10_000
        return turns


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return {
        kind: load_bundle(write_tiny_bundle(folder / kind, max_batch=8, **options))
        for kind, (options, _) in KINDS.items()
    }


@pytest.fixture
def bench(bundles):
    return Bench(bundles["diffusion"])


def anatomy(seed):
    return np.random.default_rng(seed).integers(0, 4, (1, 16, 16), np.uint8)


def assert_same_bits(arrays, row, alone):
    assert arrays.keys() == alone.keys()
    for name, values in alone.items():
        assert arrays[name].dtype == values.dtype
        assert arrays[name][row].tolist() == values[0].tolist() if values.dtype == object else (
            arrays[name][row].tobytes() == values[0].tobytes()
        )  # fmt: skip


# --- the promise ---


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_the_same_whoever_joins_and_leaves(bundles, kind):
    """A mix is a few requests that come between steps, some of which are cancelled or run out of time."""
    bundle, solvers, dice = bundles[kind], KINDS[kind][1], random.Random(kind)
    sampler = Sampler(bundle)

    def condition_of(seeds):
        if kind not in ("conditional", "inversion"):
            return None
        dtype = bundle.manifest.condition.dtype
        return np.stack([anatomy(seed) for seed in seeds]).astype(dtype)

    @cache
    def alone(seed, parameters):
        column = np.array([[seed]])
        return sampler.sample([parse_request(bundle.manifest, column, dict(parameters), condition_of([seed]))])[0]

    served, ended = 0, 0
    for _ in range(MIXES if kind == "diffusion" else MIXES // 6):
        cost = Cost({rows: dice.uniform(1, 2) * (1 + dice.choice([0.05, 1]) * rows) for rows in (1, 2, 4, 8)})
        bench = Bench(bundle, cost)
        asked = []
        for _ in range(dice.randint(2, 7)):
            seeds = [dice.choice([0, 1, 2, 3, 2**40 + 1, 2**63 - 1]) for _ in range(dice.randint(1, 8))]
            chosen = {"solver": dice.choice(solvers), "steps": dice.choice([1, 2, 5, 11])} if solvers[0] else {}
            gone = [False]
            how = {"priority": dice.choice([1, 5, 9]), "timeout": dice.choice([None, None, None, 6.0])}
            future = bench.ask(seeds, **chosen, condition=condition_of(seeds), is_gone=lambda g=gone: g[0], **how)
            asked.append((future, seeds, tuple(chosen.items()), gone))
            for _ in range(dice.randint(0, 5)):
                bench.turn()
                bench.clock.seconds += 1
                if dice.random() < 0.05:
                    dice.choice(asked)[3][0] = True
        bench.until_done(*(future for future, *_ in asked))
        for future, seeds, parameters, _ in asked:
            if error := future.exception():
                assert isinstance(error, (ClientGone, TimeUp))
                ended += 1
                continue
            for row, seed in enumerate(seeds):
                assert_same_bits(future.result(), row, alone(seed, parameters))
                served += 1
        assert bench.loop.rows_in_flight == bench.loop.rows_waiting == 0
    assert served > 20
    assert ended > 0 or kind == "no steps"


def test_threads_may_ask_while_it_runs(bundles):
    bundle = bundles["diffusion"]
    bench = Bench(bundle)
    bench.loop.start()
    sampler, lock, answers = Sampler(bundle), threading.Lock(), []

    def ask(number):
        dice = random.Random(number)
        for _ in range(8):
            seed, steps = dice.randint(0, 5), dice.choice([2, 3, 9])
            future = bench.ask([seed], "dpmpp_3m", steps)
            with lock:
                answers.append((seed, steps, future))
            if dice.random() < 0.5:
                future.result(60)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bench.loop.stop()
    assert len(answers) == 48
    for seed, steps, future in answers:
        column = np.array([[seed]])
        request = parse_request(bundle.manifest, column, {"solver": "dpmpp_3m", "steps": steps})
        assert_same_bits(future.result(0), 0, sampler.sample([request])[0])


# --- who steps when ---


def test_a_request_joins_at_the_next_step_and_leaves_after_its_last(bench):
    long = bench.ask([1, 2], "ddim", 20)
    bench.turn(3)
    short = bench.ask([3], "ddim", 2)
    assert bench.until_done(short) == 2
    assert not long.done()
    assert bench.until_done(long) == 15
    assert bench.engine.batches == [2] * 3 + [3] * 2 + [2] * 15
    assert bench.engine.finished == [1, 2]


def test_on_a_linear_engine_long_work_pauses(bundles):
    bench = Bench(bundles["diffusion"], LINEAR_COST)
    long = bench.ask([1, 2], "ddim", 20)
    bench.turn(3)
    short = bench.ask([3], "ddim", 2)
    assert bench.until_done(short) == 2
    bench.until_done(long)
    assert bench.engine.batches == [2] * 3 + [1] * 2 + [2] * 17


def test_whole_trajectories_of_the_short_do_not_wait_for_the_long(bundles, monkeypatch):
    monkeypatch.setattr(Watched, "joins", False)
    bench = Bench(bundles["diffusion"])
    long = bench.ask([1], "ddim", 50)
    short = [bench.ask([2], "ddim", 2), bench.ask([3], "ddim", 3)]
    bench.turn()
    assert all(future.done() for future in short)
    assert not long.done()
    assert bench.until_done(long) == 1


def test_priority_overtakes_what_is_under_way(bundles):
    bench = Bench(bundles["diffusion"], LINEAR_COST)
    first = bench.ask([1], "ddim", 5)
    bench.turn()
    waiting = bench.ask([2], "ddim", 1)
    urgent = bench.ask([3] * 8, "ddim", 30, priority=DEFAULT - 1)
    assert bench.until_done(urgent) == 30
    assert not first.done()
    assert not waiting.done()
    bench.until_done(first, waiting)


@pytest.mark.parametrize("has_begun", [True, False])
def test_who_is_gone_has_left_at_the_next_step(bench, has_begun):
    gone = False
    cancelled = bench.ask([1, 2, 3, 4, 5], "ddim", 50, is_gone=lambda: gone)
    bench.turn(4 if has_begun else 0)
    stays = bench.ask([6, 7, 8, 9], "ddim", 3)
    gone = True
    bench.clock.seconds += ASK_SECONDS
    assert bench.until_done(stays) == 3
    assert bench.engine.batches == [5] * (4 if has_begun else 0) + [4] * 3
    with pytest.raises(ClientGone):
        cancelled.result(0)
    assert (bench.loop.counts.cancelled, bench.loop.counts.left) == (5, 4)


def test_whether_somebody_is_gone_is_asked_now_and_then(bench):
    asked = []
    answer = bench.ask([1, 2], "ddim", 20, is_gone=lambda: asked.append(bench.clock.seconds))
    bench.turn(5)
    bench.clock.seconds += ASK_SECONDS
    bench.until_done(answer)
    assert asked == [0, ASK_SECONDS]


def test_who_waits_and_is_gone_gives_up_the_place_in_the_queue(bundles):
    bench = Bench(bundles["diffusion"], LINEAR_COST, most_waiting=2)
    bench.ask([1], "ddim", 30)
    bench.turn()
    for seed in (2, 3):
        bench.ask([seed], "ddim", 50, is_gone=lambda: True)
    with pytest.raises(QueueFull, match="queue of tiny is full: 2 requests wait"):
        bench.ask([4])
    bench.turn(4)
    assert bench.loop.rows_waiting == 0
    assert bench.engine.batches == [1] * 5
    bench.ask([4])


@pytest.mark.parametrize(("begun", "said"), [(True, "after 4 of 50 steps"), (False, "after 0 of 50 steps")])
def test_who_has_run_out_of_time_has_left_at_the_next_step(bench, begun, said):
    late = bench.ask([1, 2, 3, 4, 5], "ddim", 50, timeout=2.0)
    bench.turn(4 if begun else 0)
    bench.clock.seconds = 2.0
    stays = bench.ask([6, 7, 8, 9], "ddim", 3)
    assert bench.until_done(stays) == 3
    with pytest.raises(TimeUp, match=said):
        late.result(0)
    assert bench.engine.batches[-3:] == [4, 4, 4]
    assert (bench.loop.counts.timed_out, bench.loop.counts.left) == (5, 4)


def test_states_are_held_by_a_bounded_number_of_rows(bundles):
    """Each is shorter than all before it, and would pause them."""
    bench = Bench(bundles["diffusion"], LINEAR_COST, most_waiting=1000)
    futures = []
    for steps in range(60, 0, -1):
        futures.append(bench.ask([1] * 8, "ddim", steps))
        bench.turn()
        assert bench.loop.rows_in_flight <= 32
    bench.until_done(*futures)


def test_steps_of_requests_that_have_a_name(bench):
    named = bench.ask([1, 2], "ddim", 20, name="a")
    bench.ask([3], "ddim", 20)
    assert bench.loop.named == {}
    bench.turn(3)
    assert bench.loop.named == {"a": (3, 20)}
    bench.until_done(named)
    assert bench.loop.named == {}


# --- what goes wrong ---


def test_a_queue_that_is_full_refuses_at_once(bundles):
    bench = Bench(bundles["diffusion"], most_waiting=3)
    accepted = [bench.ask([seed], "ddim", 2) for seed in range(3)]
    for _ in range(5):
        with pytest.raises(QueueFull):
            bench.ask([9])
    bench.turn()
    accepted += [bench.ask([seed], "ddim", 2) for seed in range(3)]
    bench.until_done(*accepted)
    assert bench.loop.counts.refused == 5
    assert (bench.loop.counts.joined, bench.loop.counts.left) == (6, 6)


def test_each_request_fails_alone(bench):
    """In a batch of three, one cannot be stepped; the others are as if it had not been there."""
    good = [bench.ask([1], "ddim", 4), bench.ask([2, 3], "ddpm", 6)]
    bench.turn(2)
    bad = bench.ask([13], "ddim", 5)
    bench.turn()
    marked = bench.loop._tickets[-1].states
    bench.loop._flight._put_back()
    marked.sample[:] = 13
    bench.engine.fails = lambda sample: (sample == 13).all(axis=(1, 2, 3)).any()
    bench.until_done(*good, bad)
    with pytest.raises(EngineError, match="thirteen"):
        bad.result(0)
    fresh = Bench(bench.bundle)
    for future, (seeds, solver, steps) in zip(good, [([1], "ddim", 4), ([2, 3], "ddpm", 6)], strict=True):
        again = fresh.ask(seeds, solver, steps)
        fresh.until_done(again)
        assert future.result(0)["image"].tobytes() == again.result(0)["image"].tobytes()
    assert bench.loop.counts.failed == 1


def test_no_memory_for_a_batch_changes_no_bits(bench, monkeypatch):
    """Where there is none for all of it, each steps alone, from its own states."""
    futures = [bench.ask([seed], "dpmpp_2m", 6) for seed in (1, 2)]
    bench.turn(2)
    futures.append(bench.ask([3], "dpmpp_2m", 6))
    together = np.concatenate

    def too_much(arrays):
        if len(arrays := list(arrays)) == 3:
            raise MemoryError
        return together(arrays)

    monkeypatch.setattr("serving.sampling.flight.np.concatenate", too_much)
    bench.turn()
    monkeypatch.undo()
    bench.until_done(*futures)
    for seed, future in zip((1, 2, 3), futures, strict=True):
        request = parse_request(bench.bundle.manifest, np.array([[seed]]), {"solver": "dpmpp_2m", "steps": 6})
        assert_same_bits(future.result(0), 0, Sampler(bench.bundle).sample([request])[0])


def test_a_finish_that_fails_for_one_fails_for_it_alone(bench, monkeypatch):
    finish = bench.engine.finish

    def cannot_do_two(sample, condition=None):
        if len(sample) != 1:
            raise EngineError("one at a time")
        return finish(sample, condition)

    monkeypatch.setattr(bench.engine, "finish", cannot_do_two)
    one, two = bench.ask([1], "ddim", 3), bench.ask([2, 3], "ddim", 3)
    bench.until_done(one, two)
    with pytest.raises(EngineError, match="one at a time"):
        two.result(0)
    fresh = Bench(bench.bundle)
    again = fresh.ask([1], "ddim", 3)
    fresh.until_done(again)
    assert one.result(0)["image"].tobytes() == again.result(0)["image"].tobytes()


def test_values_that_are_not_finite_are_an_error_of_their_request_alone(bench, monkeypatch):
    finish = bench.engine.finish

    def broken(sample, condition=None):
        outputs = {name: values.copy() for name, values in finish(sample, condition).items()}
        outputs["image"][1, 0, 3, 3] = np.nan
        return outputs

    monkeypatch.setattr(bench.engine, "finish", broken)
    futures = [bench.ask([seed], "ddim", 2) for seed in (1, 2, 3)]
    bench.until_done(*futures)
    assert [future.exception() is None for future in futures] == [True, False, True]
    with pytest.raises(EngineError, match="NaN or infinity in image of tiny for seed 2, solver ddim, steps 2"):
        futures[1].result(0)


def test_an_answer_that_cannot_be_given_does_no_harm(bench, caplog):
    request = parse_request(bench.bundle.manifest, np.array([[1]]), {"steps": 2})
    bench.loop.submit(request, lambda answer: 1 / 0)
    other = bench.ask([2], steps=2)
    bench.until_done(other)
    assert "an answer could not be given" in caplog.text


def test_a_loop_that_fails_answers_all(bench, monkeypatch, caplog):
    futures = [bench.ask([1]), bench.ask([2])]
    monkeypatch.setattr(bench.loop._scheduler.__class__, "choose", lambda *_: 1 / 0)
    bench.turn()
    for future in futures:
        with pytest.raises(ZeroDivisionError):
            future.result(0)
    monkeypatch.undo()
    bench.until_done(bench.ask([3]))


def test_a_request_that_cannot_begin_fails_alone(bench, monkeypatch):
    begin = bench.loop._flight.begin

    def cannot_begin_13(rows):
        if rows[0].seed == 13:
            raise MemoryError("no room for it")
        return begin(rows)

    monkeypatch.setattr(bench.loop._flight, "begin", cannot_begin_13)
    good, bad = bench.ask([1], "ddim", 3), bench.ask([13], "ddim", 3)
    bench.until_done(good, bad)
    with pytest.raises(MemoryError, match="no room"):
        bad.result(0)
    assert good.exception() is None
    assert bench.loop.rows_waiting == 0


def test_a_gpu_that_is_dead_is_an_error_of_all_that_are_there(bundles, monkeypatch):
    """Those that wait, and those that come while it dies, too: the process is to end, and nobody else has them."""
    bench = Bench(bundles["diffusion"], LINEAR_COST)
    futures = [bench.ask([1], "ddim", 3), bench.ask([2] * 8, "ddim", 50)]

    def die(*_):
        futures.append(bench.ask([3]))
        raise DeadGpuError("GPU 0: a kernel crashed")

    monkeypatch.setattr(bench.engine, "step", die)
    bench.turn()
    assert len(futures) == 3
    for future in futures:
        with pytest.raises(DeadGpuError):
            future.result(0)
    assert bench.loop.counts.failed == 10


def test_figures_that_cannot_be_told_are_no_reason_to_serve_nobody(bundles, caplog):
    bench = Bench(bundles["diffusion"], between=lambda loop: 1 / 0)
    bench.loop.start()
    assert bench.ask([1], "ddim", 3).result(20)["image"].shape[0] == 1
    bench.loop.stop()
    assert "what happens between two steps failed" in caplog.text


# --- the end ---


def test_stopping_answers_what_is_in_flight_and_takes_nothing_more(bench):
    futures = [bench.ask([seed], "ddim", 30) for seed in range(12)]
    bench.loop.start()
    bench.loop.stop()
    assert all(future.done() and not future.exception() for future in futures)
    with pytest.raises(Stopped, match="tiny is being unloaded"):
        bench.ask([1])


def test_a_loop_that_never_ran_can_be_stopped(bench):
    bench.loop.stop()


def test_what_is_told_between_steps(bundles):
    seen = []
    bench = Bench(bundles["diffusion"], between=lambda loop: seen.append(loop.rows_in_flight))
    bench.until_done(bench.ask([1, 2], "ddim", 3))
    assert seen == [0, 2, 2, 2, 2, 0]
    counts = bench.loop.counts
    assert (counts.launches, counts.row_steps, counts.joined, counts.left) == (3, 6, 2, 2)
    assert bench.loop.network_seconds > 0


# --- what a step costs ---


class Slow(StepEngine):
    def __init__(self, clock, first):
        self.clock, self.first, self.sizes = clock, first, []

    def step(self, sample, history, noise, coeffs, condition=None):
        self.sizes.append(len(sample))
        self.clock.seconds += 1.5 * self.first if self.sizes.count(len(sample)) == 1 else self.first * len(sample)

    def finish(self, sample, condition=None):
        self.step(sample, None, None, None)


@pytest.mark.parametrize("kind", KINDS)
def test_cost_is_measured_for_every_bucket(bundles, kind):
    assert sorted(measure_cost(open_on_cpu(bundles[kind]), bundles[kind].manifest).seconds) == [1, 2, 4, 8]


def test_cost_leaves_out_the_first_of_every_size(bundles):
    clock = Clock()
    engine = Slow(clock, 0.25)
    cost = measure_cost(engine, bundles["diffusion"].manifest, clock)
    assert cost.seconds == pytest.approx({1: 0.25, 2: 0.5, 4: 1.0, 8: 2.0})
    assert not cost.padded
    assert engine.sizes == [1, 1, 1, 2, 2, 4, 4, 8, 8]


def test_cost_of_a_slow_engine_is_extrapolated(bundles):
    clock = Clock()
    engine = Slow(clock, 8.0)
    cost = measure_cost(engine, bundles["diffusion"].manifest, clock)
    assert engine.sizes == [1, 1]
    assert cost.seconds == pytest.approx({1: 8.0, 2: 16.0, 4: 32.0, 8: 64.0})


def test_an_engine_with_buckets_pads(bundles):
    engine = Slow(Clock(), 0.25)
    engine.buckets = (2, 8)
    cost = measure_cost(engine, bundles["no steps"].manifest, engine.clock)
    assert (sorted(cost.seconds), cost.padded) == ([2, 8], True)


def test_provenance_is_that_of_the_sampler(bench):
    future = bench.ask([5], "ddim", 2)
    bench.until_done(future)
    facts = json.loads(future.result(0)["provenance"][0, 0])
    expected = {"model": "tiny", "bundle": bench.bundle.digest, "seed": 5, "solver": "ddim", "steps": 2}
    assert facts == expected
