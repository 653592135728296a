"""How requests in flight are answered where there is no room for it; no Triton is started."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

END = 1


class Sender:
    """As the Python backend's: of a model that is not decoupled it takes one response, and nothing after the end."""

    def __init__(self, has_room: bool) -> None:
        self._has_room, self.responses, self.has_ended = has_room, 0, False
        self.sent: list[Any] = []

    def send(self, response: Any = None, flags: int = 0) -> None:
        assert not self.has_ended
        assert self.responses == (response is None)
        self.responses, self.has_ended = 1, flags == END
        if response is not None and not self._has_room:
            raise RuntimeError("Failed to increase the shared memory pool size")
        self.sent.append((response, flags))


@pytest.fixture
def in_flight(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", ModuleType("unused"))
    from serving.triton import in_flight

    monkeypatch.setattr(in_flight, "pb", SimpleNamespace(TRITONSERVER_RESPONSE_COMPLETE_FINAL=END))
    return in_flight


def test_a_response_that_does_not_fit_ends_its_request(in_flight: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else its client waits for ever, and Triton at its end too."""
    monkeypatch.setattr(in_flight.os, "statvfs", lambda _: SimpleNamespace(f_bavail=2048, f_frsize=4096))
    sender = Sender(has_room=False)
    with pytest.raises(RuntimeError, match="shared memory"):
        in_flight.send(sender, "samples", 1)
    assert sender.sent == [(None, END)]
    sender = Sender(has_room=True)
    in_flight.send(sender, "samples", 1)
    assert sender.sent == [("samples", 0), (None, END)]


def test_where_there_is_room_a_response_is_the_end(in_flight: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_flight.os, "statvfs", lambda _: SimpleNamespace(f_bavail=4096, f_frsize=4096))
    sender = Sender(has_room=True)
    in_flight.send(sender, "samples", 2**20)
    assert sender.sent == [("samples", END)]
