"""What falls is put up again, what is built is taken in, and the server says so."""

import os
import shutil
import signal
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
from live import (
    PATIENCE,
    SPACING,
    Live,
    add_chains,
    add_gated_model,
    add_model,
    eventually,
    processes,
    replace_bundle,
    running,
)
from tritonclient import http as triton

from serving.client import LocalClient, SamplingError
from serving.sample_set import Samples
from serving.triton.keeper import _BackOff

CHAIN = "cmr_ddpm"
SEEDS = range(20, 50)
# 110 bytes, for which Triton 2.51 asks for 8 TB of memory.
SHAPE_BOMB = b'{"inputs": [{"name": "seed", "datatype": "INT64", "shape": [1000000, 1000000], "data": [7]}]}'
DEEP_BOMB = b'{"inputs": ' + b"[" * 5_000_000


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server of this file's own, whose model repository is open."""
    repository = tmp_path_factory.mktemp("kept")
    add_model(repository, "tiny")
    add_gated_model(repository, "gated", queue=128)
    add_chains(repository)
    for other in {"cmr_ldm", "cmr_ldm_image", "cmr_flow", "cmr_flow_image"}:
        shutil.rmtree(repository / other)
    with running(repository, "--open-api", "model-repository") as live:
        yield live


def draw(live: Live, model: str, seed: int = 7, count: int = 1) -> Samples:
    with live.client("grpc") as client:
        return client.sample(model, count, seed=seed)


def assert_serves(live: Live, *models: str) -> None:
    local = LocalClient(live.repository)
    for model in models:
        np.testing.assert_array_equal(draw(live, model).arrays["mask"], local.sample(model, 1, seed=7).arrays["mask"])


@contextmanager
def asked_all_the_while(live: Live, *models: str) -> Iterator[None]:
    """Each model is asked again and again, over both protocols, and each request has its samples."""
    done, failures, answers = threading.Event(), [], dict.fromkeys(models, 0)

    def ask(model: str, protocol: str) -> None:
        with live.client(protocol) as client:
            while not done.is_set():
                try:
                    client.sample(model, 2, seed=3)
                except SamplingError as failure:
                    failures.append(f"{model}: {failure}")
                answers[model] += 1

    with ThreadPoolExecutor(4 * len(models)) as threads:
        askers = [threads.submit(ask, model, protocol) for model in models for protocol in ("grpc", "http")]
        try:
            yield
        finally:
            done.set()
            for asker in askers:
                asker.result()
    assert not failures
    assert all(answers.values()), answers


def test_a_model_whose_process_dies_idle_is_started_again_alone(kept: Live) -> None:
    """Other models notice nothing."""
    with asked_all_the_while(kept, "tiny", CHAIN):
        os.kill(kept.process_of("gated"), signal.SIGKILL)
        eventually(lambda: "Serving gated again" in kept.said(), "it is started again")
    assert "the process of model gated has died (killed, or out of memory)" in kept.said()
    assert_serves(kept, "gated")


def test_nobody_waits_for_ever_for_a_process_that_died(kept: Live) -> None:
    """Those that it had in flight or waiting see a closed connection; then all is as before."""
    said = len(kept.said())
    with ThreadPoolExecutor(8) as threads:
        with kept.closed("gated") as waiting:
            calls = [threads.submit(draw, kept, "gated", seed, 8) for seed in SEEDS[:8]]
            eventually(waiting.exists, "the model has begun")
            eventually(lambda: kept.metric("medgen_rows_waiting", "gated") > 0, "it says so")
            os.kill(kept.process_of("gated"), signal.SIGKILL)
            eventually(lambda: "Serving" in kept.said()[said:].partition("Ending tritonserver")[2], "all is up again")
        outcomes = [call.exception() for call in calls]
    assert any(outcomes)
    assert all(outcome is None or isinstance(outcome, SamplingError) for outcome in outcomes)
    assert "samples in hand, which nobody else can answer" in kept.said()[said:]
    assert_serves(kept, "gated", "tiny", CHAIN)


def test_nobody_waits_for_ever_for_a_process_whose_model_has_been_rebuilt(kept: Live) -> None:
    """It answers what it had; if it dies, the process that follows it cannot."""
    said = len(kept.said())
    with ThreadPoolExecutor(4) as threads, kept.closed("gated") as waiting:
        calls = [threads.submit(draw, kept, "gated", seed) for seed in SEEDS[:4]]
        eventually(waiting.exists, "the model has begun")
        former = kept.process_of("gated")
        replace_bundle(kept.repository, "gated", max_batch=4)
        eventually(lambda: "Serving gated\n" in kept.said()[said:], "the new one is there")
        os.kill(former, signal.SIGKILL)
        eventually(lambda: all(call.done() for call in calls), "nobody waits", patience=40)
    assert all(isinstance(call.exception(), SamplingError) for call in calls)
    assert "samples in hand, which nobody else can answer" in kept.said()[said:]
    eventually(lambda: "Serving" in kept.said()[said:].partition("Ending tritonserver")[2], "all is up again")
    assert_serves(kept, "gated", "tiny", CHAIN)


def post(live: Live, body: bytes) -> None:
    with pytest.raises((OSError, urllib.error.URLError)):
        urllib.request.urlopen(f"http://{live.url('http')}/v2/models/tiny/infer", body, timeout=PATIENCE)


@pytest.mark.parametrize(
    ("bomb", "why"), [(SHAPE_BOMB, "std::bad_alloc"), (DEEP_BOMB, "SIGSEGV")], ids=["shape", "depth"]
)
def test_tritonserver_that_dies_is_started_again(kept: Live, bomb: bytes, why: str) -> None:
    group, said = kept.tritonserver(), len(kept.said())
    post(kept, bomb)
    eventually(lambda: " again" in kept.said()[said:].partition("Serving ")[2], "it serves again")
    new = kept.said()[said:]
    (line,) = [line for line in new.splitlines() if line.startswith("tritonserver ended")]
    assert why in line
    assert "clients see a closed connection" in line
    assert "0x" not in new
    assert processes(group) == []
    assert_serves(kept, "tiny", "gated", CHAIN)


def test_a_model_that_goes_away_is_noticed(kept: Live) -> None:
    with triton.InferenceServerClient(kept.url("http")) as client:
        client.unload_model("tiny")
        eventually(lambda: "model tiny is gone" in kept.said(), "it is noticed")
        eventually(lambda: client.is_model_ready("tiny"), "it is loaded again")
    assert_serves(kept, "tiny")


def test_what_is_built_and_rebuilt_is_loaded_without_a_failed_request(kept: Live) -> None:
    repository = kept.repository
    before = draw(kept, "tiny").provenance
    with asked_all_the_while(kept, "tiny", CHAIN):
        add_model(repository, "fresh")
        replace_bundle(repository, "tiny", max_batch=5)
        replace_bundle(repository, "cmr_mask", sample_shape=(4, 16, 16), spacing=SPACING, max_batch=6)
        for model, what in {"fresh": "built", "tiny": "rebuilt", "cmr_mask": "rebuilt"}.items():
            told = f"model {model} has been {what}. Loading it\nServing {model}\n"
            eventually(lambda told=told: told in kept.said(), told)
        time.sleep(1)
    assert_serves(kept, "fresh", "tiny", CHAIN)
    assert draw(kept, "tiny").provenance != before


def test_a_rebuilt_bundle_that_cannot_be_loaded_leaves_the_one_that_is_served(kept: Live) -> None:
    def behind() -> float:
        return kept.metric("medgen_behind_disk_seconds_total", "tiny")

    before = draw(kept, "tiny")
    eventually(lambda: behind() == 0, "only what is on disk is served")
    replace_bundle(kept.repository, "tiny", max_batch=4)
    (engine,) = (kept.repository / "tiny").rglob("step.onnx")
    flipped = bytearray(engine.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    engine.write_bytes(flipped)
    eventually(lambda: "model tiny cannot be loaded; what was served before stays" in kept.said(), "it is said")
    said_at = behind()
    eventually(lambda: behind() > said_at + 8, "it is told for as long as it is so")
    after = draw(kept, "tiny")
    assert after.provenance == before.provenance
    np.testing.assert_array_equal(after.arrays["image"], before.arrays["image"])
    said = len(kept.said())
    replace_bundle(kept.repository, "tiny", max_batch=3)
    eventually(lambda: "Serving tiny\n" in kept.said()[said:], "the next one is loaded")
    eventually(lambda: behind() == 0, "what is on disk is served, and nothing is told of what was")
    assert draw(kept, "tiny").provenance != before.provenance


def test_a_chain_is_let_go_while_its_stages_do_not_fit(kept: Live) -> None:
    replace_bundle(kept.repository, "cmr_mask", sample_shape=(4, 24, 24), spacing=SPACING)
    eventually(lambda: f"model {CHAIN} is served no longer: chain {CHAIN}" in kept.said(), "it is said")
    with pytest.raises(SamplingError) as refusal:
        draw(kept, CHAIN)
    assert refusal.value.status in (400, 404)
    replace_bundle(kept.repository, "cmr_mask", sample_shape=(4, 16, 16), spacing=SPACING)
    eventually(lambda: f"Serving {CHAIN}\n" in kept.said(), "it fits again")
    assert_serves(kept, CHAIN)
    shutil.rmtree(kept.repository / "cmr_mask" / "1" / "bundle")
    eventually(lambda: "model cmr_mask has not been built" in kept.said(), "it is said")
    draw(kept, CHAIN)


def test_pauses_grow_while_something_keeps_falling(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("serving.triton.keeper.time.monotonic", lambda: now)
    pauses = _BackOff()
    assert [pauses.next() for _ in range(8)] == [0, 1, 2, 4, 8, 16, 30, 30]
    now = 1000.0
    assert [pauses.next() for _ in range(2)] == [0, 1]
