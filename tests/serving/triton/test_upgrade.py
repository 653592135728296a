"""Another server takes the place of one that is ended under requests, as behind a Service of Kubernetes."""

import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live import MAX_BATCH, PATIENCE, add_model, eventually, free_ports, running
from tritonclient import grpc

from serving.client import LocalClient, SampleClient
from serving.triton import server
from serving.triton.address import Address

PROTOCOLS = ("grpc", "http")
HOW = {"count": MAX_BATCH + 1, "steps": 20}  # two requests, at once


def test_no_request_is_lost(tmp_path: Path) -> None:
    """Of clients that ask all the time, one of which watches the steps, and of those that were silent meanwhile."""
    repository, stop = tmp_path / "repository", threading.Event()
    add_model(repository, "tiny")
    expected = LocalClient(repository).sample("tiny", **HOW).arrays["image"]
    with running(repository) as old, running(repository) as new, ExitStack() as stack:
        services = {protocol: stack.enter_context(service(old.ports[protocol])) for protocol in PROTOCOLS}

        def client(protocol: str, **watched: Any) -> SampleClient:
            return stack.enter_context(SampleClient(services[protocol].url, protocol, PATIENCE, **watched))

        def keep_asking(client: SampleClient, answers: list[Any]) -> None:
            while not stop.is_set():
                answers.append(client.sample("tiny", **HOW).arrays["image"])

        watching = client("grpc", steps=lambda *_: None, metrics_url=old.url("metrics"))
        asking = {one: [] for one in (watching, client("grpc"), client("http"), client("http"))}
        silent = [client(protocol) for protocol in PROTOCOLS]
        images = [one.sample("tiny", **HOW).arrays["image"] for one in silent]
        threads = stack.enter_context(ThreadPoolExecutor())
        stack.callback(stop.set)
        asked = [threads.submit(keep_asking, one, answers) for one, answers in asking.items()]

        def all_are_answered(what: str) -> None:
            wanted = [len(answers) + 3 for answers in asking.values()]
            eventually(
                lambda: (
                    all(map(lambda answers, count: len(answers) >= count, asking.values(), wanted))
                    or any(one.done() for one in asked)
                ),
                what,
            )

        all_are_answered("the old server answers")
        for protocol, led in services.items():
            led.port = new.ports[protocol]
        old.process.send_signal(signal.SIGTERM)
        code = old.process.wait(PATIENCE)
        all_are_answered("the new server answers")
        stop.set()
        for one in asked:
            one.result()
        images += [one.sample("tiny", **HOW).arrays["image"] for one in silent]
    for image in sum(asking.values(), images):
        np.testing.assert_array_equal(image, expected)
    assert code == 0


def test_a_grpc_client_that_knows_nothing_of_it_moves_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the server asks it to now and then, here each second: before the old server ends it has none to ask it."""
    repository = tmp_path / "repository"
    add_model(repository, "tiny")
    monkeypatch.setattr(server, "CONNECTION_SECONDS", 1)
    tensor = grpc.InferInput("seed", [1, 1], "INT64")
    tensor.set_data_from_numpy(np.array([[7]]))
    with ExitStack() as stack:
        servers = [server.TritonServer(repository, ["tiny"], address(), print, verbose=False) for _ in range(2)]
        for one in servers:
            assert stack.enter_context(one).wait_until_ready()
        old, new = (one.address.grpc for one in servers)
        led = stack.enter_context(service(old))
        client = stack.enter_context(grpc.InferenceServerClient(led.url))
        watching = [stack.enter_context(grpc.InferenceServerClient(f"127.0.0.1:{port}")) for port in (old, new)]

        def answered() -> list[int]:
            return [one.get_inference_statistics("tiny").model_stats[0].inference_count for one in watching]

        for _ in range(20):
            client.infer("tiny", [tensor])
        assert answered() == [20, 0]
        led.port = new

        def has_moved() -> bool:
            client.infer("tiny", [tensor])
            return answered()[1] > 20

        eventually(has_moved, "the new server answers")


def address() -> Address:
    http, grpc, metrics = free_ports(3)
    return Address(http=http, grpc=grpc, metrics=metrics)


class Service:
    """An address that leads new connections to `port`, and leaves those that are open where they are."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _serve(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client = self._socket.accept()[0]
                behind = socket.create_connection(("127.0.0.1", self.port))
                for ends in ((client, behind), (behind, client)):
                    threading.Thread(target=pass_on, args=ends, daemon=True).start()


def pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(2**16):
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def service(port: int) -> Iterator[Service]:
    led = Service(port)
    try:
        yield led
    finally:
        led.close()
