"""Where the server listens."""

import errno
import socket
from dataclasses import dataclass

from serving.triton.errors import ServerError


@dataclass(frozen=True)
class Address:
    """Where the server listens."""

    host: str = "127.0.0.1"
    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    def arguments(self) -> list[str]:
        ports = {"http": self.http, "grpc": self.grpc, "metrics": self.metrics}
        return [
            f"--{name}-{what}={value}"
            for name, port in ports.items()
            for what, value in (("address", self.host), ("port", port))
        ]

    def check_free(self) -> None:
        """Raises ServerError naming the first port that cannot be listened on."""
        options = {"--http-port": self.http, "--grpc-port": self.grpc, "--metrics-port": self.metrics}
        if len(set(options.values())) < len(options):
            given = ", ".join(f"{option} {port}" for option, port in options.items())
            raise ServerError(f"each port must differ from the others, got {given}")
        for option, port in options.items():
            try:
                family, kind, _, _, place = socket.getaddrinfo(self.host, port, type=socket.SOCK_STREAM)[0]
                with socket.socket(family, kind) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(place)
            except OSError as error:
                advice = f"stop the program that uses it or choose another with {option}"
                if error.errno != errno.EADDRINUSE:
                    advice = f"--host must be an address of this machine, and {option} one that you may listen on"
                raise ServerError(f"cannot listen on {self.host} port {port}: {error.strerror}; {advice}") from None
