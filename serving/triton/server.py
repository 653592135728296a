"""NVIDIA's Triton Inference Server as a process of ours, on a model repository."""

import os
import re
import signal
import subprocess
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from types import FrameType

from serving.triton.access import Access
from serving.triton.address import Address
from serving.triton.control import Control
from serving.triton.errors import DROPPED, ServerError
from serving.triton.installation import Installation, find_installation
from serving.triton.log import is_worth_showing, load_failures, why_ended
from serving.triton.processes import POLL_SECONDS, children, end_group, hide, tied_to_us
from serving.triton.served_models import compile_code

SHARED_MEMORY = Path("/dev/shm")
# Triton's own 30 seconds are too few for a large engine, or for a small one on a busy machine.
LOAD_SECONDS = 600
# On a machine that is very busy Triton now and then crashes while it loads models (its issue 8882).
MOST_STARTS = 3
# A model's process whose server was killed notices within 4 seconds, frees its shared memory and ends.
ORPHAN_SECONDS = 6.0
# Requests under way have 30 seconds, which Triton counts itself.
STOP_SECONDS = 40.0
# After the last model's process has ended, with all that it had answered, Triton waits for idle connections; and for
# ever for a process that was killed at work.
UNLOAD_SECONDS = 5.0
# A gRPC client is asked to connect anew then, which loses nothing: behind an address that leads to several servers it
# would else stay with one, whether others have been added or its own is to end.
CONNECTION_SECONDS = 30

_IN_HAND = re.compile(r'^medgen_rows_(?:in_flight|waiting)\{[^}]*process="(\d+)"[^}]*\} (\S+)$', re.MULTILINE)
_UNLOADING = "All models are stopped, unloading models"
_UNLOADED = re.compile(r"successfully unloaded '([^']+)'")
_PLAIN = re.compile(r"[A-Za-z0-9/._-]+")


class TritonServer:
    """A running tritonserver: `with TritonServer(...) as server: server.wait_until_ready()`.

    Leaves nothing behind: not when it ends, not when it is told to stop, not when this process is killed.
    `show` is called from another thread with every line of Triton's log that is worth a look (warnings, errors, what
    models print) once the server is ready, with every line from the start if `verbose`.
    """

    def __init__(
        self,
        repository: Path,
        models: Iterable[str],
        address: Address,
        show: Callable[[str], None],
        verbose: bool,
        access: Access | None = None,
        installation: Installation | None = None,
        arguments: Iterable[str] = (),
    ) -> None:
        self.repository, self.models, self.address = repository.resolve(), list(models), address
        self.show, self._verbose = show, verbose
        self._installation = installation or find_installation()
        self._access, self._arguments = access or Access(), tuple(arguments)
        self.control = Control(address, self._access.key, LOAD_SECONDS)
        self._region = f"medgen_{uuid.uuid4().hex[:12]}"
        self._log: deque[str] = deque(maxlen=2000)
        self.is_ready = self.is_stopping = False
        self._starts = 0

    def __enter__(self) -> "TritonServer":
        self.address.wait_until_free(self.show)
        self._plain = _PlainPaths([self.repository, *self._installation.folders])
        self.start()
        return self

    def start(self) -> None:
        """Starts the program; it is not ready yet."""
        command = [
            *tied_to_us(str(self._installation.program)),
            *map(self._plain.hide, self._installation.arguments),
            f"--model-repository={self._plain.hide(str(self.repository))}",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in self.models),
            *self.address.arguments(),
            *self._access.arguments(),
            f"--grpc-max-connection-age={1000 * CONNECTION_SECONDS}",
            *self._arguments,
            f"--backend-config=python,shm-region-prefix-name={self._region}",
            f"--backend-config=python,stub-timeout-seconds={LOAD_SECONDS}",
        ]
        for model in self.models:
            compile_code(self.repository, model)
        self.is_ready = False
        self._is_unloading = False
        self._let_go: set[str] = set()
        self._unloaded: set[str] = set()
        self._all_answered: float | None = None
        self._ending: float | None = None
        self._starts += 1
        self._log.clear()
        # Its own session: Ctrl-C in a terminal reaches us alone, and we pass it on once.
        self._process = subprocess.Popen(
            command,
            env=self._installation.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        if self.is_stopping:  # told so since the last start
            self._terminate()

    def __exit__(self, *_: object) -> None:
        self.end(ORPHAN_SECONDS)
        self._plain.close()

    def end(self, patience: float = STOP_SECONDS) -> None:
        """Ends the program, after the requests under way if they take no longer than `patience` seconds."""
        if self.code() is None:
            self._terminate()
            deadline = time.monotonic() + patience
            while self.code() is None and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            self._process.kill()
            self._process.wait()
        self.clear_away()

    def clear_away(self, grace: float = ORPHAN_SECONDS) -> None:
        """What may be left of a server that has ended; the processes of its models have `grace` seconds to end."""
        end_group(self._process.pid, grace)
        self._reader.join()
        for region in SHARED_MEMORY.glob(f"{self._region}*"):
            region.unlink(missing_ok=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    def code(self) -> int | None:
        """None while it runs, else its exit code, or minus the number of the signal that ended it.

        0 if it has answered all that it had before it was told to end, however it ended then.
        """
        code = self._process.poll()
        if code is None and self._ending is not None and time.monotonic() - self._ending > STOP_SECONDS:
            self._process.kill()  # what a process had that was killed is never answered
        if self._all_answered is None and code is None and self._has_answered() and not self._has_models():
            self._all_answered = time.monotonic()
        if self._all_answered is None:
            return code
        if code is None and time.monotonic() - self._all_answered > UNLOAD_SECONDS:
            self._process.kill()
        return None if code is None else 0

    def _has_answered(self) -> bool:
        """Whether Triton says so: of each model that was let go before it was told to end, of the others together."""
        if not self._unloaded.issuperset(self._let_go):
            return False
        return self._is_unloading or (bool(self._let_go) and self._let_go.issuperset(self.models))

    def _terminate(self) -> None:
        self._ending = self._ending or time.monotonic()
        self._process.terminate()

    def rows_in_hand(self, pid: int) -> int | None:
        """Samples that a model's process has begun or lets wait, as it last said; None if the server does not tell."""
        try:
            return rows_in_hand(self.address.metrics_text(), pid)
        except (OSError, HTTPException):
            return None

    def has_told(self, pid: int) -> bool:
        """Whether a model's process has told anything yet, which it does as soon as it can draw."""
        try:
            return f'process="{pid}"' in self.address.metrics_text()
        except (OSError, HTTPException):
            return False

    def _has_models(self) -> bool:
        """Whether processes of models are there, which have requests in flight for as long as they want to."""
        return any(child.state != "Z" for child in children(self._process.pid))

    def answers(self) -> bool:
        """Whether all models are loaded; `is_ready` from then on."""
        self.is_ready = self.is_ready or self.control.is_ready()
        return self.is_ready

    def wait_until_ready(self) -> bool:
        """True when every model answers, False if the server has been told to stop before.

        Raises ServerError with the reason from Triton's log if the server ends by itself.
        """
        while not self.is_stopping:
            if self.answers():
                return True
            if (code := self.code()) is not None:
                self.clear_away()
                if code >= 0 or self._starts == MOST_STARTS:
                    raise ServerError(self.why_ended())
                self.show(f"{self.why_ended()}; starting it again")
                self.start()
            time.sleep(POLL_SECONDS)
        return False

    def why_ended(self) -> str:
        return why_ended(self._log, self._process.returncode)

    def load_failures(self) -> dict[str, str]:
        """The reasons in the log of the latest start, by model."""
        return load_failures(self._log)

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """Passes the signal on; requests under way have 30 seconds to finish. A second call ends the server at once."""
        self._ending = self._ending or time.monotonic()
        if self.is_stopping:
            self._process.kill()
        elif self.is_ready:
            self.show("Stopping; requests under way have 30 seconds")
            threading.Thread(target=self._finish, args=(signal_number,), daemon=True).start()
        else:
            self._process.send_signal(signal_number)
        self.is_stopping = True

    def _finish(self, signal_number: int) -> None:
        """Takes no more requests, then passes the signal on.

        Triton itself goes on answering clients that keep an HTTP connection, and when its 30 seconds are over it drops
        what it then has, or crashes at that.
        """
        with suppress(ServerError):
            for model in reversed(self.models):  # chains are behind their stages
                self.control.unload(model)
                self._let_go.add(model)
        self._process.send_signal(signal_number)

    def stop_on(self, *signals: signal.Signals) -> None:
        """From now on these signals, sent to this process, stop the server. Main thread only."""

        def forward(signal_number: int, _: FrameType | None) -> None:
            self.stop(signal.Signals(signal_number))

        for number in signals:
            signal.signal(number, forward)

    def _read_log(self) -> None:
        process = self._process
        assert process.stdout is not None
        with process.stdout as log:
            for number, line in enumerate(log):
                if number == 0:  # it has read its arguments
                    self._hide_key(process.pid)
                line = self._plain.show(line.rstrip())
                self._log.append(line)
                self._is_unloading = self._is_unloading or _UNLOADING in line
                if self.is_stopping and (unloaded := _UNLOADED.search(line)):
                    self._unloaded.add(unloaded[1])
                worth_showing = line.startswith(DROPPED) if self.is_stopping else is_worth_showing(line)
                if self._verbose or (self.is_ready and worth_showing):
                    self.show(line)

    def _hide_key(self, pid: int) -> None:
        try:
            hide(pid, self._access.key)
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            pass
        except OSError as error:
            self.show(f"The arguments of process {pid} show the key of Triton's closed APIs to this machine: {error}")


def rows_in_hand(metrics: str, pid: int) -> int:
    return sum(int(float(value)) for process, value in _IN_HAND.findall(metrics) if process == str(pid))


class _PlainPaths:
    """Other names for folders that have what Triton cannot take in theirs.

    It starts the processes of models by a line for a shell in which paths are not quoted, so that a space ends one.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        innermost_first = sorted(map(str, folders), key=len, reverse=True)
        odd = [folder for folder in innermost_first if not _PLAIN.fullmatch(folder)]
        self._opened = {folder: os.open(folder, os.O_PATH | os.O_DIRECTORY) for folder in odd}
        self._names = {folder: f"/proc/{os.getpid()}/fd/{number}" for folder, number in self._opened.items()}

    def close(self) -> None:
        for number in self._opened.values():
            os.close(number)

    def hide(self, text: str) -> str:
        for folder, name in self._names.items():
            text = text.replace(folder, name)
        return text

    def show(self, text: str) -> str:
        for folder, name in self._names.items():
            text = text.replace(f"{name}/", f"{folder}/")
        return text
