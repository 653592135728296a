"""What one request asks for, checked in full before any work is done."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Condition, Manifest
from serving.sampling.solvers import SOLVERS, solver_table, solvers_for

COMMON = ("steps", "solver")


class BadRequest(ValueError):  # noqa: N818  HTTP's name for it
    """A request cannot be served as asked; the message names the parameter, its value and what is allowed."""


@dataclasses.dataclass(frozen=True, eq=False)
class SampleRequest:
    """Samples wanted, one per seed. Make one with ``parse_request``, which checks it.

    seeds: int64 [N]. condition: [N, C, H, W] of the manifest's dtype, or None for a model that has none. A model that
    takes no steps has solver None and steps 0.
    """

    seeds: NDArray[np.int64]
    solver: str | None
    steps: int
    condition: NDArray[Any] | None = None


def parse_request(
    manifest: Manifest,
    seed: NDArray[Any],
    parameters: Mapping[str, Any],
    condition: NDArray[Any] | None = None,
) -> SampleRequest:
    """Check a request against what the model can do.

    Args:
        seed: int64 [N, 1], N >= 1, every value from 0 to 2**63 - 1.
        parameters: "steps" (int) and "solver" (str), both optional: the manifest has defaults. All stages of a chain
            get the same parameters. A model that can be its first, for it draws one output out of nothing or takes
            steps under a picture, takes those named after its first output, such as "mask_steps" and "mask_solver",
            over the common ones; a model under a
            condition lets pass those named after its condition, if some model could take them. A model without steps
            heeds none of them.
        condition: [N, *shape] where the manifest has a condition: class indices, uint8 of a mask and int64 of a label,
            or a picture's float32.

    Raises ``BadRequest`` for anything else.
    """
    seeds = _seeds(seed)
    solver, steps = _solver_and_steps(manifest, parameters)
    return SampleRequest(seeds, solver, steps, _condition(manifest, condition, len(seeds)))


def _seeds(seed: NDArray[Any]) -> NDArray[np.int64]:
    if seed.dtype != np.int64:
        raise BadRequest(f"seed has type {seed.dtype}; it must be int64")
    if seed.ndim != 2 or seed.shape[1] != 1:
        raise BadRequest(f"seed has shape {list(seed.shape)}; it must be [N, 1], one row per sample")
    if len(seed) == 0:
        raise BadRequest("seed has 0 rows; at least 1 is needed, one per sample")
    if (seed < 0).any():
        raise BadRequest(f"seed is {seed.min()}; it must be from 0 to {2**63 - 1}")
    return np.ascontiguousarray(seed[:, 0])


def _solver_and_steps(manifest: Manifest, parameters: Mapping[str, Any]) -> tuple[str | None, int]:
    schedule = manifest.schedule
    known = _known(manifest)
    for name, value in parameters.items():
        if schedule is None and name in (*COMMON, *_named_after(_first_of_a_chain(manifest))):
            raise BadRequest(f"{name} is {shown(value)}; {manifest.model} draws in one pass, and takes no steps")
        if name not in (*known, *_not_for_us(manifest)):
            allowed = f"allowed are {_listed(known)}" if known else f"{manifest.model} takes none"
            raise BadRequest(f"parameter {shown(name)} (value {shown(value)}) is unknown; {allowed}")
    _check_not_for_us(manifest, parameters)
    if schedule is None:
        return None, 0
    name, solver, of_solver = _given(manifest, parameters, "solver", manifest.default_solver)
    solvers = solvers_for(schedule)
    if not isinstance(solver, str) or solver not in solvers:
        raise BadRequest(f"{name} is {shown(solver)}; allowed for {manifest.model} are {', '.join(solvers)}{of_solver}")
    name, steps, of_steps = _given(manifest, parameters, "steps", manifest.default_steps)
    last = schedule.num_train_timesteps
    steps = _checked_steps(name, steps, last, f"from 1 to {last}{of_steps}")
    try:
        solver_table(solver, schedule, steps)
    except ValueError as error:
        raise BadRequest(f"{name} is {steps} with solver {solver!r}: {error}") from None
    _check_learnt(manifest, solver, steps, of_solver + of_steps)
    return solver, steps


def _check_learnt(manifest: Manifest, solver: str, steps: int, advice: str) -> None:
    """A student's steps are as long as it has learnt to take them, and its samples are worth nothing by others."""
    student = manifest.student
    if student and (solver, steps) != (student.solver, student.steps):
        raise BadRequest(
            f"{steps} steps of {solver} are asked for; {manifest.model} is a student that was distilled to take "
            f"{student.steps} of {student.solver}, and can take no others{advice}"
        )


def whole_number(name: str, value: Any, allowed: str) -> int:
    """A value of any integer type; BadRequest for all else, a bool too: name it, and say what is allowed."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise BadRequest(f"{name} is {shown(value)}, a {type(value).__name__}; it must be an integer {allowed}")
    return int(value)


def _checked_steps(name: str, value: Any, last: float, allowed: str) -> int:
    steps = whole_number(name, value, allowed)
    if not 1 <= steps <= last:
        raise BadRequest(f"{name} is {shown(steps)}; it must be {allowed}")
    return steps


def _check_not_for_us(manifest: Manifest, parameters: Mapping[str, Any]) -> None:
    """What a stage before heeds must be what some model could do, for without a chain nobody else looks at it."""
    for kind, name in zip(COMMON, _not_for_us(manifest), strict=False):
        if name not in parameters:
            continue
        value = parameters[name]
        if kind == "steps":
            _checked_steps(name, value, math.inf, "from 1 up")
        elif not isinstance(value, str) or value not in SOLVERS:
            raise BadRequest(f"{name} is {shown(value)}; allowed are {', '.join(SOLVERS)}")


def _known(manifest: Manifest) -> list[str]:
    """Parameters that the model heeds."""
    return [] if manifest.schedule is None else [*COMMON, *_named_after(_first_of_a_chain(manifest))]


def _not_for_us(manifest: Manifest) -> list[str]:
    """Parameters for the stage before, which draws the condition, in the order of COMMON."""
    condition = manifest.condition
    return [] if condition is None or condition.is_label else _named_after(condition.name)


def _first_of_a_chain(manifest: Manifest) -> str | None:
    """The name of the model's output if it can be the condition of the next stage."""
    first, *others = manifest.outputs
    if manifest.condition is None:
        return None if others else first.name
    return first.name if manifest.condition.classes is None and manifest.schedule is not None else None


def _named_after(tensor: str | None) -> list[str]:
    return [f"{tensor}_{name}" for name in COMMON] if tensor else []


def _given(manifest: Manifest, parameters: Mapping[str, Any], name: str, default: Any) -> tuple[str, Any, str]:
    """A parameter under the name by which it was given, its value, and what helps if the value does not fit."""
    output = _first_of_a_chain(manifest)
    own = f"{output}_{name}"
    if output and own in parameters:
        return own, parameters[own], ""
    advice = f"; {own} is for {manifest.model} alone" if output and name in parameters else ""
    return name, parameters.get(name, default), advice


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _condition(manifest: Manifest, condition: NDArray[Any] | None, rows: int) -> NDArray[Any] | None:
    expected = manifest.condition
    if expected is None:
        if condition is not None:
            raise BadRequest(f"a condition of shape {list(condition.shape)} was given; {manifest.model} takes none")
        return None
    if condition is None:
        raise BadRequest(f"{expected.name} is missing; {manifest.model} needs it as {wanted(expected, rows)}")
    if condition.dtype != expected.dtype:
        raise BadRequest(f"{expected.name} has type {condition.dtype}; it must be {wanted(expected, rows)}")
    if condition.shape != (rows, *expected.shape):
        raise BadRequest(f"{expected.name} has shape {list(condition.shape)}; it must be {wanted(expected, rows)}")
    if problem := values_problem(expected, condition):
        raise BadRequest(problem)
    return np.ascontiguousarray(condition)


def wanted(condition: Condition, rows: int) -> str:
    """What N rows of a condition must be, in words."""
    shape, (low, high) = [rows, *condition.shape], condition.limits
    values = "values" if condition.classes is None else "class indices"
    return f"{condition.dtype} of shape {shape}, {values} from {low:g} to {high:g}"


def values_problem(condition: Condition, values: NDArray[Any]) -> str | None:
    """What is wrong with values [N, ...] of a condition: the row and the first value that it may not hold."""
    low, high = condition.limits
    wrong = ~((values >= low) & (values <= high))  # a NaN is neither
    if not wrong.any():
        return None
    row, *_ = where = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
    if condition.classes is not None:
        return f"{condition.name} holds class {values[where]}; allowed are 0 to {high}"
    return f"{condition.name}: row {row} holds {values[where]}; allowed are values from {low:g} to {high:g}"


def shown(value: Any, width: int = 60) -> str:
    """A value for a message: its repr, shortened; Python refuses to write out an integer of thousands of digits."""
    if isinstance(value, int) and value.bit_length() > 4 * width:
        return f"an integer of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= width else f"{text[:width]}..."
