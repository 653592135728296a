"""What TensorRT calls while it works: a log, and a monitor that can stop it."""

import threading
from collections.abc import Callable
from typing import Any, SupportsInt

from export import Progress


def make_log(trt: Any) -> Any:
    """A logger for a library, here called ``trt``, that keeps its errors, which its calls do not return."""
    severities = trt.ILogger.Severity

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            if severity in (severities.INTERNAL_ERROR, severities.ERROR):
                self.errors.append(msg)

    return Log()


def make_monitor(trt: Any, line: str, progress: Progress, goes_on: Callable[[], bool]) -> Any:
    """Passes on how far TensorRT is, and ends its work once it is not to go on."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.lock = threading.Lock()  # TensorRT calls from several threads

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: SupportsInt) -> None:
            with self.lock:
                self.steps[phase_name] = int(num_steps)
                progress(f"{line}: {phase_name}", 0, int(num_steps))

        def step_complete(self, phase_name: str, step: SupportsInt) -> bool:
            with self.lock:
                progress(f"{line}: {phase_name}", int(step) + 1, self.steps[phase_name])
                return goes_on()

        def phase_finish(self, phase_name: str) -> None:
            with self.lock:
                del self.steps[phase_name]

    return Monitor()
