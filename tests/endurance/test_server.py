"""The server under malformed requests, kills and overload.

Seconds in CI. MEDGEN_ENDURANCE=long sends 10,000 malformed requests over each protocol, kills each kind of process 100
times, or as often as six minutes allow, overloads the server for a minute, and prints its figures:

    MEDGEN_ENDURANCE=long python -m pytest tests/endurance/test_server.py -s
"""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from endurance import LONG, repetitions
from live import MAX_BATCH, PATIENCE, Live, add_chains, add_model, eventually, free_ports, processes
from malformed import grpc_request, http_request
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2_grpc
from tritonclient.utils import InferenceServerException

from serving.client import LocalClient, SampleClient, SamplingError
from serving.triton.address import Address
from serving.triton.keeper import Keeper
from serving.triton.server import TritonServer

MALFORMED, KILLS, OVERLOAD_SECONDS = (10_000, 100, 60.0) if LONG else (300, 2, 3.0)
# What allocators keep of the largest moment; a leak of 20 kB a request would be 200 MB in the long form.
FLAT_BYTES = 48 * 2**20
PAGE = os.sysconf("SC_PAGE_SIZE")


def memory(group: int) -> int:
    """Bytes in memory of a server and the processes of its models."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE for pid in processes(group))


def assert_flat(what: str, group: int, before: int) -> None:
    growth = memory(group) - before
    print(f"{what}: {before / 2**20:.0f} MiB before, {growth / 2**20:+.1f} MiB")
    assert growth < FLAT_BYTES


def send_http(live: Live, dice: random.Random) -> str:
    request = http_request(dice)
    connection = HTTPConnection("127.0.0.1", live.ports["http"], timeout=PATIENCE)
    try:
        connection.request(request.method, request.path, request.body, request.headers)
        response = connection.getresponse()
        text = response.read()
    except (HTTPException, ConnectionError) as error:  # it may close the door, but not hang
        return type(error).__name__
    finally:
        connection.close()
    says_why = b'"error":"' in text or response.status in (404, 405, 415) or request.method == "HEAD"
    return str(response.status) if response.status < 400 or says_why else f"{response.status} no reason: {request}"


def send_grpc(stub: Any, dice: random.Random) -> str:
    try:
        stub.ModelInfer(grpc_request(dice), timeout=PATIENCE)
    except grpc.RpcError as error:
        return error.code().name if error.details() else "no reason"
    return "OK"


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_malformed_requests_are_refused(live: Live, protocol: str) -> None:
    group, dice, answers = live.tritonserver(), random.Random(protocol), Counter[str]()
    expected = LocalClient(live.repository).sample("tiny", 2, seed=7).arrays["image"]
    with grpc.insecure_channel(live.url("grpc")) as channel, live.client(protocol) as client:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        before = 0
        for number in range(MALFORMED):
            if number == MALFORMED // 3:  # every kind has been seen
                before = memory(group)
            answers[send_http(live, dice) if protocol == "http" else send_grpc(stub, dice)] += 1
            if number % 100 == 99:
                np.testing.assert_array_equal(client.sample("tiny", 2, seed=7).arrays["image"], expected)
        print(f"{protocol}: {dict(answers.most_common())}")
        assert not [answer for answer in answers if "no reason" in answer]
        assert live.tritonserver() == group, live.said()
        assert "has died" not in live.said()
        assert_flat(f"{MALFORMED} malformed requests over {protocol}", group, before)


def test_overload_loses_no_accepted_request(live: Live) -> None:
    """Ten times what it can do: each request has its samples, all bits of them, or a 503."""
    group, steps = live.tritonserver(), 40
    with LocalClient(live.repository) as local:
        expected = local.sample("busy", MAX_BATCH, seed=20, steps=steps).arrays["image"]
    tensor = triton.InferInput("seed", [MAX_BATCH, 1], "INT64")
    tensor.set_data_from_numpy(np.arange(20, 20 + MAX_BATCH, dtype=np.int64)[:, None])
    wrong: list[str] = []
    answers: Counter[str] = Counter()
    lock = threading.Lock()

    def settle(result: Any, error: InferenceServerException | None) -> None:
        name = "OK" if error is None else str(error.status())
        if error is not None and name != "StatusCode.UNAVAILABLE":
            wrong.append(str(error))
        elif error is None and not np.array_equal(result.as_numpy("image"), expected):
            wrong.append("other bits")
        with lock:
            answers[name] += 1

    with triton.InferenceServerClient(live.url("grpc")) as client:

        def ask(count: int, seconds: float) -> int:
            """So many requests a second, whether answered or not."""
            began, sent = time.monotonic(), 0
            while (now := time.monotonic() - began) < seconds:
                while sent < count * now:
                    client.async_infer("busy", [tensor], settle, parameters={"steps": steps})
                    sent += 1
                time.sleep(0.005)
            return sent

        def answered(sent: int) -> None:
            eventually(lambda: sum(answers.values()) == sent, "all are answered")

        began = time.monotonic()
        for _ in range(10):
            client.infer("busy", [tensor], parameters={"steps": steps})
        rate = 10 * 10 / (time.monotonic() - began)
        answered(ask(rate, 2.0))
        before = memory(group)
        answers.clear()
        sent = ask(rate, OVERLOAD_SECONDS)
        answered(sent)
    print(f"{sent} requests in {OVERLOAD_SECONDS:g} s, ten times what it can do: {dict(answers)}")
    assert not wrong
    assert answers["OK"] > 0
    assert answers["StatusCode.UNAVAILABLE"] > 0
    assert live.tritonserver() == group
    assert_flat("overload", group, before)


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[TritonServer, list[str]]]:
    """A server in this process, put up again without a pause however often it falls."""
    monkeypatch.setattr("serving.triton.keeper.FIRST_PAUSE", 0.0)
    monkeypatch.setattr("serving.triton.keeper.LONGEST_PAUSE", 0.0)
    add_model(tmp_path, "tiny")
    add_chains(tmp_path)
    models = ["tiny", "cmr_mask", "cmr_ddpm_image", "cmr_ddpm"]
    said: list[str] = []
    with TritonServer(tmp_path, models, Address("127.0.0.1", *free_ports(3)), said.append, False) as server:
        assert server.wait_until_ready()
        keeper = threading.Thread(target=Keeper(server, models).wait)
        keeper.start()
        try:
            yield server, said
        finally:
            server.stop()
            keeper.join()


@pytest.mark.parametrize("who", ["a model", "tritonserver"])
def test_kills_at_random_moments(kept: tuple[TritonServer, list[str]], who: str) -> None:
    """Each request under way has its samples, all bits of them, or an error; and after each kill all is as before."""
    server, said = kept
    dice, done, outcomes = random.Random(who), threading.Event(), Counter[str]()
    url = f"127.0.0.1:{server.address.grpc}"
    local = LocalClient(server.repository)
    expected = {model: local.sample(model, 4, seed=5, steps=9).arrays["mask"] for model in ("tiny", "cmr_ddpm")}

    def ask(model: str) -> None:
        with SampleClient(url, timeout=PATIENCE) as client:
            while not done.is_set():
                try:
                    mask = client.sample(model, 4, seed=5, steps=9).arrays["mask"]
                except SamplingError as error:
                    outcomes[f"{error.status}"] += 1
                    time.sleep(0.05)
                else:
                    np.testing.assert_array_equal(mask, expected[model])
                    outcomes["samples"] += 1

    with ThreadPoolExecutor(4) as threads:
        askers = [threads.submit(ask, model) for model in [*expected] * 2]
        try:
            for kill in repetitions(KILLS):
                time.sleep(dice.uniform(0, 0.5 if who == "a model" else 2))
                stubs = [pid for pid in processes(server.pid) if pid != server.pid]
                fallen = sum("again" in line and line.startswith("Serving") for line in said)
                os.kill(dice.choice(stubs) if who == "a model" else server.pid, signal.SIGKILL)
                eventually(
                    lambda before=fallen: sum("again" in x and x.startswith("Serving") for x in said) > before,
                    f"all is up again after kill {kill}",
                )
        finally:
            done.set()
        for asker in askers:
            asker.result()
    print(f"{kill + 1} kills of {who}: {dict(outcomes)}")
    with SampleClient(url) as client:
        for model, mask in expected.items():
            np.testing.assert_array_equal(client.sample(model, 4, seed=5, steps=9).arrays["mask"], mask)
    assert len(list(Path("/dev/shm").glob(f"{server._region}*"))) < 40
