"""Who may not come in: what the stranger hears, what the server says, and that the others go on."""

import socket
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
from tiny_families import fields_of, random_batch

from training.federated import client, door
from training.federated.channel import ChannelError, check_door, write_kits
from training.federated.runs import end, free_port, lost, prepared
from training.federated.server import SitesElsewhere
from training.federated.terms import Terms
from training.models.dmgan_image import DmGanImage
from training.reconstructions import Pairs

pytestmark = pytest.mark.usefixtures("one_thread")

PRESET = DmGanImage.presets["small"].replaced({**fields_of("dmgan_image"), "batch": 2, "steps": [5]})


@pytest.fixture
def kits(tmp_path: Path, monkeypatch) -> dict[str, Path]:
    """Of a stranger with a kit of another authority, of one who only knows ours, and of one whose is too old."""
    ours, theirs, half = (tmp_path / name for name in ("kits", "theirs", "half"))
    for authority in (ours, theirs):
        write_kits(authority, "localhost", ["north"])
    half.mkdir()
    for file in ("client.crt", "client.key"):
        (half / file).write_bytes((theirs / "north" / file).read_bytes())
    (half / "rootCA.pem").write_bytes((ours / "north" / "rootCA.pem").read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr("training.federated.channel.VALID_DAYS", 0)
        write_kits(ours, "localhost", ["south"])
    return {"server": ours / "server", "stranger": theirs / "north", "half": half, "old": ours / "south"}


def test_strangers_are_told_of_and_keep_nobody_out(kits: dict[str, Path], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(door, "PATIENCE", 2.0)
    port, said = free_port(), list[str]()
    address, batch = f"localhost:{port}", random_batch(4)

    def is_said(words: str) -> bool:
        deadline = time.monotonic() + 60
        while not any(words in line for line in said) and time.monotonic() < deadline:
            time.sleep(0.05)
        return any(words in line for line in said)

    terms = Terms("dmgan_image", PRESET, 3, "a prior's digest")
    pictures = Pairs(batch["image"], batch["condition"])
    (north,) = prepared(tmp_path, ["north"], [pictures], "key", address, {})
    gone = partial(lost, [north], tmp_path)
    with ExitStack() as stack:
        stack.callback(end, [north])
        panel = stack.enter_context(SitesElsewhere(address, kits["server"], terms, 1, 60.0, said.append, lost=gone))
        silent = stack.enter_context(socket.socket())
        while silent.connect_ex(("localhost", port)):
            time.sleep(0.05)
        north.start()
        assert panel.judge(0, batch["image"][:2], batch["condition"][:2]).sites == 1
        for _ in range(2):
            with pytest.raises(ChannelError, match=r"a certificate that .*theirs/north/rootCA.pem has not signed"):
                check_door(address, kits["stranger"])
            with pytest.raises(ChannelError, match=r"does not take the certificate in .*half "):
                check_door(address, kits["half"])
            with pytest.raises(ChannelError, match=r"does not take the certificate in .*south .*EXPIRED"):
                client.wait_for_door(address, kits["old"], 30.0, said.append)
            with socket.create_connection(("localhost", port)) as browser:
                browser.sendall(b"GET / HTTP/1.1\r\n\r\n")
                browser.recv(1)
        for why in (
            "it has not shown a certificate within 2 s",
            "it does not take this server's certificate (TLSV1_ALERT_UNKNOWN_CA)",
            "this server's authority has not signed its certificate (",
            "its certificate is not valid today (certificate has expired); it needs a new kit",
            "it does not speak as a site does (HTTP_REQUEST)",
        ):
            assert is_said(f"a caller at 127.0.0.1 is not let in: {why}"), why
        assert panel.judge(1, batch["image"][:2], batch["condition"][:2]).sites == 1
    assert len([line for line in said if "is not let in" in line]) == 5, said
    assert [line for line in said if line.startswith("north")] == ["north is there"]
    assert "the run is over: north is at step 2" in (tmp_path / "north" / "log.txt").read_text()


def test_silent_callers_take_no_more_threads_than_are_allowed(kits: dict[str, Path], monkeypatch) -> None:
    monkeypatch.setattr(door, "MOST_SHAKING", 3)
    monkeypatch.setattr(door, "PATIENCE", 600.0)
    address, said = f"localhost:{free_port()}", list[str]()
    terms = Terms("dmgan_image", PRESET, 3, "a prior's digest")
    north = kits["server"].with_name("north")

    def is_let_in() -> bool:
        deadline = time.monotonic() + 60
        while not (is_in := check_door(address, north)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return is_in

    def at_the_door() -> int:
        return sum("process_request_thread" in thread.name for thread in threading.enumerate())

    with ExitStack() as stack:
        stack.enter_context(SitesElsewhere(address, kits["server"], terms, 1, 60.0, said.append))
        assert is_let_in()
        callers = [
            stack.enter_context(socket.create_connection(("localhost", int(address.split(":")[1])), 60))
            for _ in range(8)
        ]
        assert [caller.recv(1) for caller in callers[:5]] == [b""] * 5
        deadline = time.monotonic() + 60
        while (count := at_the_door()) > 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert count == 3
        assert is_let_in()
    assert "a caller at 127.0.0.1 is not let in: 3 others came before it had shaken hands" in said


def test_a_flood_of_strangers_fills_no_log(monkeypatch) -> None:
    monkeypatch.setattr(door, "MOST_TOLD", 3)
    said: list[str] = []
    turned_away = door.TurnedAway(said.append)
    for number in range(10):
        turned_away(f"10.0.0.{number}", "it shows no certificate")
    assert len(said) == 3
