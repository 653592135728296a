"""Start NVIDIA's Triton Inference Server on a model repository and stay with it until it ends."""

import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType

from serving.triton.address import Address
from serving.triton.errors import ServerError
from serving.triton.installation import find_installation

SHARED_MEMORY = Path("/dev/shm")
POLL_SECONDS = 0.2
# Triton's own 30 seconds are too few for a large engine, or for a small one on a busy machine.
LOAD_SECONDS = 600
# On a machine that is very busy Triton now and then crashes while it loads models (its issue 8882).
MOST_STARTS = 3
# A model's process whose server was killed notices within 4 seconds, frees its shared memory and ends.
ORPHAN_SECONDS = 6.0

# Becomes the program in its arguments, to which the kernel will send SIGTERM (prctl's PR_SET_PDEATHSIG is 1) when the
# process that is the first argument has ended, in whatever way.
TIED_TO_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""

_LOAD_FAILED = re.compile(
    r"\"(?:failed to load|Poll failed for model directory) '(?P<model>[^']+)'(?: version \d+)?: (?:Internal: )?"
    r"(?P<reason>.*?)(?:\\n|\"$)"
)
_INFORMATION = re.compile(r"I\d{4} ")


class TritonServer:
    """A running tritonserver: `with TritonServer(...) as server: server.wait_until_ready(); server.wait()`.

    Leaves nothing behind: not when it ends, not when it is told to stop, not when this process is killed.
    `show` is called from another thread with every line of Triton's log that is worth a look (warnings, errors, what
    models print) once the server is ready, with every line from the start if `verbose`.
    """

    def __init__(
        self, repository: Path, models: Iterable[str], address: Address, show: Callable[[str], None], verbose: bool
    ) -> None:
        self.repository, self.models, self.address = repository.resolve(), list(models), address
        self._show, self._verbose = show, verbose
        self._installation = find_installation()
        self._region = f"medgen_{uuid.uuid4().hex[:12]}"
        self._log: deque[str] = deque(maxlen=2000)
        self._ready = self._stopping = False
        self._starts = 0

    def __enter__(self) -> "TritonServer":
        self.address.check_free()
        self._start()
        return self

    def _start(self) -> None:
        command = [
            *(sys.executable, "-I", "-c", TIED_TO_PARENT, str(os.getpid())),
            str(self._installation.program),
            *self._installation.arguments,
            f"--model-repository={self.repository}",
            "--model-control-mode=explicit",
            *(f"--load-model={name}" for name in self.models),
            *self.address.arguments(),
            f"--backend-config=python,shm-region-prefix-name={self._region}",
            f"--backend-config=python,stub-timeout-seconds={LOAD_SECONDS}",
        ]
        self._starts += 1
        self._log.clear()
        # Its own session: Ctrl-C in a terminal reaches us alone, and we pass it on once.
        self._process = subprocess.Popen(
            command,
            env=self._installation.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        if self._stopping:  # told so since the last start
            self._process.terminate()

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.stop()
            try:
                self._process.wait(timeout=ORPHAN_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._clear_away()

    def _clear_away(self) -> None:
        """What may be left of a server that has ended."""
        _end_group(self._process.pid)
        self._reader.join()
        for region in SHARED_MEMORY.glob(f"{self._region}*"):
            region.unlink(missing_ok=True)

    def wait_until_ready(self) -> bool:
        """True when every model answers, False if the server has been told to stop before.

        Raises ServerError with the reason from Triton's log if the server ends by itself.
        """
        while not self._stopping:
            if self._answers():
                self._ready = True
                return True
            if self._process.poll() is not None:
                self._clear_away()
                if self._process.returncode >= 0 or self._starts == MOST_STARTS:
                    raise ServerError(self._reason())
                self._show(f"{self._reason()}; starting it again")
                self._start()
            time.sleep(POLL_SECONDS)
        return False

    def wait(self) -> int:
        """Waits until the server ends and returns its exit code (128 + the signal's number, if a signal ended it).

        Raises ServerError if the server ends without having been told to, and if the process of a model does: Triton
        does not notice, stays ready and answers each of that model's requests with a 500.
        """
        lost = 0
        while self._process.poll() is None:
            lost = lost + 1 if _has_dead_child(self._process.pid) and not self._stopping else 0
            if lost > 2:  # a child that ended as it should is only there until Triton has seen it
                raise ServerError("the process of a model has died (killed, or out of memory); the server ends with it")
            time.sleep(POLL_SECONDS)
        if not self._stopping:
            self._clear_away()
            raise ServerError(self._reason())
        code = self._process.returncode
        return code if code >= 0 else 128 - code

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """Passes the signal on; requests under way have 30 seconds to finish. A second call ends the server at once."""
        if self._ready and not self._stopping:
            self._show("Stopping; requests under way have 30 seconds")
        self._process.send_signal(signal.SIGKILL if self._stopping else signal_number)
        self._stopping = True

    def stop_on(self, *signals: signal.Signals) -> None:
        """From now on these signals, sent to this process, stop the server. Main thread only."""

        def forward(signal_number: int, _: FrameType | None) -> None:
            self.stop(signal.Signals(signal_number))

        for number in signals:
            signal.signal(number, forward)

    def _answers(self) -> bool:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.address.host, self.address.host)
        connection = http.client.HTTPConnection(host, self.address.http, timeout=5)
        try:
            connection.request("GET", "/v2/health/ready")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _read_log(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as log:
            for line in log:
                self._log.append(line.rstrip())
                if self._verbose or (self._ready and not self._stopping and not _INFORMATION.match(line)):
                    self._show(line.rstrip())

    def _reason(self) -> str:
        failures = {match["model"]: match["reason"] for match in map(_LOAD_FAILED.search, self._log) if match}
        if failures:
            return "; ".join(f"model {model} cannot be loaded: {reason}" for model, reason in failures.items())
        last = [line for line in self._log if line.strip() and not _INFORMATION.match(line)][-3:]
        return f"tritonserver ended with code {self._process.returncode}: {' '.join(last) or 'it said nothing'}"


def _has_dead_child(pid: int) -> bool:
    return any(parent == pid and state == "Z" for parent, _, state in _processes())


def _end_group(group: int) -> None:
    """Gives the processes that a dead server left the time to free their shared memory, then kills them."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    while any(member == group and state != "Z" for _, member, state in _processes()):
        if time.monotonic() > deadline:
            os.killpg(group, signal.SIGKILL)
            return
        time.sleep(POLL_SECONDS)


def _processes() -> Iterable[tuple[int, int, str]]:
    """(parent, process group, state) of every process."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, group = file.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # ended meanwhile
            continue
        yield int(parent), int(group), state
