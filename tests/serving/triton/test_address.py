"""Where the server listens: on what, how far, and from when on."""

import socket
import threading
import time

import pytest
from live import free_ports

from serving.triton.address import Address
from serving.triton.errors import ServerError
from serving.triton.version import MENDED, describe, narrowed, permitted, read_version

OLD = (2, 51, 0)
EVERYWHERE = Address("0.0.0.0", 1, 2, 3)


def test_ports_of_a_server_that_is_still_ending_are_waited_for() -> None:
    http, grpc, metrics = free_ports(3)
    said: list[str] = []
    taken = socket.create_server(("127.0.0.1", grpc))
    threading.Timer(0.5, taken.close).start()
    Address("127.0.0.1", http, grpc, metrics).wait_until_free(said.append)
    (line,) = said
    assert f"cannot listen on 127.0.0.1 port {grpc}: Address already in use" in line
    assert line.endswith("Waiting up to 40 s for it")


def test_a_port_that_stays_taken_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.triton.address.PORT_SECONDS", 0.3)
    http, _, metrics = free_ports(3)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        grpc = taken.getsockname()[1]
        began = time.monotonic()
        with pytest.raises(ServerError, match=f"port {grpc}: Address already in use; .* with --grpc-port"):
            Address("127.0.0.1", http, grpc, metrics).wait_until_free(lambda line: None)
    assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize("host", ["256.1.1.1", "192.0.2.1", "not a host", "2001:db8::1"])
def test_an_address_of_another_machine_is_an_error_at_once(host: str) -> None:
    with pytest.raises(ServerError, match="--host must be an address of this machine"):
        Address(host, *free_ports(3)).wait_until_free(pytest.fail)


def test_each_front_end_is_told_of_ipv6_in_its_own_way() -> None:
    address = Address("::1", 1, 2, 3)
    assert address.arguments() == [
        *("--http-address=ipv6:::1", "--http-port=1"),
        *("--grpc-address=[::1]", "--grpc-port=2"),
        *("--metrics-address=ipv6:::1", "--metrics-port=3"),
    ]
    assert address.urls() == {"http": "[::1]:1", "grpc": "[::1]:2", "metrics": "[::1]:3"}


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False)],
)
def test_loopback_is_known(host: str, loopback: bool) -> None:
    assert Address(host).is_loopback == loopback


@pytest.mark.parametrize(
    ("version", "accepted", "grpc", "http"),
    [
        (OLD, None, "127.0.0.1", "127.0.0.1"),
        (None, None, "127.0.0.1", "127.0.0.1"),
        (OLD, "grpc", "0.0.0.0", "127.0.0.1"),
        (None, "grpc", "0.0.0.0", "127.0.0.1"),
        (OLD, "http", "0.0.0.0", "0.0.0.0"),
        ((2, 72, 9), None, "127.0.0.1", "127.0.0.1"),
        (MENDED, None, "0.0.0.0", "0.0.0.0"),
        ((3, 0, 0), None, "0.0.0.0", "0.0.0.0"),
    ],
)
def test_an_old_triton_listens_on_this_machine_alone_unless_told(
    version: tuple[int, int, int] | None, accepted: str | None, grpc: str, http: str
) -> None:
    address = permitted(EVERYWHERE, version, accepted)
    arguments = address.arguments()
    assert f"--grpc-address={grpc}" in arguments
    assert {f"--http-address={http}", f"--metrics-address={http}"} <= set(arguments)
    if address != EVERYWHERE:
        said = narrowed(EVERYWHERE, address, version)
        assert said.startswith(f"{describe(version)} can be ended")
        assert "26.09" in said
        assert ("HTTP and metrics listen on 127.0.0.1 alone" in said) == (accepted == "grpc")


def test_loopback_stays_loopback_whatever_the_version() -> None:
    assert permitted(Address("::1"), OLD, None) == Address("::1")


def test_the_version_is_read_from_the_log() -> None:
    assert read_version(["I1126", "| server_version                   | 2.51.0      |"]) == OLD
    assert read_version(["nothing of the kind"]) is None
    assert (describe(OLD), describe(None)) == ("Triton 2.51.0", "Triton of an unknown version")
