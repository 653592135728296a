"""Progress for whoever reads along: a bar on a terminal, a line now and then where the output is piped."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

SECONDS = 10.0


class NowAndThen:
    """Writes a line if the last one is long enough ago; the first comes when something has taken that long."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._last = clock()

    def __call__(self, line: str) -> None:
        now = self._clock()
        if now - self._last >= SECONDS:
            print(line, file=self._stream or sys.stderr, flush=True)
            self._last = now
