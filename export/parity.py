"""How far an engine is from PyTorch: at every step of real trajectories, at random states, and end to end."""

import statistics
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from export import Progress, silent
from serving.engines import Engine, StepEngine, Trajectory
from serving.sampling.noise import START, draw, draw_starts
from serving.sampling.solvers import COLUMNS, HISTORY, SOLVERS, solver_table, solvers_for
from training.descent import Descent
from training.family import Family

BATCH = 3  # samples that are compared; not the batch that the graphs were exported with
LONGEST = 20  # rows of a trajectory that is followed
BEFORE_KINKS = 2  # rows of a descent on which two engines are compared
ALLOWED = 0.02  # of a sample's values, where a network cuts at a threshold
TIMED = 7  # trajectories, after the first
# A row's coefficients, of which the tables of any two solvers leave some at 0; each is another, so that none can stand
# for another.
OF_EVERYTHING = {"a": 0.5, "b": 0.4, "c": 0.3, "s": 0.6, "m": 0.7, "n": 0.2, "d1": 0.25, "d2": -0.35, "d3": 0.45}

Float32 = NDArray[np.float32]
Figures = dict[str, Any]
End = tuple[Float32, Mapping[str, NDArray[Any]]]  # the last state, and the outputs by name


def measure_parity(family: Family, engine: StepEngine, progress: Progress = silent, batch: int = BATCH) -> Figures:
    """Run PyTorch and the engine side by side, fp32, on the same noise.

    Along each trajectory the engine gets PyTorch's state at every row, so the figures of a row are that row's own; end
    to end it goes by itself from the first noise to the outputs. Differences are the largest absolute ones; of a mask,
    the share of pixels that differ. Of a prediction it is the difference over the slope |m*q + n| with which it follows
    the network's output, where that is above 1: near t = T the data estimate is the output times a hundred and more,
    and so is the last bit of its rounding.

    Of a descent the gradient itself is compared too, as "gradient". Where a leaky ReLU's input is rounded to the other
    side of 0 a gradient jumps, and two that are right differ by thousandths: so its difference is that of all values of
    a sample, its length over the gradient's, and so is that of the next state, over the step's. That the graph is the
    gradient to the last digit, ``export.gradients.checked_gradient`` sees to, in float64. As two ways part there, end
    to end the engine is compared with its own steps, one by one, and its outputs with PyTorch's of the same last state.
    "loss" is by how much of PyTorch's last loss its own is above that.

    Without steps all that there is to compare is end to end.

    Where a network cuts at a threshold, two correct engines may put a value on either side of it, and what comes after
    differs by any amount. There PyTorch decides by the engine's estimate of the data, at each row; and as the cut is
    rounded too, a difference is the largest but for a share ALLOWED of each sample's values.

    Returns:
        What ``parity.json`` holds: ``batch``; ``allowed``, that share, or 0; ``random`` and ``step``, the worst of any
        row, by tensor; ``end_to_end``, the worst of any trajectory, by output, with ``state`` for the last state;
        ``trajectories`` with each row.
    """
    condition = random_condition(family, batch)
    trajectories = []
    for solver, steps in followed(family):
        progress(f"comparing {steps} steps of {solver} with PyTorch")
        trajectories.append(compare_trajectory(family, engine, solver, steps, condition, batch))
    return {
        "batch": batch,
        "allowed": allowed_share(family),
        "random": compare_random(family, engine, condition, batch) if family.preset.schedule else {},
        "step": worst([row for each in trajectories for row in each["rows"]], ("t", "row")),
        "end_to_end": worst([trajectory["end_to_end"] for trajectory in trajectories]),
        "trajectories": trajectories,
    }


def followed(family: Family) -> list[tuple[str | None, int]]:
    """The default solver, and the first that draws noise; ``compare_random`` asks for what they leave out.

    Of a descent all, as they ask for the gradient in different ways; without steps None, once.
    """
    preset = family.preset
    if preset.schedule is None:
        return [(None, 0)]
    names = solvers_for(preset.schedule)
    others = names if descends(family) else [name for name in names if SOLVERS[name].stochastic][:1]
    return [(name, min(preset.default_steps, LONGEST)) for name in dict.fromkeys([preset.default_solver, *others])]


def descends(family: Family) -> bool:
    return family.preset.schedule is not None and family.preset.schedule.process == "descent"


def table_of(family: Family, solver: str | None, steps: int) -> NDArray[np.float64]:
    """A solver's table, with no rows for a family without steps."""
    if family.preset.schedule is None:
        return np.zeros((0, len(COLUMNS)))
    return solver_table(str(solver), family.preset.schedule, steps)


def compare_trajectory(
    family: Family, engine: StepEngine, solver: str | None, steps: int, condition: NDArray[Any] | None, batch: int
) -> Figures:
    table = table_of(family, solver, steps)
    noises = [stacked_noise(family, number, batch) for number in range(len(table) + 1)]
    rows = []
    state = noises[0]
    for k, (inputs, outputs) in enumerate(torch_trajectory(family, engine, table, noises, condition)):
        state = outputs[0]
        rows.append({"row": k, "t": table[k, 0], **compare_row(family, engine, inputs, outputs, condition)})

    ends = engine.generate(whole_trajectory(table, noises, condition, np.arange(batch)))
    if descends(family):
        expected = step_by_step(engine, table, noises, condition), finished(family, ends[0], condition)
    else:
        if family.has_threshold:
            state = decided_by_the_engine(family, engine, table, noises, condition, np.arange(batch))
        expected = state, finished(family, state, condition)
    end_to_end = compare_ends(family, ends, expected)
    if isinstance(family, Descent):
        end_to_end["loss"] = loss_above(family, ends[0], state, condition)
    return {"solver": solver, "steps": steps, "end_to_end": end_to_end, "rows": rows}


def compare_row(
    family: Family,
    engine: StepEngine,
    inputs: list[Float32],
    outputs: Sequence[Float32],
    condition: NDArray[Any] | None,
) -> Figures:
    """The engine's step on what went into PyTorch's, and of a descent the gradient by itself."""
    sample, *history, noise, coeffs = inputs
    stepped = engine.step(sample, tuple(history), noise, coeffs, condition)
    figures = compare_step(family, stepped, outputs, coeffs)
    if not descends(family):
        return figures
    telling = coeffs.copy()
    telling[:, COLUMNS.index("m")], telling[:, COLUMNS.index("n")] = 0, 1
    got = engine.step(sample, tuple(history), noise, telling, condition)[1]
    gradient = run(family.network, sample, coeffs, condition)[0]
    moved = np.asarray(outputs[0]) - sample
    figures["sample_next"] = share_of_length(stepped[0] - outputs[0], moved)
    figures["gradient"] = share_of_length(got - gradient, gradient)
    return figures


def loss_above(family: Descent, got: Float32, expected: Float32, condition: NDArray[Any] | None) -> float:
    """By how much, as a share, the loss of one state is above that of the other: the worst sample's; 0 if of none."""
    reached, best = (run(family.losses, state, condition)[0].astype(np.float64) for state in (got, expected))
    share = float((reached / best - 1).max())
    return max(share, 0.0) if np.isfinite(share) else float("inf")


def finished(family: Family, state: Float32, condition: NDArray[Any] | None) -> dict[str, NDArray[Any]]:
    names = [output.name for output in family.outputs]
    return dict(zip(names, run(family.finish, state, condition), strict=True))


def compare_engines(
    family: Family, engine: Engine, reference: Engine, batches: Sequence[int], progress: Progress = silent
) -> Figures:
    """How far two engines end up from one another, by output as in ``end_to_end``: the worst of any batch size.

    A GPU's engine may have kernels of its own for each batch size, so each draws samples: the reference's, in turn.
    It is for families without a threshold, see ``compare_batches``. Descents take BEFORE_KINKS steps: their ways part
    later.
    """
    ends = []
    for solver, steps in followed(family):
        steps = min(steps, BEFORE_KINKS) if descends(family) else steps
        progress(f"drawing samples with {steps} steps of {solver} on ONNX Runtime")
        table, noises, condition = whole_work(family, solver, steps)
        state, outputs = reference.generate(whole_trajectory(table, noises, condition, np.arange(BATCH)))
        for done, batch in enumerate(batches):
            progress(f"comparing a batch of {batch} with them", done, len(batches))
            rows = np.arange(batch) % BATCH
            got = engine.generate(whole_trajectory(table, noises, condition, rows))
            expected = state[rows], {name: values[rows] for name, values in outputs.items()}
            ends.append(compare_ends(family, got, expected))
    return worst(ends)


def compare_batches(family: Family, engine: StepEngine, batches: Sequence[int], progress: Progress = silent) -> Figures:
    """How far an engine ends up from PyTorch, by output as in ``end_to_end``: the worst of any batch size.

    Where a network cuts at a threshold, another engine's samples would differ in whole regions from these, though both
    are right, and it cannot be told how to decide. PyTorch can, and decides as the engine does in each batch size.
    """
    ends = []
    for solver, steps in followed(family):
        table, noises, condition = whole_work(family, solver, steps)
        for done, batch in enumerate(batches):
            progress(f"comparing a batch of {batch} and {steps} steps of {solver} with PyTorch", done, len(batches))
            rows = np.arange(batch) % BATCH
            got = engine.generate(whole_trajectory(table, noises, condition, rows))
            state = decided_by_the_engine(family, engine, table, noises, condition, rows)
            outputs = finished(family, state, None if condition is None else condition[: len(state)])
            expected = state[rows], {name: values[rows] for name, values in outputs.items()}
            ends.append(compare_ends(family, got, expected))
    return worst(ends)


def whole_work(
    family: Family, solver: str | None, steps: int
) -> tuple[NDArray[np.float64], list[Float32], NDArray[Any] | None]:
    """A solver's table, and noises and a condition for BATCH samples."""
    table = table_of(family, solver, steps)
    noises = [stacked_noise(family, number, BATCH) for number in range(len(table) + 1)]
    return table, noises, random_condition(family, BATCH)


def seconds_a_step(family: Family, engine: Engine, batch: int) -> float:
    """How long a step of a batch takes, the middle of several trajectories, transfers and finish included.

    Without steps it is a whole batch.
    """
    table = table_of(family, *followed(family)[0])
    zeros = np.zeros((batch, *family.sample_shape), np.float32)
    condition = random_condition(family, batch)
    trajectory = whole_trajectory(table, [zeros] * (len(table) + 1), condition, np.arange(batch))
    times = []
    for _ in range(1 + TIMED):
        began = time.perf_counter()
        engine.generate(trajectory)
        times.append((time.perf_counter() - began) / max(1, len(table)))
    return statistics.median(times[1:])  # the first may take memory


def whole_trajectory(
    table: NDArray[np.float64], noises: list[Float32], condition: NDArray[Any] | None, rows: NDArray[np.intp]
) -> Trajectory:
    """All steps of a solver's table for these rows of the noises' batch."""
    return Trajectory(
        start=noises[0][rows],
        lengths=np.full(len(rows), len(table)),
        coeffs=np.repeat(table[:, None].astype(np.float32), len(rows), axis=1),
        noise=lambda row: noises[row + 1][rows],
        condition=None if condition is None else condition[rows],
    )


def compare_ends(family: Family, got: End, expected: End) -> Figures:
    """The difference of last states, as "state", and of each output; of a number it is a share of its range."""
    largest = partial(largest_difference, allowed=allowed_share(family))
    figures = {"state": largest(got[0], expected[0])}
    for output in family.outputs:
        difference = share_different if output.labels else largest
        figures[output.name] = difference(got[1][output.name], expected[1][output.name])
        if not output.labels and len(output.shape) == 1:  # a number of any unit, not grey levels
            figures[output.name] /= output.high - output.low
    return figures


def torch_trajectory(
    family: Family,
    engine: StepEngine,
    table: NDArray[np.float64],
    noises: list[Float32],
    condition: NDArray[Any] | None,
) -> Iterator[tuple[list[Float32], list[Float32]]]:
    """For each row of the table: what goes into the step, and what PyTorch makes of it."""
    for_row = trajectory_inputs(table, noises)
    inputs = next(for_row)
    while inputs:
        outputs = step_in_torch(family, inputs, condition, engine_estimate(family, engine, inputs, condition))
        yield inputs, outputs
        inputs = for_row.send(outputs)


def trajectory_inputs(
    table: NDArray[np.float64], noises: list[Float32]
) -> Generator[list[Float32], Sequence[Float32], None]:
    """What goes into the step at each row, given what came out of the row before; an empty list at the end."""
    sample = noises[0]
    history = [np.zeros_like(sample)] * HISTORY
    for row, noise in zip(table, noises[1:], strict=True):
        coeffs = np.repeat(row[None].astype(np.float32), len(sample), axis=0)
        sample, prediction = yield [sample, *history, noise, coeffs]
        history = [prediction, *history[:-1]]
    yield []


def step_by_step(
    engine: StepEngine, table: NDArray[np.float64], noises: list[Float32], condition: NDArray[Any] | None
) -> Float32:
    """The last state, if the engine takes each row's step for itself."""
    for_row = trajectory_inputs(table, noises)
    inputs = next(for_row)
    while inputs:
        sample, *history, noise, coeffs = inputs
        outputs = engine.step(sample, tuple(history), noise, coeffs, condition)
        inputs = for_row.send(outputs)
    return outputs[0]


def decided_by_the_engine(
    family: Family,
    engine: StepEngine,
    table: NDArray[np.float64],
    noises: list[Float32],
    condition: NDArray[Any] | None,
    rows: NDArray[np.intp],
) -> Float32:
    """PyTorch's last state, if it decides at each row as the engine does on its own way.

    The engine's batch is these rows of the noises' batch, 0, 1, ... and again from 0 on; each is in PyTorch's once.
    """
    once = rows[: rows.max() + 1]
    ways = [trajectory_inputs(table, [noise[which] for noise in noises]) for which in (once, rows)]
    few, many = (None if condition is None else condition[which] for which in (once, rows))
    here, there = (next(way) for way in ways)
    while here:
        estimate = engine_estimate(family, engine, there, many)
        outputs = step_in_torch(family, here, few, None if estimate is None else estimate[: len(once)])
        sample, *history, noise, coeffs = there
        there = ways[1].send(engine.step(sample, tuple(history), noise, coeffs, many))
        here = ways[0].send(outputs)
    return outputs[0]


def engine_estimate(
    family: Family, engine: StepEngine, inputs: list[Float32], condition: NDArray[Any] | None
) -> Float32 | None:
    """The engine's estimate of the data within a step: what it predicts if the row asks for that."""
    if not family.has_threshold:
        return None
    sample, *history, noise, coeffs = inputs
    coeffs = coeffs.copy()
    coeffs[:, COLUMNS.index("m")], coeffs[:, COLUMNS.index("n")] = 1, 0
    return engine.step(sample, tuple(history), noise, coeffs, condition)[1]


def step_in_torch(
    family: Family, inputs: list[Float32], condition: NDArray[Any] | None, estimate: Float32 | None
) -> list[Float32]:
    if estimate is None:
        return run(family.step, *inputs, condition)
    with family.deciding_by(torch.from_numpy(estimate)):
        return run(family.step, *inputs, condition)


def compare_random(family: Family, engine: StepEngine, condition: NDArray[Any] | None, batch: int) -> Figures:
    """Steps on standard normal states and history, each sample of the batch at a row of its own.

    One by the default solver's rows, and one that takes something of everything, as other solvers do: a request may
    name any. Of a descent all solvers are followed.
    """
    table = table_of(family, family.preset.default_solver, family.preset.default_steps)
    sample, *history, noise = (stacked_noise(family, number, batch) for number in range(HISTORY + 2))
    rows = np.linspace(0, len(table) - 1, batch).astype(int)
    asked = [table[rows]]
    if not descends(family):
        later = table[(len(table) - 1 + rows) // 2]  # early the estimate of the data is a multiple of all rounding
        later[:, [COLUMNS.index(name) for name in OF_EVERYTHING]] = [*OF_EVERYTHING.values()]
        asked.append(later)
    figures = []
    for coeffs in asked:
        inputs = [sample, *history, noise, coeffs.astype(np.float32)]
        outputs = step_in_torch(family, inputs, condition, engine_estimate(family, engine, inputs, condition))
        figures.append(compare_row(family, engine, inputs, outputs, condition))
    return worst(figures)


def compare_step(family: Family, got: Sequence[Float32], expected: Sequence[Float32], coeffs: Float32) -> Figures:
    allowed = allowed_share(family)
    q, m, n = (coeffs[:, COLUMNS.index(name)] for name in "qmn")
    slope = np.maximum(1, np.abs(m * q + n)).reshape(-1, 1, 1, 1)
    return {
        "sample_next": largest_difference(got[0], expected[0], allowed),
        "prediction": largest_difference(got[1] / slope, expected[1] / slope, allowed),
    }


def run(function: Callable[..., Tensor | tuple[Tensor, ...]], *arrays: NDArray[Any] | None) -> list[NDArray[Any]]:
    """A method of the family on arrays; a condition that is None is left out."""
    with torch.no_grad():  # not inference_mode: a network may be the gradient of a loss
        found = function(*(torch.from_numpy(a) for a in arrays if a is not None))
    return [out.numpy() for out in ((found,) if isinstance(found, Tensor) else found)]


def stacked_noise(family: Family, number: int, batch: int) -> Float32:
    if number == START:
        return draw_starts(range(batch), family.name, family.sample_shape, family.noise_channels)
    noise = np.empty((batch, *family.sample_shape), np.float32)
    for seed, sample in enumerate(noise):
        draw(seed, family.name, number, out=sample)
    return noise


def random_condition(family: Family, batch: int) -> NDArray[Any] | None:
    """Blocks of every class, or of grey levels from all over the range; of labels, one after the other."""
    if (wanted := family.condition) is None:
        return None
    if wanted.is_label:
        return np.arange(batch, dtype=np.int64)[:, None] % (wanted.classes or 1)
    channels, height, width = wanted.shape
    coarse = np.random.default_rng(0).integers(
        wanted.classes or 256, size=(batch, channels, -(-height // 8), -(-width // 8)), dtype=np.uint8
    )
    blocks = np.ascontiguousarray(np.kron(coarse, np.ones((8, 8), np.uint8))[..., :height, :width])
    if wanted.classes:
        return blocks
    low, high = wanted.limits
    return (low + (high - low) * blocks.astype(np.float32) / 255).astype(np.float32)


def allowed_share(family: Family) -> float:
    return ALLOWED if family.has_threshold else 0.0


def largest_difference(a: NDArray[Any], b: NDArray[Any], allowed: float = 0.0) -> float:
    """The largest absolute difference but for a share of each sample's values; infinite where any is not finite."""
    difference = np.abs(a.astype(np.float64) - b.astype(np.float64)).reshape(len(a), -1)
    if not np.isfinite(difference).all():
        return float("inf")
    last = difference.shape[1] - 1 - int(allowed * difference.shape[1])
    return float(np.partition(difference, last, axis=1)[:, last].max())


def share_of_length(difference: Float32, of: Float32) -> float:
    """The worst sample's length of a difference, over that of what differs; infinite where any is not finite."""
    lengths = [np.sqrt(np.square(a, dtype=np.float64).reshape(len(a), -1).sum(axis=1)) for a in (difference, of)]
    share = float((lengths[0] / lengths[1]).max())
    return share if np.isfinite(share) else float("inf")


def share_different(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float((a != b).mean())


def worst(figures: list[Figures], without: tuple[str, ...] = ()) -> Figures:
    """The largest of each figure, of those that have it."""
    names = dict.fromkeys(name for figure in figures for name in figure if name not in without)
    return {name: max(figure[name] for figure in figures if name in figure) for name in names}
