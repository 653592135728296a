"""Send requests when they are due, whatever has become of those before."""

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import psutil
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from benchmarks.load.arrivals import Arrival

PATIENCE = 1200.0  # seconds for all answers after the last request was sent
SOLVER = "dpmpp_2m"  # fits every model
QUEUE_IS_FULL = ("Exceeds maximum queue size", "the queue of ")  # Triton's words, and ours; a dead server has others


@dataclass(frozen=True)
class Answer:
    """seconds: from when the request was due, however late it was sent. digest: of the samples, None if refused."""

    seconds: float
    digest: str | None


@dataclass(frozen=True)
class Play:
    """answers: in the order of the arrivals. seconds: until the last of them. lag: the latest a request was sent."""

    answers: list[Answer]
    seconds: float
    lag: float


class LoadError(RuntimeError):
    """The server failed at a request, or did not answer."""


def play(url: str, model: str, arrivals: Sequence[Arrival]) -> Play:
    """Raises LoadError for a request that was not answered, but for those that found the queue full."""
    answers: list[Answer | None] = [None] * len(arrivals)
    failures: list[str] = []
    left = threading.Semaphore(0)

    def settle(number: int, due: float, result: Any, error: InferenceServerException | None) -> None:
        seconds = time.perf_counter() - due
        if error is not None and not any(words in str(error.message()) for words in QUEUE_IS_FULL):
            failures.append(f"{arrivals[number]}: {error.message()}")
        answers[number] = Answer(seconds, None if error else digest(result))
        left.release()

    with triton.InferenceServerClient(url) as client:
        start, lag = time.perf_counter(), 0.0
        for number, arrival in enumerate(arrivals):
            due = start + arrival.second
            time.sleep(max(0.0, due - time.perf_counter()))
            lag = max(lag, time.perf_counter() - due)
            send(client, model, arrival, partial(settle, number, due))
        deadline = time.monotonic() + PATIENCE
        for _ in arrivals:
            if not left.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise LoadError(f"requests without an answer {PATIENCE:g} s after the last was sent")
        seconds = time.perf_counter() - start
    if failures:
        raise LoadError(f"{len(failures)} requests failed, the first: {failures[0]}")
    return Play([answer for answer in answers if answer is not None], seconds, lag)


def send(client: Any, model: str, arrival: Arrival, settle: Callable[[Any, Any], None]) -> None:
    seeds = np.arange(arrival.seed, arrival.seed + arrival.rows)[:, None]
    tensor = triton.InferInput("seed", seeds.shape, "INT64")
    tensor.set_data_from_numpy(seeds)
    client.async_infer(model, [tensor], settle, parameters={"steps": arrival.steps, "solver": SOLVER})


def digest(result: Any) -> str:
    """Of all that a response has, provenance and all."""
    found = hashlib.sha256()
    for output in result.get_response().outputs:
        values = result.as_numpy(output.name)
        found.update(values.tobytes() if values.dtype != object else repr(values.tolist()).encode())
    return found.hexdigest()


@contextmanager
def watching_memory(process: int) -> Iterator[list[float]]:
    """A list that grows by the resident MiB of a process, twice a second."""
    seen: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            seen.append(psutil.Process(process).memory_info().rss / 2**20)
            ended.wait(0.5)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
