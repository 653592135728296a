"""Where the server listens."""

import errno
import ipaddress
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection

from serving.triton.errors import ServerError

LOOPBACK = "127.0.0.1"
# A server that has been told to stop has 30 seconds for the requests under way.
PORT_SECONDS = 40.0
POLL_SECONDS = 0.2
METRICS_SECONDS = 5.0


@dataclass(frozen=True)
class Address:
    """Where the server listens; HTTP and metrics on `http_host`, which is `host` unless given."""

    host: str = LOOPBACK
    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002
    http_host: str | None = field(default=None, kw_only=True)

    @property
    def is_loopback(self) -> bool:
        """Whether this machine alone can reach it."""
        try:
            places = socket.getaddrinfo(self.host, self.grpc, type=socket.SOCK_STREAM)
        except OSError:
            return False
        return all(ipaddress.ip_address(str(place[0]).partition("%")[0]).is_loopback for *_, place in places)

    def urls(self) -> dict[str, str]:
        """HOST:PORT by protocol, as clients of this machine write it."""
        http_host = self.http_host or self.host
        places = {"http": (http_host, self.http), "grpc": (self.host, self.grpc), "metrics": (http_host, self.metrics)}
        return {name: f"{f'[{host}]' if ':' in host else host}:{port}" for name, (host, port) in places.items()}

    def control(self) -> tuple[str, int]:
        """Host and port at which this machine reaches the HTTP front end."""
        host = self.http_host or self.host
        return {"0.0.0.0": LOOPBACK, "::": "::1"}.get(host, host), self.http

    def metrics_text(self) -> str:
        """What Triton tells of itself and of the models; raises OSError or HTTPException."""
        connection = HTTPConnection(self.control()[0], self.metrics, timeout=METRICS_SECONDS)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def arguments(self) -> list[str]:
        http_host = self.http_host or self.host
        # Each front end has its own way to write IPv6.
        by_evhtp = f"ipv6:{http_host}" if ":" in http_host else http_host
        by_grpc = f"[{self.host}]" if ":" in self.host else self.host
        places = {
            "http": (by_evhtp, self.http),
            "grpc": (by_grpc, self.grpc),
            "metrics": (by_evhtp, self.metrics),
        }
        return [
            f"--{name}-{what}={value}"
            for name, place in places.items()
            for what, value in zip(("address", "port"), place, strict=True)
        ]

    def wait_until_free(self, show: Callable[[str], None]) -> None:
        """Waits for ports that are taken: a server that was told to stop may still have requests under way.

        Raises ServerError naming the first port that cannot be listened on, or that stays taken.
        """
        self._check_differ()
        deadline, waits = time.monotonic() + PORT_SECONDS, False
        while True:
            try:
                return self._check_free()
            except _TakenError as taken:
                if time.monotonic() >= deadline:
                    raise ServerError(str(taken)) from None
                if not waits:
                    show(f"{taken}. Waiting up to {PORT_SECONDS:g} s for it")
                waits = True
                time.sleep(POLL_SECONDS)

    def _options(self) -> dict[str, tuple[str, int]]:
        http_host = self.http_host or self.host
        return {
            "--http-port": (http_host, self.http),
            "--grpc-port": (self.host, self.grpc),
            "--metrics-port": (http_host, self.metrics),
        }

    def _check_differ(self) -> None:
        ports = {option: port for option, (_, port) in self._options().items()}
        if len(set(ports.values())) < len(ports):
            given = ", ".join(f"{option} {port}" for option, port in ports.items())
            raise ServerError(f"each port must differ from the others, got {given}")

    def _check_free(self) -> None:
        for option, (host, port) in self._options().items():
            try:
                family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
                with socket.socket(family, kind) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(place)
            except OSError as error:
                what = f"cannot listen on {host} port {port}: {error.strerror or error}"
                if error.errno == errno.EADDRINUSE:
                    advice = f"stop the program that uses it or choose another with {option}"
                    raise _TakenError(f"{what}; {advice}") from None
                advice = f"--host must be an address of this machine, and {option} one that you may listen on"
                raise ServerError(f"{what}; {advice}") from None


class _TakenError(Exception):
    """A port that another program listens on."""
