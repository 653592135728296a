"""How far a server is with requests that it has in flight, from its metrics."""

import logging
import re
import threading
import urllib.request
import uuid
from collections.abc import Callable, Iterable
from http.client import HTTPException

SECONDS = 1.0  # as often as the server tells it
_DONE = re.compile(r"^medgen_request_(done|steps)\{([^}]*)\} (\S+)$", re.MULTILINE)
_REQUEST = re.compile(r'request="([^"]*)"')

Tell = Callable[[int, int], object]


class StepWatch:
    """Tells every second how many steps are done of all those of some requests, for as long as any is in flight.

    metrics_url: HOST:PORT. tell: called by a thread of its own with (steps done, steps in all), until ``close``.
    """

    def __init__(self, metrics_url: str, tell: Tell) -> None:
        self._url, self._tell = f"http://{metrics_url}/metrics", tell
        self._names: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="steps", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def new_name(self) -> str:
        """The id for a request whose steps are to be told."""
        name = uuid.uuid4().hex
        self._names.add(name)
        return name

    def _watch(self) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while not self._ended.wait(SECONDS):
            try:
                text = opener.open(self._url, timeout=5).read().decode()
            except (OSError, HTTPException) as error:
                logging.getLogger(__name__).warning("nothing is told of steps: %s: %s", self._url, error)
                return
            done, steps = told(text, set(self._names))
            if steps:
                self._tell(done, steps)


def told(text: str, names: Iterable[str]) -> tuple[int, int]:
    """(steps done, steps in all) of the requests of these names, as the metrics say."""
    sums = {"done": 0, "steps": 0}
    for kind, labels, value in _DONE.findall(text):
        found = _REQUEST.search(labels)
        if found and found.group(1) in names:
            sums[kind] += int(float(value))
    return sums["done"], sums["steps"]
