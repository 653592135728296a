"""The server's side: asks the sites that are there, and goes on without those that are not."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

from torch import Size, Tensor

from training.family import WaitedInVain
from training.federated.channel import SERVER, ChannelError, check_free, close_cell, listen, name_in, open_cell, tell
from training.federated.panel import MessageError, Question, Verdict, Vote, mean_of
from training.federated.site import going_on
from training.federated.terms import Terms

REMINDER = 30.0  # seconds between lines that say who is waited for
PATIENCE = 0.5  # seconds between looks at whether somebody wants the run to stop
STRIKES = 3  # answers that are none, after which a site has no vote any more


class SitesElsewhere:
    """A panel of sites that join over TLS. A context, which ends with telling them that the run is over.

    address: HOST:PORT to listen at. kit: the server's. expected: sites that must have joined before the first step.
    timeout: seconds after which a site is left out of a step; it is asked again once it has been heard of.
    stopped: whether the run is to stop; asked while there is nobody to go on with. lost: the expected sites that can
    never come; asked then too, and may raise. One that answers NaN or nonsense is left out as one that is late, and the
    ``STRIKES``th time for as long as this server runs.
    """

    def __init__(
        self,
        address: str,
        kit: Path,
        terms: Terms,
        expected: int,
        timeout: float = 60.0,
        say: Callable[[str], object] = print,
        stopped: Callable[[], bool] = lambda: False,
        lost: Callable[[], Set[str]] = frozenset,
    ) -> None:
        if name_in(kit, SERVER) != SERVER:
            raise ChannelError(f"{kit} is no server's kit")
        self.address, self.terms, self.expected, self.timeout = address, terms, expected, timeout
        self.say, self.stopped, self.lost = say, stopped, lost
        check_free(address)
        self.changed = threading.Condition()
        self.there: set[str] = set()
        self.sessions: dict[str, Any] = {}  # of sites by their names, to tell two processes of one name apart
        self.votes: dict[str, Vote] = {}
        self.strikes: Counter[str] = Counter()
        self.saving, self.saved = b"", set[str]()
        self.step, self.shape = 0, Size()
        self.begun = self.over = False
        self.cell = open_cell(SERVER, address, kit, SERVER, say)
        for topic, heard in {
            "join": self.join,
            "vote": self.vote,
            "saved": self.note_saved,
            "behind": self.behind,
            "fails": self.fails,
        }.items():
            listen(self.cell, topic, heard)
        self.cell.core_cell.set_cell_disconnected_cb(self.disconnected)
        self.cell.start()

    def __enter__(self) -> "SitesElsewhere":
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self.over = True
        tell(self.cell, "end", sorted(self.sessions), json.dumps({"finished": kind is None}).encode())
        time.sleep(PATIENCE)  # for what is under way
        close_cell(self.cell)

    # --- what FLARE's threads call ---

    def join(self, name: str, payload: bytes) -> bytes:
        told = json.loads(payload)
        with self.changed:
            if name in self.struck_out:
                return json.dumps({"struck_out": STRIKES}).encode()
            if name in self.there and self.sessions.get(name) != told.get("session"):
                return json.dumps({"refused": f"a site called {name} is there already"}).encode()
            if told.get("ready"):
                self.sessions[name] = told.get("session")
                self.arrived(name)
        return json.dumps({"terms": self.terms.to_json(), "step": self.step}).encode()

    def arrived(self, name: str) -> None:
        with self.changed:
            if name not in self.there | self.struck_out:
                self.there.add(name)
                self.say(f"{name} is there" if not self.begun else f"{name} is there, from step {self.step} on")
            self.changed.notify_all()

    def vote(self, name: str, payload: bytes) -> None:
        try:
            vote = Vote.from_bytes(payload)
            if vote.step == self.step and vote.gradient.shape != self.shape:
                raise MessageError(f"a gradient of {list(vote.gradient.shape)}, not {list(self.shape)}")
        except MessageError as error:
            self.strike(name, f"its answer is none: {error}")
            return
        with self.changed:
            if vote.step == self.step and name in self.there:
                self.votes[name] = vote
        self.arrived(name)  # one that answers late is asked again

    def strike(self, name: str, why: str) -> None:
        with self.changed:
            if name in self.struck_out:
                return
            self.strikes[name] += 1
            if name in self.struck_out:
                self.there.discard(name)
                self.say(f"{name} is struck out at step {self.step}, after {STRIKES} such answers: {why}")
                self.changed.notify_all()
            else:
                self.left_out(name, why)

    @property
    def struck_out(self) -> set[str]:
        return {name for name, count in self.strikes.items() if count >= STRIKES}

    def note_saved(self, name: str, payload: bytes) -> None:
        with self.changed:
            if payload == self.saving:
                self.saved.add(name)
            self.changed.notify_all()

    def behind(self, name: str, payload: bytes) -> None:
        self.say(f"{name} {going_on(int.from_bytes(payload[:8], 'little'), self.step)}")

    def fails(self, name: str, _: bytes) -> None:
        self.left_out(name, "it has failed, and says there why")

    def disconnected(self, agent: Any, *_: object, **__: object) -> None:
        if not self.over:
            self.left_out(agent.get_fqcn(), "its connection is gone")

    def left_out(self, name: str, why: str) -> None:
        with self.changed:
            if name in self.there:
                self.there.discard(name)
                self.say(f"{name} is left out from step {self.step} on: {why}")
            self.changed.notify_all()

    # --- what training calls ---

    def wait_for(self, count: int) -> None:
        """Returns when so many sites are there, or all that can come.

        Raises WaitedInVain if the run is to stop, ChannelError if no site can come.
        """
        told = 0.0
        with self.changed:
            while len(self.there) < min(count, can_come := self.expected - len(self.gone)) or not self.there:
                if can_come <= 0:
                    raise ChannelError("no site is left; go on with --resume")
                if time.monotonic() > told:
                    told = time.monotonic() + REMINDER
                    names = ", ".join(sorted(self.there)) or "nobody yet"
                    self.say(f"waiting for sites: {len(self.there)} of {count} are there: {names}")
                self.changed.wait(PATIENCE)
                if self.stopped():
                    raise WaitedInVain
            if len(self.there) < count:
                self.say(f"{len(self.there)} of {count} sites are there; the others cannot come any more")

    @property
    def gone(self) -> set[str]:
        return self.struck_out | self.lost()

    def judge(self, step: int, drawn: Tensor, condition: Tensor) -> Verdict:
        if not self.begun:
            self.step = step
            self.wait_for(self.expected)
            self.begun = True
        question = Question(step, drawn, condition).to_bytes()
        self.shape = drawn.shape
        while not (votes := self.ask(step, question)):
            self.wait_for(1)
        return mean_of(votes, self.terms.preset.site_weights)

    def ask(self, step: int, question: bytes) -> dict[str, Vote]:
        """The votes of those who are there, as far as they come in time."""
        with self.changed:
            self.step, self.votes = step, {}
            asked = sorted(self.there)
        tell(self.cell, "judge", asked, question)
        self.until(lambda: self.there.intersection(asked) <= self.votes.keys())
        with self.changed:
            votes = dict(self.votes)
            late = self.there.intersection(asked) - votes.keys()
        for name in sorted(late):
            self.left_out(name, f"no answer within {self.timeout:g} s")
        return votes

    def save(self, step: int) -> None:
        with self.changed:
            self.saving, self.saved = step.to_bytes(8, "little"), set()
            asked = sorted(self.there)
        tell(self.cell, "save", asked, self.saving)
        self.until(lambda: self.there.intersection(asked) <= self.saved)
        for name in sorted(set(asked) - self.saved):
            self.say(f"{name} has not kept what it learnt before step {step}: resumed there, it goes on from earlier")

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.timeout
        with self.changed:
            while not done() and (left := deadline - time.monotonic()) > 0:
                self.changed.wait(left)
