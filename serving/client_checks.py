"""What a client is asked for, checked before anything is sent or drawn."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving.bundle import Condition, Output
from serving.chain import found, wanted
from serving.condition_files import Masks
from serving.labels import Labels
from serving.picture_files import Pictures
from serving.sampling.requests import BadRequest, shown, values_problem, whole_number

OF_CHAINS = ("mask_steps", "mask_solver")


class SamplingError(RuntimeError):
    """No samples were drawn.

    status is an HTTP status whatever the protocol: 400 the request is wrong, 404 there is no such model, 500 the model
    failed, 502 no server answers, 503 the server is overloaded, 504 it took too long.
    request_id is that of the request that failed, as the server's log has it; None if none was sent.
    """

    def __init__(self, message: str, status: int, request_id: str | None = None) -> None:
        super().__init__(message)
        self.status, self.request_id = status, request_id

    def of(self, request_id: str) -> "SamplingError":
        """The same, of a request: its id is told where the server's log may have more to say."""
        told = f"{self} (request {request_id})" if self.status in (500, 503, 504) else str(self)
        return type(self)(told, self.status, request_id)


def check_model(model: Any) -> None:
    """A name that no model can have is neither sent nor looked for in a repository."""
    if not isinstance(model, str) or not model.isprintable() or not re.fullmatch(r"[^./\\][^/\\]*", model):
        raise SamplingError(f"model is {shown(model)}; it must be the name of a model", 404)


def parameter(name: str, value: Any) -> int | str:
    """A parameter as the protocols can carry it; whether the model can take it, it says itself."""
    if name.endswith("steps"):
        allowed = "from 1 to the timesteps that the model was trained with"
        steps = whole_number(name, value, allowed)
        if not -(2**63) <= steps < 2**63:
            raise BadRequest(f"{name} is {shown(steps)}; it must be {allowed}")
        return steps
    if not isinstance(value, str) or not value.isprintable():
        raise BadRequest(f"{name} is {shown(value)}; it must be the name of a solver")
    return value


Given = Masks | Pictures | Labels


def check_given(condition: Any) -> Given | None:
    """Labels, or masks or pictures, bare arrays too, if any model could take them; whether one can, it says itself."""
    if condition is None:
        return None
    if isinstance(condition, Labels) and getattr(condition.values, "dtype", None) == np.int64:
        return condition
    values = condition.values if isinstance(condition, Given) else condition
    if not isinstance(values, np.ndarray):
        kind = f"a {type(values).__name__}"
    elif values.dtype not in (np.uint8, np.float32) or values.ndim == 0:
        kind = f"{values.dtype} {list(values.shape)}"
    elif isinstance(condition, Given):
        return condition
    else:
        return (
            Masks(values.astype(np.uint8, copy=False))
            if values.dtype == np.uint8
            else Pictures(values.astype(np.float32, copy=False))
        )
    raise SamplingError(f"condition is {kind}; it must be an array of uint8 or float32 [N, C, H, W]", 400)


def check_classes(model: str, given: Given | None, condition: Condition | None) -> None:
    """Masks that say what their classes are must be what the model was trained under."""
    if not isinstance(given, Masks) or condition is None or condition.classes is None or not given.labels:
        return
    shape, highest = given.values.shape[1:], len(given.labels) - 1
    masks = found(Output("mask", "uint8", shape, 0, highest, given.labels, given.spacing), condition)
    if masks != (needed := wanted(condition)):
        raise SamplingError(f"the masks are {masks}; {model} needs {needed}", 400)


def check_condition(model: str, name: str, dtype: str, shape: Sequence[int], given: Given | None, rows: int) -> None:
    needed = f"{dtype} of shape {[rows, *shape]}"
    if given is None:
        word = "label" if dtype == "int64" else "condition"
        how = f"give it as {word}, or to the command as --{word}"
        raise SamplingError(f"{name} is missing; {model} needs it as {needed}: {how}", 400)
    if given.values.dtype != dtype:
        raise SamplingError(f"{name} is {given.values.dtype}; it must be {needed}", 400)
    if given.values.shape != (rows, *shape):
        raise SamplingError(f"{name} has shape {list(given.values.shape)}; it must be {needed}", 400)


def check_values(given: Given | None, condition: Condition) -> None:
    """Pictures must be in the model's range."""
    if given is not None and (problem := values_problem(condition, given.values)):
        raise SamplingError(problem, 400)


def check_is_alone(model: str, parameters: Mapping[str, Any]) -> None:
    for name in OF_CHAINS:
        if name in parameters:
            message = f"{name} is {parameters[name]!r}, but {model} is no chain, and has no mask stage"
            raise SamplingError(message, 400)
