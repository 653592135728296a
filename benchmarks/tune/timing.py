"""Seconds a sample of all that is compared, in one run and in turn: what the machine does beside it meets all alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.evaluation.pairs import EvaluationError
from benchmarks.latency.contenders import PAPER, ROWS, NotPossibleError, open_row
from benchmarks.latency.workload import make_case
from benchmarks.tune.candidates import Candidate, same_weights
from benchmarks.tune.drawing import Drawer
from serving.bundle import BundleError
from training import CheckpointError

ROUNDS = 3
LONG = 60.0  # seconds, after which once is enough: a paper's thousand steps in PyTorch take minutes
BATCH = 16  # samples of a round: what a bundle takes at once, if nothing else is said when it is built

Draw = Callable[[range], Any]


class Clock:
    """by_hand: what is timed beside the candidates, by its name; it is no candidate, as it draws without medgen."""

    def __init__(self, drawer: Drawer, by_hand: Mapping[str, Draw], rounds: int = ROUNDS) -> None:
        self._drawer, self._by_hand, self._rounds = drawer, by_hand, rounds

    def __call__(self, candidates: Sequence[Candidate], seeds: range) -> tuple[list[float], dict[str, float]]:
        """Of each candidate, and of what is timed beside them: the fastest of some rounds in which they take turns."""
        draws: list[Draw] = [partial(self._drawer.draw, each) for each in candidates]
        seconds = in_turn([*draws, *self._by_hand.values()], seeds[:BATCH], self._rounds)
        return seconds[: len(draws)], dict(zip(self._by_hand, seconds[len(draws) :], strict=True))


def in_turn(draws: Sequence[Draw], seeds: range, rounds: int) -> list[float]:
    """Seconds a sample; what took over ``LONG`` in the first round is in no other.

    That round opens engines, and compiles some for this batch: it counts where it was faster all the same.
    """
    best = [float("inf")] * len(draws)
    for number in range(rounds):
        for k, draw in enumerate(draws):
            if number and best[k] * len(seeds) > LONG:
                continue
            since = time.perf_counter()
            draw(seeds)
            best[k] = min(best[k], (time.perf_counter() - since) / len(seeds))
    return best


def paper_sampler(reference: Candidate, checkpoint: Path | None) -> dict[str, Draw]:
    """The paper's sampler in PyTorch as `latency` has it, on the reference's weights; nothing if they are not there."""
    held = reference.held
    with suppress(BundleError, CheckpointError, EvaluationError, NotPossibleError, ValueError):
        case = make_case(held.model, [same_weights(held, checkpoint)], held.repository, BATCH, {})
        row = open_row(ROWS[PAPER], case)
        return {PAPER: lambda seeds: row.sample(list(seeds))}
    return {}
