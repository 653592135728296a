"""Requests of Triton in flight: each joins the loop of its model, and is answered when its last row is done.

Triton's own queue is always empty then. So bounds, priorities and time-outs are kept here, and so are the figures that
Triton cannot have: its durations end when a request has joined.
"""

import os
import re
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import triton_python_backend_utils as pb

from serving.bundle import Bundle
from serving.engines import StepEngine
from serving.engines.device import DeadGpuError
from serving.sampling.loop import MOST_WAITING, Answer, ClientGone, Loop, NotServed
from serving.sampling.requests import BadRequest, SampleRequest
from serving.sampling.scheduler import DEFAULT, FIRST, LAST
from serving.sampling.step_cost import measure_cost
from serving.triton.disk_watch import DiskWatch
from serving.triton.errors import DROPPED
from serving.triton.metrics import Durations, Metrics, State, Teller

PRIORITY = "priority_level"  # Triton keeps its own "priority" to itself
QUEUE = "max_queue_size"
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # a request's id, as a label of metrics
ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")  # as the log has it
SHARED_MEMORY = "/dev/shm"
SPARE_BYTES = 8 * 2**20
PUBLISH_SECONDS = 1.0
WATCH_SECONDS = 0.5


class InFlight:
    """The loop of one instance of a model.

    args: as Triton gives them to ``initialize``. respond: makes the response of a request's samples.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: StepEngine,
        args: Mapping[str, str],
        most_waiting: int,
        respond: Callable[..., Any],
    ) -> None:
        self._respond, self._model = respond, bundle.manifest.model
        cost = measure_cost(engine, bundle.manifest)
        measured = ", ".join(f"{size}: {1000 * seconds:.3g}" for size, seconds in cost.seconds.items())
        pb.Logger.log_info(f"{self._model}: milliseconds of a step by rows in it: {measured}")
        labels = {
            "model": args["model_name"],
            "version": args["model_version"],
            "instance": args["model_instance_name"],
            "process": str(os.getpid()),  # one that is being unloaded still has its own, beside the one that follows
        }
        self._teller, self._durations = Teller(Metrics(labels, DiskWatch(bundle))), Durations()
        self._published, self._was_busy, self._is_dead = 0.0, False, False
        self._loop = Loop(bundle, engine, cost, most_waiting, self._publish)
        self._loop.start()
        threading.Thread(target=self._watch_server, args=(os.getppid(),), daemon=True).start()

    def submit(self, sender: Any, request: SampleRequest, priority: int, timeout: float | None, name: str = "") -> None:
        """The sender is used once, sooner or later. name: the request's id, by which the log tells what it failed by,
        and the metrics its steps, if it is one for that.
        """
        began = time.monotonic()

        def answer(samples: Answer) -> None:
            arrays = samples.values() if isinstance(samples, dict) else ()
            send(sender, self._response(samples, name), sum(array.nbytes for array in arrays))
            if isinstance(samples, dict):
                self._durations.add(time.monotonic() - began)

        told = name if NAME.fullmatch(name) else ""
        try:
            is_gone = sender.is_cancelled
            self._loop.submit(request, answer, priority=priority, timeout=timeout, is_gone=is_gone, name=told)
        except NotServed as refusal:
            answer(refusal)

    def stop(self) -> None:
        """Returns when all requests are answered."""
        self._loop.stop()
        self._teller.stop(PUBLISH_SECONDS)

    def _response(self, samples: Answer, name: str) -> Any:
        if isinstance(samples, dict):
            try:
                return self._respond(samples)
            except Exception as error:
                return broken(error, name)
        if isinstance(samples, ClientGone):
            return failure(str(samples), pb.TritonError.CANCELLED)
        if isinstance(samples, NotServed):
            return failure(str(samples), pb.TritonError.UNAVAILABLE)
        if isinstance(samples, DeadGpuError):
            self._is_dead = True  # once all are answered
        return broken(samples, name)

    def _publish(self, loop: Loop) -> None:
        """Now and then, and whenever work begins or is done: a process that is killed then has told what it had."""
        now, is_busy = time.monotonic(), bool(loop.rows_in_flight or loop.rows_waiting)
        if now - self._published >= PUBLISH_SECONDS or is_busy != self._was_busy:
            self._published, self._was_busy = now, is_busy
            self._teller.tell(State.of(loop, now, self._durations.counted))
        if self._is_dead:
            self._teller.wait(PUBLISH_SECONDS)
            os._exit(1)  # no request can succeed here any more; a new process can

    def _watch_server(self, server: int) -> None:
        """If it ends first, all that is left to do is to say so: to ask it anything would take for ever."""
        while os.getppid() == server:
            time.sleep(WATCH_SECONDS)
        if lost := self._loop.rows_in_flight + self._loop.rows_waiting:
            print(f"{DROPPED} {lost} samples of {self._model} that were in flight or waiting", flush=True)


def send(sender: Any, response: Any, nbytes: int) -> None:
    """Answer a request, with so many bytes or hardly any.

    They go by shared memory. A sender that found no room there sends nothing more than an end, and only if it has not
    been told to send that too; then Triton answers with a 500. Without one nobody would ever be answered.
    """
    shared = os.statvfs(SHARED_MEMORY)
    if shared.f_bavail * shared.f_frsize > 2 * nbytes + SPARE_BYTES:
        sender.send(response, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return
    try:
        sender.send(response, flags=0)
    finally:
        sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def failure(message: str, code: Any) -> Any:
    return pb.InferenceResponse(error=pb.TritonError(message, code))


def broken(error: Exception, name: str = "") -> Any:
    """For what should not have happened; the log has all of it, with the request's id if that can be written there."""
    about = f"[request id: {name}] " if ID.fullmatch(name) else ""
    pb.Logger.log_error(about + "".join(traceback.format_exception(error)))
    return failure(f"{type(error).__name__}: {error}", pb.TritonError.INTERNAL)


def priority_of(parameters: dict[str, Any]) -> int:
    """Takes it out of a request's parameters; raises BadRequest."""
    level = parameters.pop(PRIORITY, DEFAULT)
    if type(level) is not int or not FIRST <= level <= LAST:
        raise BadRequest(f"{PRIORITY} is {level!r}; it must be an integer from {FIRST}, served first, to {LAST}")
    return level


def queue_size(parameters: Mapping[str, Mapping[str, str]]) -> int:
    """How many requests may wait, from the parameters of config.pbtxt; raises ValueError."""
    text = parameters.get(QUEUE, {}).get("string_value", str(MOST_WAITING))
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"config.pbtxt: parameter {QUEUE} is {text!r}; it must be an integer from 1 up")
    return int(text)
