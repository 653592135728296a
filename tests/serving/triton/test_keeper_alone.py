"""What the keeper does where the server does not do its part; no Triton is started."""

import threading
from pathlib import Path

import pytest
from live import add_model, free_ports

from serving.triton.address import Address
from serving.triton.control import READY
from serving.triton.errors import ServerError
from serving.triton.installation import STUB
from serving.triton.keeper import Keeper
from serving.triton.processes import Process
from serving.triton.server import TritonServer, rows_in_hand


class FakeServer:
    """Does what it is told, and stops when it has been started again."""

    pid = 1
    is_ready, is_stopping = True, False

    def __init__(self, repository: Path, models: list[str]) -> None:
        self.repository, self.models = repository, models
        self.said: list[str] = []
        self.done: list[str] = []
        self.show, self.control = self.said.append, self
        self.failures: dict[str, str] = {}
        self.exit: int | None = None
        self.in_hand: int | None = 0
        self.started: list[Process] = []
        self.asked: set[int] = set()

    def has_told(self, pid: int) -> bool:
        self.asked.add(pid)
        return True

    def code(self) -> int | None:
        return self.exit

    def why_ended(self) -> str:
        return "it fell"

    def load_failures(self) -> dict[str, str]:
        return self.failures

    def clear_away(self, grace: float) -> None:
        self.done.append("clear away")

    def rows_in_hand(self, pid: int) -> int | None:
        return self.in_hand

    def end(self, patience: float) -> None:
        self.done.append("end")
        self.exit = 0

    def start(self) -> None:
        self.done.append(f"start {' '.join(self.models)}")
        self.is_stopping, self.exit = True, -15

    def states(self) -> dict[str, str]:
        return dict.fromkeys(self.models, READY)

    def replace_processes(self, model: str, folder: Path, nonce: int) -> None:
        raise ServerError("no memory for two")


@pytest.fixture
def server(tmp_path: Path) -> FakeServer:
    add_model(tmp_path, "tiny")
    add_model(tmp_path, "other")
    return FakeServer(tmp_path, ["tiny", "other"])


def test_all_is_ended_in_order_where_a_model_alone_cannot_be_started_again(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter("SZZZZZZ")
    monkeypatch.setattr("serving.triton.keeper.children", lambda pid: [Process(7, pid, pid, next(states))])
    monkeypatch.setattr("serving.triton.keeper.command", lambda pid: [f"/x/{STUB}", "/models/tiny/1/model.py"])
    assert Keeper(server).wait() == 128 + 15
    assert server.done == ["end", "clear away", "start other tiny"]
    died, alone, ended = server.said
    assert died.startswith("the process of model tiny has died")
    assert alone.startswith("model tiny cannot be started again alone: no memory for two. Ending tritonserver")
    assert ended.startswith("tritonserver was ended. Starting it again")


def test_a_process_that_dies_before_it_is_known_is_known_by_what_is_missing(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 runs other; 7 was tiny's, or a former one's."""
    monkeypatch.setattr("serving.triton.keeper.children", lambda pid: [Process(7, 1, 1, "Z"), Process(8, 1, 1, "S")])
    monkeypatch.setattr("serving.triton.keeper.command", lambda pid: [f"/x/{STUB}", "/models/other/1/model.py"])
    Keeper(server).wait()
    assert [line.partition(" (")[0] for line in server.said[:1]] == ["the process of model tiny has died"]


@pytest.mark.parametrize(("in_hand", "told"), [(3, "3"), (None, "nobody knows how many")])
def test_all_is_ended_where_a_process_dies_with_requests_in_flight(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, in_hand: int | None, told: str
) -> None:
    """Triton never answers them: their clients would wait for ever. So too if it does not tell whether it had any."""
    states = iter("SZZZZZZ")
    server.in_hand = in_hand
    monkeypatch.setattr("serving.triton.keeper.children", lambda pid: [Process(7, pid, pid, next(states))])
    monkeypatch.setattr("serving.triton.keeper.command", lambda pid: [f"/x/{STUB}", "/models/tiny/1/model.py"])
    Keeper(server).wait()
    assert server.done == ["end", "clear away", "start other tiny"]
    assert (
        f"tiny has died (killed, or out of memory) with {told} samples in hand, which nobody else can answer"
        in server.said[0]
    )


def test_a_server_that_does_not_tell_has_nobody_knows_how_many(tmp_path: Path) -> None:
    address = Address("127.0.0.1", *free_ports(3))
    assert TritonServer(tmp_path, [], address, print, False).rows_in_hand(7) is None


def test_samples_in_hand_are_those_of_the_process_alone() -> None:
    """Not those of the one that follows it when its model has been rebuilt."""
    labels = 'instance="a_0_0",model="tiny",process="{}",version="1"'
    lines = [f"medgen_rows_{what}{{{labels.format(process)}}} {count}" for what, process, count in (
        ("in_flight", 70, 3), ("waiting", 70, "2.000000"), ("waiting", 7, 7), ("left_total", 70, 9),
    )]  # fmt: skip
    assert rows_in_hand("\n".join(lines), 70) == 5


def test_a_former_process_that_dies_is_not_missed(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {8: "tiny", 9: "other"}
    living = [Process(pid, 1, 1, "S") for pid in models]
    polls = iter([*[[Process(7, 1, 1, "Z"), *living]] * 12, "the end"])
    monkeypatch.setattr("serving.triton.keeper.children", lambda pid: next(polls))
    monkeypatch.setattr(
        "serving.triton.keeper.command", lambda pid: [f"/x/{STUB}", f"/models/{models[pid]}/1/model.py"]
    )
    with pytest.raises(AttributeError, match="'str' object has no attribute 'state'"):  # the end
        Keeper(server).wait()
    assert server.said == []


def test_who_waits_for_one_that_is_dead_is_ended(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It died when a request had come and before it told of it; the new process can draw, and is not taken in."""
    states, ended = iter("SZZ"), threading.Event()
    monkeypatch.setattr(
        "serving.triton.keeper.children", lambda _: [Process(7, 1, 1, next(states, "Z")), *server.started]
    )
    monkeypatch.setattr("serving.triton.keeper.command", lambda pid: [f"/x/{STUB}", "/models/tiny/1/model.py"])
    monkeypatch.setattr("serving.triton.keeper.LOOK_SECONDS", 0.01)
    monkeypatch.setattr("serving.triton.keeper.TAKEN_IN_SECONDS", 0.1)

    def replace(model: str, folder: Path, nonce: int) -> None:
        server.started = [Process(8, 1, 1, "S")]
        assert ended.wait(30), "nobody ended the server"
        raise ServerError("tritonserver does not answer")

    def end(patience: float) -> None:
        server.done.append("end")
        server.exit = 0
        ended.set()

    monkeypatch.setattr(server, "replace_processes", replace)
    monkeypatch.setattr(server, "end", end)
    Keeper(server).wait()
    assert server.done == ["end", "clear away", "start other tiny"]
    died, waits, _ = server.said
    assert died.startswith("the process of model tiny has died")
    assert waits.startswith("the process of model tiny that died had samples in hand of which it had not told")
    assert server.asked == {8}


def test_a_model_that_cannot_be_loaded_after_a_fall_does_not_keep_the_others_down(server: FakeServer) -> None:
    server.exit, server.failures = 1, {"tiny": "half of it is missing"}
    Keeper(server).wait()
    assert server.done == ["clear away", "start other"]
    assert "model tiny is served no longer: half of it is missing" in server.said


def test_a_process_that_dies_as_soon_as_it_is_there_is_known(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dead one has no command line any more."""
    looks = iter([Process(7, 1, 1, "S")])
    replaced: list[str] = []

    def replace(model: str, folder: Path, nonce: int) -> None:
        nonlocal looks
        replaced.append(model)
        looks = iter([Process(7 + nonce, 1, 1, "S")])
        if nonce == 2:
            server.is_stopping, server.exit = True, -15

    def sleep(_: float) -> None:
        nonlocal looks
        looks = iter([])

    monkeypatch.setattr(server, "replace_processes", replace)
    monkeypatch.setattr("serving.triton.keeper.time.sleep", sleep)
    monkeypatch.setattr("serving.triton.keeper.FIRST_PAUSE", 0.0)
    monkeypatch.setattr(
        "serving.triton.keeper.children", lambda _: [next(looks, Process(7 + len(replaced), 1, 1, "Z"))]
    )
    monkeypatch.setattr("serving.triton.keeper.command", lambda pid: [f"/x/{STUB}", "/models/tiny/1/model.py"])
    Keeper(server).wait()
    assert replaced == ["tiny", "tiny"]
    assert [line.partition(" (")[0] for line in server.said[::2]] == ["the process of model tiny has died"] * 2
