"""The server's door: each caller shakes hands in a thread of its own, and who is turned away is told of.

FLARE's own listens as well, but shakes hands where it accepts callers: one that calls and says nothing keeps all others
out for as long as it likes, and of those whose certificates it refuses nobody hears.
"""

import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

from nvflare.fuel.f3.communicator import driver_mgr, load_comm_drivers
from nvflare.fuel.f3.drivers.driver_params import DriverParams
from nvflare.fuel.f3.drivers.tcp_driver import TcpDriver, TcpStreamServer

from training.federated.channel import EXPIRED, NOT_YET_VALID

PATIENCE = 10.0  # seconds that a caller has to shake hands
MOST_SHAKING = 64  # callers that shake hands at once: each has a thread and a file, of which checkpoints need some
MOST_TOLD = 1000  # callers and reasons; so many are an attack, whose every line would fill the disk
Say = Callable[[str], object]


class TurnedAway:
    """Says who is not let in and why, once."""

    def __init__(self, say: Say) -> None:
        self.say, self.told, self.telling = say, set[tuple[str, str]](), threading.Lock()

    def __call__(self, host: str, why: str) -> None:
        with self.telling:
            if (host, why) in self.told or len(self.told) >= MOST_TOLD:
                return
            self.told.add((host, why))
        self.say(f"a caller at {host} is not let in: {why}")


class DoorServer(TcpStreamServer):
    """A socket that listens; ``say`` is told of who is turned away.

    Where more than ``MOST_SHAKING`` shake hands, the one that has for longest is turned away; a site takes
    milliseconds.
    """

    daemon_threads = True

    def __init__(self, driver: TcpDriver, connector: Any, say: Say) -> None:
        super().__init__(driver, connector)
        self.turned_away = TurnedAway(say)
        self.shaking, self.changing = list[Any](), threading.Lock()
        self.socket.do_handshake_on_connect = False

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.changing:
            self.shaking.append(request)
            if len(self.shaking) > MOST_SHAKING:
                with suppress(OSError):
                    # Not its own, which takes away what its thread is using.
                    socket.socket.shutdown(self.shaking.pop(0), socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def finish_request(self, request: Any, client_address: Any) -> None:
        try:
            request.settimeout(PATIENCE)
            request.do_handshake()
            request.settimeout(None)
        except OSError as error:
            why = reason_of(error) if self.forget(request) else f"{MOST_SHAKING} others came before it had shaken hands"
            self.turned_away(str(client_address[0]), why)
            return
        finally:
            self.forget(request)
        super().finish_request(request, client_address)

    def forget(self, request: Any) -> bool:
        """Whether it was still shaking hands."""
        with self.changing:
            was_shaking = request in self.shaking
            if was_shaking:
                self.shaking.remove(request)
        return was_shaking

    def shutdown_request(self, request: Any) -> None:
        self.forget(request)  # one for which no thread could be started
        super().shutdown_request(request)


class Door(TcpDriver):
    """FLARE makes its drivers itself, so whom to tell is found here, by the port."""

    saying: ClassVar[dict[int, Say]] = {}

    def listen(self, connector: Any) -> None:
        say = self.saying.get(int(connector.params[DriverParams.PORT.value]))
        if say is None:
            super().listen(connector)
            return
        self.connector = connector
        self.server = DoorServer(self, connector, say)
        self.server.serve_forever()


def watch(port: int, say: Say) -> None:
    """Cells that listen at a port over TLS do so behind such a door."""
    load_comm_drivers()
    driver_mgr.drivers["stcp"] = Door
    Door.saying[port] = say


def reason_of(error: OSError) -> str:
    """Why a handshake came to nothing, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in (NOT_YET_VALID, EXPIRED):
            return f"its certificate is not valid today ({error.verify_message}); it needs a new kit"
        return f"this server's authority has not signed its certificate ({error.verify_message})"
    if isinstance(error, TimeoutError):
        return f"it has not shown a certificate within {PATIENCE:g} s"
    reason = getattr(error, "reason", None) or error.strerror or str(error)
    if "ALERT" in reason:
        return f"it does not take this server's certificate ({reason})"
    if reason == "PEER_DID_NOT_RETURN_A_CERTIFICATE":
        return "it shows no certificate"
    return f"it does not speak as a site does ({reason})"
