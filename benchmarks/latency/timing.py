"""Runs the rows in turn, round after round, and works out their figures."""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from benchmarks.latency.contenders import OTHERS, ROWS, YARDSTICK, Arrays, Case, batches, precision_of
from benchmarks.latency.processes import Round, RowError, Worker
from serving.bundle import Output

SETTLE = 0.05  # seconds between two rows: thread pools spin a while after their last work
# Rows that differ from the yardstick by more than this did not compute the same thing.
IMAGE_LIMIT = 0.5 / 255  # of an output's range: half a grey level
LABEL_LIMIT = 1e-3  # share of a mask's pixels
# In half precision a pixel of a mask that is undecided may turn, and the image around it with it: not the largest
# difference of a pixel is limited but their root mean square. Other samples are far beyond: of eight of each checkpoint
# that medgen ships, the two most alike differ by 0.087 of the range and in 3 % of the mask.
HALF_IMAGE_LIMIT = 2 / 255
HALF_LABEL_LIMIT = 1e-2


@dataclass(frozen=True)
class Figures:
    """One row; seconds are per sample. None: not known, or not measured for the reason in ``note``.

    rounds: those that count. ratio_to_eager: the yardstick's time over this row's, the median over the rounds; where
    the samples are others, the median of the one over that of the other. network_share: of the time, in the networks.
    numbers: outputs of one number, such as a PSNR, their mean over the last batch. max_difference: from the yardstick's
    outputs, as a share of their range, and rms_difference, root mean square; label_difference: share of the pixels of
    masks. precision: what the networks compute in.
    """

    name: str
    rounds: int = 0
    seconds_per_sample: float | None = None
    p95: float | None = None
    ratio_to_eager: float | None = None
    network_share: float | None = None
    peak_memory_mib: float | None = None
    max_difference: float | None = None
    rms_difference: float | None = None
    label_difference: float | None = None
    numbers: Mapping[str, float] = field(default_factory=dict)
    precision: str = "fp32"
    void: bool = False
    note: str = ""


def measure(
    case: Case,
    names: Sequence[str],
    rounds: int,
    progress: Callable[[str, float], object] = lambda doing, done: None,
) -> list[Figures]:
    """The figures of the named rows, the yardstick among them, in the given order.

    Args:
        rounds: how many batches each row draws after its warm-up, where ``batches`` does not say otherwise; every
            round runs all rows that are not done, in random order.
        progress: called with what is being done and the share of rounds that are.

    Raises:
        RowError: the yardstick cannot be measured. Any other row that cannot has a note instead of figures.
    """
    seeds = list(range(case.batch))
    failures: dict[str, str] = {}
    workers: dict[str, Worker] = {}
    measured: dict[str, list[Round]] = {name: [] for name in names}

    @contextmanager
    def excused(name: str) -> Iterator[None]:
        try:
            yield
        except RowError as error:
            if name == YARDSTICK:
                raise
            failures[name] = str(error)
            workers.pop(name, None)

    with ExitStack() as stack:
        for name in names:
            progress(f"warming up {name}", 0.0)
            with excused(name):
                workers[name] = stack.enter_context(Worker(ROWS[name], case))
                for _ in range(batches(name, rounds)[0]):
                    workers[name].round(seeds)
        order = random.Random(0)
        for number in range(rounds):
            running = [name for name in workers if number < batches(name, rounds)[1]]
            for name in order.sample(running, len(running)):
                progress(name, number / rounds)
                time.sleep(SETTLE)
                with excused(name):
                    measured[name].append(workers[name].round(seeds))
        notes = {name: worker.note for name, worker in workers.items()}

    yardstick = measured[YARDSTICK]
    return [
        Figures(name, note=failures[name])
        if name in failures
        else figures(name, case, measured[name], yardstick, notes[name])
        for name in names
    ]


def figures(name: str, case: Case, rounds: Sequence[Round], yardstick: Sequence[Round], note: str) -> Figures:
    seconds = np.array([each.seconds for each in rounds])
    networks = [each.network_seconds / each.seconds for each in rounds if each.network_seconds is not None]
    measured = Figures(
        name,
        len(rounds),
        seconds_per_sample=float(np.median(seconds)) / case.batch,
        p95=float(np.percentile(seconds, 95)) / case.batch if len(rounds) > 1 else None,
        network_share=float(np.median(networks)) if networks else None,
        peak_memory_mib=rounds[-1].peak_mib,
        numbers={
            output.name: float(np.mean(rounds[-1].outputs[output.name]))
            for output in case.outputs
            if math.prod(output.shape) == 1
        },
        precision=precision_of(name, case),
        note=note,
    )
    eager = np.array([each.seconds for each in yardstick])
    if name in OTHERS:
        return replace(measured, ratio_to_eager=float(np.median(eager) / np.median(seconds)))
    compared = [
        differences(case.outputs, one.outputs, other.outputs) for one, other in zip(rounds, yardstick, strict=True)
    ]
    largest, rms, labels = map(max, zip(*compared, strict=True))
    if measured.precision == "fp32":
        void = largest > IMAGE_LIMIT or labels > LABEL_LIMIT
    else:
        void = rms > HALF_IMAGE_LIMIT or labels > HALF_LABEL_LIMIT
    return replace(
        measured,
        ratio_to_eager=None if void else float(np.median(eager / seconds)),
        max_difference=largest,
        rms_difference=rms,
        label_difference=labels,
        void=void,
    )


def differences(outputs: Sequence[Output], one: Arrays, other: Arrays) -> tuple[float, float, float]:
    """The largest absolute difference of images as a share of their range, the root mean square of it, and the share of
    labels that differ: the worst output of each."""
    largest, rms, labels = [0.0], [0.0], [0.0]
    for output in outputs:
        a, b = one[output.name], other[output.name]
        if output.labels:
            labels.append(float((a != b).mean()))
        else:
            off = np.abs(a.astype(np.float64) - b) / (output.high - output.low)
            off = np.where(np.isfinite(off), off, np.inf)
            largest.append(float(off.max()))
            rms.append(float(np.sqrt(np.square(off).mean())))
    return max(largest), max(rms), max(labels)
