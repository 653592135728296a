"""Keeps a server as it should be: running, with the models that are on disk, each with processes that live."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

from serving.triton.control import READY
from serving.triton.errors import ServerError
from serving.triton.installation import STUB
from serving.triton.processes import POLL_SECONDS, children, command
from serving.triton.served_models import compile_code, fingerprint, has_code, is_built, look
from serving.triton.server import STOP_SECONDS, TritonServer

LOOK_SECONDS = 1.0
# Pauses before something that keeps dying is started again; after a quiet minute there is none.
FIRST_PAUSE, LONGEST_PAUSE, QUIET_SECONDS = 1.0, 30.0, 60.0
# A process that ended as it should is only there until Triton has asked for it.
DEAD_POLLS = 2
# For the requests of other models, when all must be ended.
OTHERS_SECONDS = 5.0
# In which Triton takes in a process that can draw, after the one before it has answered all.
TAKEN_IN_SECONDS = 20.0


class Keeper:
    """Stays with a server until it is told to stop, and says what it does about what happens to it.

    tritonserver that ends is started again, and so are processes of models; models that are gone are loaded again;
    models that are built, or rebuilt, are loaded, without a request that fails. wanted: the models to serve, all that
    are built if empty.
    """

    def __init__(self, server: TritonServer, wanted: Iterable[str] = ()) -> None:
        self._server, self._show, self._repository = server, server.show, server.repository
        self._wanted = tuple(wanted)
        self._loaded = self._fingerprints(server.models)
        self._seen: dict[str, str] = dict(self._loaded)
        self._given_up: dict[str, str] = {}
        self._missing: dict[str, str] = {}
        self._crashes = _BackOff()
        self._pauses: defaultdict[str, _BackOff] = defaultdict(_BackOff)
        self._due: dict[str, float] = {}
        self._not_before: defaultdict[str, float] = defaultdict(float)
        self._replaced = 0
        self._model_of: dict[int, str] = {}
        self._dead: Counter[int] = Counter()

    def wait(self) -> int:
        """Waits until the server was told to stop and has; its exit code, or 128 + the number of what ended it."""
        next_look = time.monotonic()
        while True:
            code = self._server.code()
            if self._server.is_stopping:
                if code is not None:
                    return code if code >= 0 else 128 - code
            elif code is not None:
                self._start_again(self._server.why_ended())
            elif not self._server.is_ready:
                if self._server.answers():
                    self._learn()
                    self._show(f"Serving {', '.join(self._server.models)} again")
            else:
                self._keep_processes()
                if time.monotonic() >= next_look:
                    self._keep_loaded()
                    self._follow_disk()
                    next_look = time.monotonic() + LOOK_SECONDS
            time.sleep(POLL_SECONDS)

    def _start_again(self, reason: str) -> None:
        """The whole server, with what is on disk now, less what could not be loaded."""
        pause = self._crashes.next()
        self._show(
            f"{reason}. Starting it again{f' in {pause:g} s' if pause else ''}; "
            "requests that it had are lost, and their clients see a closed connection"
        )
        self._server.clear_away(grace=0)
        self._sleep(pause)
        failures = self._server.load_failures()
        models, passed_over = look(self._repository, self._wanted)
        now = self._fingerprints(models)
        for name, why in failures.items():
            if name in now:
                self._given_up[name] = now[name]
                self._show(f"model {name} is served no longer: {why}")
        kept = [name for name in models if now[name] != self._given_up.get(name)]
        self._server.models[:] = kept
        self._loaded = {name: now[name] for name in kept}
        self._seen, self._missing = now, dict(passed_over)
        self._model_of.clear()
        self._dead.clear()
        self._due.clear()
        self._server.start()

    def _sleep(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._server.is_stopping:
            time.sleep(POLL_SECONDS)

    def _keep_processes(self) -> None:
        """Triton does not notice that a model's process has died: it stays ready, and answers with a 500 each."""
        self._learn()
        for process in children(self._server.pid):
            if process.state != "Z":
                continue
            self._dead[process.pid] += 1
            if self._dead[process.pid] == DEAD_POLLS:
                self._mourn(process.pid)
        for name in [name for name, due in self._due.items() if time.monotonic() >= due]:
            del self._due[name]
            self._replace_processes(name)

    def _learn(self) -> None:
        """Which model each process is of, while it lives: of one that is dead nobody can tell."""
        for pid in [process.pid for process in children(self._server.pid) if process.state != "Z"]:
            arguments = command(pid) if pid not in self._model_of else []
            if len(arguments) > 1 and Path(arguments[0]).name == STUB:  # else it is still the shell that starts it
                self._model_of[pid] = Path(arguments[1]).parents[1].name

    def _mourn(self, pid: int) -> None:
        name = self._model_of.pop(pid, None)
        lost = self._server.rows_in_hand(pid)
        # One that died before we knew whose it was may have been replaced already.
        for dead in self._without_process() if name is None else [name]:
            if not lost and (dead not in self._loaded or dead in self._due):
                continue
            if lost != 0:
                count = "nobody knows how many" if lost is None else lost
                self._restart(
                    f"the process of model {dead} has died (killed, or out of memory) with {count} samples in hand, "
                    "which nobody else can answer",
                    patience=OTHERS_SECONDS,
                )
                return
            pause = self._pauses[dead].next()
            self._show(
                f"the process of model {dead} has died (killed, or out of memory). "
                f"Starting it again{f' in {pause:g} s' if pause else ''}; what comes meanwhile gets a 500"
            )
            self._due[dead] = time.monotonic() + pause

    def _without_process(self) -> list[str]:
        """Models that have code, and nothing that runs it."""
        living = {self._model_of.get(process.pid) for process in children(self._server.pid) if process.state != "Z"}
        return [name for name in self._loaded if name not in living and has_code(self._repository, name)]

    def _replace_processes(self, name: str) -> None:
        self._replaced += 1
        with ThreadPoolExecutor(1) as thread:
            load = thread.submit(self._server.control.replace_processes, name, self._repository / name, self._replaced)
            if self._waits_for_the_dead(name, load):
                self._restart(
                    f"the process of model {name} that died had samples in hand of which it had not told, and which "
                    "nobody else can answer",
                    patience=OTHERS_SECONDS,
                )
                return
        try:
            load.result()
            self._learn()
            self._show(f"Serving {name} again")
        except ServerError as error:
            if self._server.code() is None and not self._server.is_stopping:
                self._restart(f"model {name} cannot be started again alone: {error}")

    def _waits_for_the_dead(self, name: str, load: "Future[None]") -> bool:
        """Triton takes a new process in when the one before it has answered all: for a dead one it waits for ever.

        False once the load has ended, however it did.
        """
        former, able = set(self._model_of), None
        while not wait([load], LOOK_SECONDS).done:
            self._learn()
            new = [pid for pid, model in self._model_of.items() if model == name and pid not in former]
            if not new or not all(map(self._server.has_told, new)):
                able = None
            elif able is None:
                able = time.monotonic()
            elif time.monotonic() - able > TAKEN_IN_SECONDS:
                return True
        return False

    def _restart(self, reason: str, patience: float = STOP_SECONDS) -> None:
        self._show(f"{reason}. Ending tritonserver; what others have in hand has {patience:g} s")
        self._server.end(patience)
        if not self._server.is_stopping:
            self._start_again("tritonserver was ended")

    def _keep_loaded(self) -> None:
        try:
            states = self._server.control.states()
        except ServerError:  # busy, or it has just ended
            return
        for name in self._loaded:
            state = states.get(name, "not loaded")
            if state != READY and name not in self._due and time.monotonic() >= self._not_before[name]:
                self._show(f"model {name} is gone ({state.strip()}). Loading it again")
                self._load(name, "cannot be loaded again")
                self._not_before[name] = time.monotonic() + self._pauses[name].next()

    def _follow_disk(self) -> None:
        """What has been the same for two looks; a build puts a bundle in place by two renames."""
        found, passed_over = look(self._repository, self._wanted)
        now = self._fingerprints(found)
        settled = now == self._seen
        self._seen = now
        if not settled:
            return
        for name in [name for name in self._loaded if name not in now]:
            self._let_go(name, passed_over.get(name, "its folder is gone"))
        for name in found:
            self._missing.pop(name, None)
            if now[name] not in (self._loaded.get(name), self._given_up.get(name)):
                self._show(f"model {name} has been {'rebuilt' if name in self._loaded else 'built'}. Loading it")
                if self._load(name, "cannot be loaded; what was served before stays"):
                    self._loaded[name] = now[name]
                else:
                    self._given_up[name] = now[name]
        self._server.models[:] = self._loaded

    def _let_go(self, name: str, reason: str) -> None:
        """A chain whose stages no longer fit would fail each request; what is only gone from disk is still served."""
        if is_built(self._repository, name):
            del self._loaded[name]
            try:
                self._server.control.unload(name)
                self._show(f"model {name} is served no longer: {reason}")
            except ServerError as error:
                self._show(f"model {name} should be served no longer, but cannot be unloaded: {error}; {reason}")
        elif self._missing.get(name) != reason:
            self._missing[name] = reason
            self._show(f"{reason}. What was loaded is served on")

    def _load(self, name: str, failure: str) -> bool:
        compile_code(self._repository, name)
        try:
            self._server.control.load(name)
        except ServerError as error:
            if self._server.code() is None and not self._server.is_stopping:
                self._show(f"model {name} {failure}: {error}")
            return False
        self._learn()
        self._show(f"Serving {name}")
        return True

    def _fingerprints(self, models: Iterable[str]) -> dict[str, str]:
        return {name: fingerprint(self._repository, name) for name in models}


class _BackOff:
    """Pauses that double while what they are for keeps happening; the first is none."""

    def __init__(self) -> None:
        self._pause, self._latest = 0.0, float("-inf")

    def next(self) -> float:
        """The pause before the next try, in seconds."""
        now = time.monotonic()
        pause = self._pause if now - self._latest < QUIET_SECONDS else 0.0
        self._latest = now + pause
        self._pause = min(max(FIRST_PAUSE, 2 * pause), LONGEST_PAUSE)
        return pause
