"""A site's side: joins a server, answers its questions, comes back when either of them was away."""

import json
import queue
import secrets
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from training import CheckpointError
from training.federated.channel import (
    CHANNEL,
    SERVER,
    ChannelError,
    check_door,
    close_cell,
    listen,
    message,
    name_in,
    open_cell,
    tell,
)
from training.federated.panel import MessageError
from training.federated.site import Filter, PairData, Site
from training.federated.terms import Terms
from training.memory import keep_freed_memory

HEARTBEAT = 3.0  # seconds without a question, after which a site says that it is still there
FAREWELL = 10.0  # seconds until a server has noticed that a site of the same name has gone
Say = Callable[[str], object]


class StruckOut(ChannelError):  # noqa: N818 - it has been told
    """The server takes no more votes of this site."""


def run_site(
    address: str,
    kit: Path,
    folder: Path,
    open_data: Callable[[Terms], PairData],
    private: Filter | None = None,
    patience: float = 600.0,
    say: Say = print,
) -> None:
    """Take part in a server's run until it is over.

    Args:
        address: HOST:PORT of the server.
        kit: the site's.
        folder: where the discriminator's checkpoints are kept; they never leave it.
        open_data: called once with the run's terms.
        private: what becomes of votes before they leave.
        patience: seconds that the server may be away.

    Raises:
        ChannelError: the server is away for too long, one does not trust the other, or the run is another one now.
        StruckOut: too many answers of this site were none.
        CheckpointError: what was kept is damaged or of another run.
        ValueError: the data do not fit.
    """
    keep_freed_memory()
    name = name_in(kit, "client")
    wait_for_door(address, kit, patience, say)
    cell = open_cell(name, address, kit, "client")
    inbox: queue.Queue[tuple[str, bytes]] = queue.Queue()
    for topic in ("judge", "save", "end"):
        listen(cell, topic, partial(put, inbox, topic))
    cell.start()
    try:
        session = secrets.token_hex(8)
        terms = join(cell, session, patience, False)
        if terms is None:
            raise ChannelError(f"{address} does not answer {name}: is another process of that name there?")
        site = Site(name, open_data(terms), terms, folder, private, say)
        now = join(cell, session, patience, True)
        if now is None:
            raise ChannelError(f"the server at {address} has been away for {patience:g} s")
        check_same(terms, now, address)
        say(f"{name} has joined {address} with {site.count} pictures")
        answer_all(cell, inbox, site, partial(join, cell, session), terms, address, patience, say)
    finally:
        close_cell(cell)


def put(inbox: "queue.Queue[tuple[str, bytes]]", topic: str, _: str, payload: bytes) -> None:
    inbox.put((topic, payload))


def wait_for_door(address: str, kit: Path, patience: float, say: Say) -> None:
    deadline, told = time.monotonic() + patience, False
    while not check_door(address, kit):
        if time.monotonic() > deadline:
            raise ChannelError(f"no server answers at {address} within {patience:g} s")
        if not told:
            say(f"no server answers at {address}: trying again for {patience:g} s")
            told = True
        time.sleep(min(1.0, patience))


def join(cell: Any, session: str, patience: float, ready: bool) -> Terms | None:
    """The terms of the server's run; None if it does not answer.

    Raises ChannelError if another process has this site's name, and does not go within ``FAREWELL``, and StruckOut.
    """
    from nvflare.fuel.f3.cellnet.defs import MessageHeaderKey, ReturnCode

    began = time.monotonic()
    while True:
        request = message(json.dumps({"ready": ready, "session": session}).encode())
        reply = cell.send_request(CHANNEL, "join", SERVER, request, timeout=HEARTBEAT, optional=True)
        if reply.get_header(MessageHeaderKey.RETURN_CODE) == ReturnCode.OK:
            told = json.loads(bytes(reply.payload))
            if "struck_out" in told:
                raise StruckOut(
                    f"the server has struck this site out: {told['struck_out']} of its answers held NaN or made no "
                    "sense. Look at its pictures; without its newest checkpoint it may join when the server is resumed"
                )
            if "refused" not in told:
                return Terms.from_json(told["terms"])
            if time.monotonic() > began + FAREWELL:
                raise ChannelError(f"{told['refused']}: each site has a kit of its own")
        elif time.monotonic() > began + patience:
            return None
        time.sleep(0.2)


def check_same(terms: Terms, now: Terms, address: str) -> None:
    if now != terms:
        raise ChannelError(f"the server at {address} is at another run now: begin anew in another folder")


def answer_all(
    cell: Any,
    inbox: "queue.Queue[tuple[str, bytes]]",
    site: Site,
    join_again: Callable[[float, bool], Terms | None],
    terms: Terms,
    address: str,
    patience: float,
    say: Say,
) -> None:
    heard, told = time.monotonic(), False
    while True:
        try:
            topic, payload = inbox.get(timeout=HEARTBEAT)
        except queue.Empty:
            now = join_again(0.0, True)
            if now is not None:
                check_same(terms, now, address)
            away = time.monotonic() - heard
            if now is not None:
                heard, told = time.monotonic(), False
            elif away > patience:
                raise ChannelError(f"the server at {address} has been away for {away:.0f} s") from None
            elif not told:
                say(f"the server at {address} does not answer: {site.name} waits for it for {patience:g} s")
                told = True
            continue
        heard, told = time.monotonic(), False
        if topic == "judge":
            while not inbox.empty() and inbox.queue[0][0] == "judge":  # too late for that one
                topic, payload = inbox.get()
            try:
                vote = site.answer(payload)
                if site.behind is not None:
                    tell(cell, "behind", [SERVER], site.behind.to_bytes(8, "little"))
                    site.behind = None
                tell(cell, "vote", [SERVER], vote)
            except (CheckpointError, MessageError, ValueError):
                tell(cell, "fails", [SERVER], b"")  # the reason may name files or pictures, and stays here
                raise
        elif topic == "save":
            site.save(int.from_bytes(payload, "little"))
            tell(cell, "saved", [SERVER], payload)
        else:
            finished = json.loads(payload).get("finished")
            say(f"the run is over: {site.name} is at step {site.step}" if finished else "the server stops")
            if finished:
                return
