"""Requests in flight on the live server: who overtakes, who leaves early, and what is left at the end."""

import os
import random
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live import MAX_BATCH, PATIENCE, Live, add_gated_model, add_model, eventually, running, start
from tiny import LINEAR
from tritonclient import grpc
from tritonclient.utils import InferenceServerException

from serving.client import LocalClient, SampleClient
from serving.sampling.solvers import solvers_for

MODEL = "tiny_gated"
MIXES = int(os.environ.get("MEDGEN_MIXES", "15"))
OVERLOAD_SECONDS = float(os.environ.get("MEDGEN_OVERLOAD_SECONDS", "4"))


class Call:
    """A request through plain tritonclient that has been sent; cancel() as a client does."""

    def __init__(self, client: grpc.InferenceServerClient, model: str, seeds: list[int], **how: Any) -> None:
        tensor = grpc.InferInput("seed", [len(seeds), 1], "INT64")
        tensor.set_data_from_numpy(np.array(seeds)[:, None])
        self._done = threading.Event()
        self.model, self.seeds, self.how = model, seeds, how
        self.ended_at, self.result, self.error = 0.0, None, None
        timeout = how.pop("timeout", None)
        self.cancel = client.async_infer(model, [tensor], self._settle, parameters=how, timeout=timeout).cancel

    def _settle(self, result: Any, error: InferenceServerException | None) -> None:
        self.ended_at, self.result, self.error = time.monotonic(), result, error
        self._done.set()

    @property
    def has_ended(self) -> bool:
        return self._done.is_set()

    def wait(self) -> "Call":
        assert self._done.wait(PATIENCE), f"no answer for {self.seeds}"
        return self

    def assert_right(self, local: LocalClient) -> None:
        assert self.wait().error is None
        how = {name: value for name, value in self.how.items() if name != "priority_level"}
        expected = local.sample(self.model, seeds=self.seeds, **how)
        np.testing.assert_array_equal(self.result.as_numpy("image"), expected.arrays["image"])


@pytest.fixture
def client(live: Live):
    with grpc.InferenceServerClient(live.url("grpc")) as client:
        yield client


def figure(live: Live, name: str, model: str = MODEL) -> float:
    return live.metric(f"medgen_{name}", model)


def taken_in(live: Live, count: float, model: str = MODEL) -> None:
    eventually(lambda: live.metric("exec_count", model) >= count, "the model has taken them in")


def test_a_request_joins_at_the_next_step(live: Live, local: LocalClient, client: Any) -> None:
    """The long one has begun before the short one comes, and ends after it."""
    count = live.metric("exec_count", MODEL)
    with live.closed(MODEL) as waiting:
        long = Call(client, MODEL, [1, 2], steps=300, solver="ddpm")
        eventually(waiting.exists, "the long one is in its first step")
        short = Call(client, MODEL, [3], steps=3, solver="ddim")
        taken_in(live, count + 2)
    assert short.wait().ended_at < long.wait().ended_at
    for call in (short, long):
        call.assert_right(local)


def test_priority_overtakes(live: Live, local: LocalClient, client: Any) -> None:
    """Of requests that fill a batch each, the last is served first."""
    count = live.metric("exec_count", MODEL)
    with live.closed(MODEL) as waiting:
        first = Call(client, MODEL, [1] * MAX_BATCH, steps=50)
        eventually(waiting.exists, "the first is in its first step")
        others = [Call(client, MODEL, [seed] * MAX_BATCH, steps=40) for seed in (2, 3)]
        urgent = Call(client, MODEL, [4] * MAX_BATCH, steps=60, priority_level=1)
        taken_in(live, count + 4)
    assert urgent.wait().ended_at < min(call.wait().ended_at for call in (first, *others))
    for call in (urgent, first, *others):
        call.assert_right(local)


def test_samples_are_the_same_whoever_comes_and_goes(live: Live, local: LocalClient, client: Any) -> None:
    """Mixes of solvers and lengths that come while others are in flight, some of which are cancelled or late."""
    dice, solvers = random.Random(11), solvers_for(LINEAR)
    ended = {"samples": 0, "StatusCode.CANCELLED": 0, "StatusCode.UNAVAILABLE": 0}

    @cache
    def alone(seed: int, solver: str, steps: int) -> Any:
        return local.sample("tiny", seeds=[seed], solver=solver, steps=steps).arrays["image"][0]

    for _ in range(MIXES):
        calls: list[Call] = []
        for _ in range(dice.randint(3, 8)):
            seeds = [dice.randint(0, 9) for _ in range(dice.randint(1, MAX_BATCH))]
            late = {"timeout": dice.randint(1, 30_000)} if dice.random() < 0.05 else {}
            how = {"solver": dice.choice(solvers), "steps": dice.choice([1, 2, 5, 20, 60]), **late}
            calls.append(Call(client, "tiny", seeds, priority_level=dice.randint(4, 6), **how))
            time.sleep(dice.uniform(0, 0.01))
            if dice.random() < 0.1:
                dice.choice(calls).cancel()
        for call in calls:
            if error := call.wait().error:
                ended[error.status()] += 1
                continue
            ended["samples"] += len(call.seeds)
            expected = [alone(seed, call.how["solver"], call.how["steps"]) for seed in call.seeds]
            np.testing.assert_array_equal(
                call.result.as_numpy("image").view(np.uint8), np.stack(expected).view(np.uint8)
            )
    print(f"{MIXES} mixes: {ended}")
    assert ended["samples"] > 10 * MIXES


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_client_is_told_the_steps(live: Live, local: LocalClient, client: Any, protocol: str) -> None:
    """Of its own requests, not of those of others; and the server forgets them."""
    told: list[tuple[int, int]] = []
    how = {"steps": lambda *steps: told.append(steps), "metrics_url": live.url("metrics")}
    local_image = local.sample(MODEL, 2, seed=5, steps=600).arrays["image"]
    with SampleClient(live.url(protocol), protocol, **how) as watching, ThreadPoolExecutor() as threads:
        for _ in range(5):  # where others have the cores, all steps may be done before anybody looks
            with live.closed(MODEL) as waiting:
                foreign = Call(client, MODEL, [1, 2], steps=900)  # longer, and so it pauses
                eventually(waiting.exists, "the first is in its first step")
                answer = threads.submit(watching.sample, MODEL, 2, seed=5, steps=600)
                time.sleep(0.5)
            while not told and not answer.done():
                with live.closed(MODEL):
                    time.sleep(2.2)  # until figures are due, and read
                time.sleep(0.02)
            np.testing.assert_array_equal(answer.result().arrays["image"], local_image)
            foreign.assert_right(local)
            if told:
                break
    done, total = told[0]
    assert 0 < done < total == 600
    eventually(lambda: figure(live, "request_steps") == 0, "they are told no longer")


@pytest.mark.parametrize("level", [0, 10, 1.0, "1", True])
def test_a_priority_that_is_none_is_refused(client: Any, level: object) -> None:
    error = Call(client, MODEL, [1], priority_level=level).wait().error
    assert error.status() == "StatusCode.INVALID_ARGUMENT"
    assert f"priority_level is {level!r}" in error.message()
    assert "from 1, served first, to 9" in error.message()


def test_who_cancels_has_left_at_the_next_step(live: Live, local: LocalClient, client: Any) -> None:
    model, names = "tiny_busy", ("rows_cancelled_total", "steps_total", "rows_left_total")
    before = {name: figure(live, name, model) for name in names}

    def since(name: str) -> float:
        return figure(live, name, model) - before[name]

    with live.closed(model) as waiting:
        gone = Call(client, model, [1, 2, 3], steps=500)
        eventually(waiting.exists, "it is in its first step")
        gone.cancel()
        assert gone.wait().error.status() == "StatusCode.CANCELLED"
        time.sleep(0.2)  # Triton hears of it a moment later
    Call(client, model, [4, 5], steps=7).assert_right(local)
    eventually(lambda: since("rows_cancelled_total") == 3 and since("rows_left_total") == 2, "it has left")
    assert since("steps_total") == 1 * 3 + 7 * 2


@pytest.mark.parametrize("model", ["tiny_busy", "tiny_busy_chain"])
def test_a_request_whose_time_is_over_leaves(live: Live, client: Any, model: str) -> None:
    """Of a chain too, whose stages Triton does not tell that its client has gone away."""
    before = figure(live, "rows_timed_out_total", "tiny_busy")
    with live.closed("tiny_busy") as waiting:
        begun = Call(client, model, [1, 2], steps=500, timeout=100_000)  # microseconds
        eventually(waiting.exists, "it is in its first step")
        waits = Call(client, model, [1] * MAX_BATCH, steps=500, timeout=100_000)
        time.sleep(0.3)
    for call, steps in ((begun, 1), (waits, 0)):
        assert call.wait().error.status() == "StatusCode.UNAVAILABLE"
        assert f"timeout is over, after {steps} of 500 steps" in call.error.message()
    told = 2 + MAX_BATCH
    eventually(lambda: figure(live, "rows_timed_out_total", "tiny_busy") - before == told, "the figures are told")


def test_overload_loses_no_accepted_request_and_takes_no_memory(live: Live, local: LocalClient, client: Any) -> None:
    """Far more than can be served: each request is right or refused at once, and what is held does not grow."""
    dice, solvers = random.Random(3), solvers_for(LINEAR)
    model = "tiny"
    names = ("rows_joined_total", "rows_left_total", "rows_refused_total")
    before = {name: figure(live, name, model) for name in names}
    pid = live.process_of(model)
    calls: list[Call] = []

    def overload(seconds: float) -> float:
        """Resident MiB at the end."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            seeds = [dice.randint(0, 3) for _ in range(dice.randint(1, MAX_BATCH))]
            calls.append(Call(client, model, seeds, steps=dice.choice([50, 200]), solver=dice.choice(solvers)))
            if len(calls) > 400:
                calls[-400].wait()
        return resident_mib(pid)

    warm = overload(OVERLOAD_SECONDS / 2)
    loaded = overload(OVERLOAD_SECONDS / 2)
    answered = [call for call in calls if call.wait().error is None]
    refused = [call for call in calls if call.error is not None]
    assert {call.error.status() for call in refused} == {"StatusCode.UNAVAILABLE"}
    assert len(refused) > 20
    assert len(answered) > 20
    for call in dice.sample(answered, 20):
        call.assert_right(local)
    rows = {"rows_left_total": answered, "rows_joined_total": answered, "rows_refused_total": refused}
    for name, those in rows.items():
        count = sum(len(call.seeds) for call in those)
        eventually(
            lambda name=name, count=count: figure(live, name, model) - before[name] == count, f"told: {name}", 20
        )
    assert loaded - warm < 32


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_a_signal_waits_for_what_is_in_flight(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    add_model(repository, "tiny")
    local = LocalClient(repository)
    with running(repository) as live, grpc.InferenceServerClient(live.url("grpc")) as client:
        calls = [Call(client, "tiny", [seed] * MAX_BATCH, steps=900, solver="ddpm") for seed in range(12)]
        taken_in(live, 12, "tiny")
        assert not all(call.has_ended for call in calls)
        live.process.send_signal(signal.SIGTERM)
        for call in calls:
            call.assert_right(local)
        assert live.process.wait(PATIENCE) == 0


def test_a_stop_that_must_hurry_says_what_it_dropped(tmp_path: Path) -> None:
    """A second signal: the server is gone at once, and those who would have been answered are counted."""
    repository = tmp_path / "repository"
    add_model(repository, "tiny")
    with running(repository) as live, grpc.InferenceServerClient(live.url("grpc")) as client:
        for seed in range(40):
            Call(client, "tiny", [seed] * MAX_BATCH, steps=900, solver="ddpm")
        taken_in(live, 40, "tiny")
        for _ in range(2):
            live.process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        live.process.wait(PATIENCE)
        eventually(lambda: "has ended and dropped" in live.said(), "it says so", 20)


def test_what_died_at_work_while_the_server_was_being_ended_was_not_answered(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    add_gated_model(repository, MODEL, queue=9)
    with running(repository) as live, grpc.InferenceServerClient(live.url("grpc")) as client:
        pid = live.process_of(MODEL)
        with live.closed(MODEL) as waiting:
            Call(client, MODEL, [1])
            eventually(waiting.exists, "it is in its first step")
            live.process.send_signal(signal.SIGTERM)
            time.sleep(1)
            os.kill(pid, signal.SIGKILL)
            time.sleep(1)
            live.process.send_signal(signal.SIGTERM)  # nobody waits for it
            assert live.process.wait(PATIENCE) != 0


def test_settings_that_give_wrong_or_late_answers_are_refused(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    added = {
        "held_back": ("dynamic_batching { }", "dynamic_batching holds requests back"),
        "cached": ("response_cache { enable: true }", "response_cache must be off"),
        "no_queue": ('parameters { key: "max_queue_size" value { string_value: "0" } }', "max_queue_size is '0'"),
        "other": ('parameters { key: "batching" value { string_value: "dynamic" } }', "batching is 'dynamic'"),
    }
    for name, (line, _) in added.items():
        config = add_model(repository, name) / "config.pbtxt"
        lines = [kept for kept in config.read_text().splitlines() if name != "no_queue" or "max_queue" not in kept]
        config.write_text("\n".join([*lines, line, ""]))
    live = start(repository)
    assert live.process.wait(PATIENCE) != 0
    assert [said for _, said in added.values() if said not in live.said()] == []
