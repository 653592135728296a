"""Whole trajectories: how long each way takes, what of it is not networks, and how far it ends from float32."""

import dataclasses
import gc
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks.gpu.contenders import WAYS, Way, Work
from benchmarks.gpu.options import YARDSTICK
from training.family import Family
from training.models.pig import PRESETS, Pig

STEPS = 20
ROUNDS, FEWEST_ROUNDS = 7, 3
LONG = 4.0  # seconds of rounds of one way, after which the fewest do
PARTS = ("step_ms_per_sample", "outside_networks", "outside_networks_spread")
LATE = "there was no time left"

# A value of the last state is off if it is further than this from float32's, in units of that state's root mean square;
# and where more than ALLOWED of a sample's values are off, a way computes something else. It is not the distance that
# decides: the paper's guide is cut at a threshold, and what falls on the other side of it in two correct ways differs
# in whole regions. Seen on an H200: distances of 1.5e-3 and 2.1e-3 in fp16, 6.2e-3 and 7.0e-3 in bf16.
OFF = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1}
ALLOWED = 0.02

Group = tuple[int, int, str]


def groups(sizes: Sequence[int], batches: Sequence[int], precisions: Sequence[str]) -> list[Group]:
    """(size, batch, precision), the most telling first."""
    return [(size, batch, precision) for precision, size, batch in product(precisions, sizes, batches)]


def measure_all(
    names: Sequence[str], groups: Sequence[Group], device: torch.device, deadline: float
) -> Iterator[list[dict[str, Any]]]:
    """Group after group, a row for each way: PIG's `paper` preset with random weights, ddim, 20 steps.

    Within a group all ways are prepared and then run in turn, and ``ratio_to_eager`` is to the yardstick of the same
    group and rounds, which is always measured. A way that could not be prepared by the deadline, going by the longest
    that it took so far, has a note instead of figures; and after the deadline there are fewer rounds.
    """
    names = [name for name in WAYS if name in names or name == YARDSTICK]
    families: dict[int, Family] = {}
    took: dict[str, float] = {}
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for size, batch, precision in track(groups, description="trajectories"):
        key = {"size": size, "batch": batch, "precision": precision, "steps": STEPS}
        if time.monotonic() > deadline:
            yield [{"name": name, **key, **unmeasured(LATE)} for name in names]
            continue
        if size not in families:
            families[size] = random_pig(size).to(device)
        generator = torch.Generator().manual_seed(0)
        start = torch.randn(batch, *families[size].sample_shape, generator=generator).to(device)
        with torch.no_grad():
            found = measure_group(Work(families[size], precision, start, STEPS, deadline=deadline), names, took)
        yield [{"name": name, **key, **found[name]} for name in names]


def random_pig(size: int) -> Family:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Pig(dataclasses.replace(PRESETS["paper"], size=size)).eval()


def measure_group(work: Work, names: Sequence[str], took: dict[str, float]) -> dict[str, dict[str, Any]]:
    """The figures of each way, by name; ``took`` has the longest that each took to be prepared so far, in seconds."""
    try:
        reference = host(WAYS[YARDSTICK](dataclasses.replace(work, precision="fp32")).run())
    except Exception as error:  # it takes the most memory, and a smaller group may yet fit
        reason = f"the float32 that it is compared with was not: {in_a_line(error)}"
        return {name: unmeasured(reason) for name in names}
    ways: dict[str, Way] = {}
    figures: dict[str, dict[str, Any]] = {}
    for name in names:
        began = time.monotonic()
        if began + took.get(name, 0) > work.deadline:
            figures[name] = unmeasured(LATE)
            continue
        try:
            gc.collect()
            torch.cuda.empty_cache()  # so that no way is given what another has freed
            before = used_memory(work.start.device)
            way = WAYS[name](work)
            result = host(way.run())
            peak = used_memory(work.start.device) - before
            figures[name] = {**differences(result, reference, work.precision), "peak_mib": peak / 2**20}
            ways[name] = way
        except Exception as error:  # a row that cannot be measured must not cost the others theirs
            figures[name] = unmeasured(in_a_line(error))
        took[name] = max(took.get(name, 0), time.monotonic() - began)

    if YARDSTICK not in ways:
        reason = figures[YARDSTICK]["note"]
        return {name: unmeasured(f"{YARDSTICK} was not: {reason}") for name in names}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in rounds(work.deadline, LONG * len(ways)):
        for name, way in ways.items():
            times[name].append(seconds(way.run, work.start.device))
    for name, way in ways.items():
        eager = [a / b for a, b in zip(times[YARDSTICK][1:], times[name][1:], strict=True)]
        figures[name] |= {
            "rounds": len(eager),
            "ms_per_sample": 1e3 * statistics.median(times[name][1:]) / len(work.start),
            "ratio_to_eager": statistics.median(eager),
            **parts(way, work),
        }
    return figures


def parts(way: Way, work: Work) -> dict[str, Any]:
    """The time of a step, and the share of the whole that is not networks; or a note why not."""
    nothing = dict.fromkeys(PARTS)
    if time.monotonic() > work.deadline:
        return {**nothing, "note": LATE}
    steps, outside = [], []
    try:
        found = way.parts()
        for _ in rounds(work.deadline, LONG):
            whole = seconds(way.run, work.start.device)
            took = {name: seconds(call, work.start.device) for name, call in found.calls.items()}
            steps.append(found.step(took))
            outside.append(1 - found.networks(took) / whole)
    except Exception as error:  # it may have to build something for it
        return {**nothing, "note": in_a_line(error)}
    return {
        "step_ms_per_sample": 1e3 * statistics.median(steps[1:]) / len(work.start),
        "outside_networks": statistics.median(outside[1:]),
        "outside_networks_spread": spread(outside[1:]),
    }


def spread(values: Sequence[float]) -> float | None:
    """Half of the interquartile range; of fewer than three nothing can be said."""
    if len(values) < 3:
        return None
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return (upper - lower) / 2


def rounds(deadline: float, most_seconds: float) -> Iterator[None]:
    """One to warm up and ROUNDS to measure; FEWEST_ROUNDS if they take long, and one once the deadline has passed."""
    began = time.monotonic()
    for done in range(1 + ROUNDS):
        now = time.monotonic()
        if done < 2 or (now < deadline and (done <= FEWEST_ROUNDS or now < began + most_seconds)):
            yield


def in_a_line(error: Exception) -> str:
    (reason, *_) = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {reason}"


def unmeasured(reason: str) -> dict[str, Any]:
    nothing = dict.fromkeys(("ms_per_sample", "ratio_to_eager", *PARTS, "peak_mib", "distance", "off"))
    return {**nothing, "wrong": False, "note": reason}


def host(state: Tensor | np.ndarray[Any, Any]) -> Tensor:
    """In float64, which is made on the host: on the device it would count as memory that the way takes."""
    return torch.as_tensor(state).cpu().double().clone()


def differences(state: Tensor, reference: Tensor, precision: str) -> dict[str, Any]:
    """Of the sample that is furthest: the relative distance, and the share of its values that are off; NaN is."""
    off, whole = (value.flatten(1) for value in (state - reference, reference))
    unit = whole.square().mean(dim=1, keepdim=True).sqrt()
    share = float((~(off.abs() <= OFF[precision] * unit)).double().mean(dim=1).max())
    distance = float((off.norm(dim=1) / whole.norm(dim=1)).max())
    return {"distance": distance, "off": share, "wrong": not share <= ALLOWED}


def used_memory(device: torch.device) -> int:
    """Bytes of the GPU that are taken. What a way has taken it keeps, so after its first run this is its peak."""
    if device.type != "cuda":
        return 0
    torch.cuda.synchronize()
    free, total = torch.cuda.mem_get_info()
    return total - free


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - began


def table(report: dict[str, Any]) -> Table:
    title = f"{report['gpu']}: PIG `paper`, ddim, {STEPS} steps"
    found = Table("", "size", "batch", "type", title=title)
    for heading in ("ms/sample", "of it a step", "vs eager", "outside networks", "peak MiB", "from fp32", "values off"):
        found.add_column(heading, justify="right")
    for row in report["trajectories"]:
        if row["ms_per_sample"] is None:
            continue
        found.add_row(
            row["name"],
            *(str(row[key]) for key in ("size", "batch", "precision")),
            f"{row['ms_per_sample']:.2f}",
            "" if row["step_ms_per_sample"] is None else f"{row['step_ms_per_sample']:.3f}",
            f"{row['ratio_to_eager']:.2f}x",
            share(row["outside_networks"], row["outside_networks_spread"]),
            f"{row['peak_mib']:.0f}",
            f"{row['distance']:.1e}",
            f"{row['off']:.2%}" + (" WRONG" if row["wrong"] else ""),
            style="red" if row["wrong"] else None,
        )
    return found


def share(value: float | None, spread: float | None) -> str:
    """In percent, or what it is below where it does not stand out of the rounds' spread."""
    if value is None or spread is None:
        return ""
    return f"{value:.1%} ± {spread:.1%}" if value > spread else f"< {spread + max(value, 0):.1%}"


def notes(report: dict[str, Any]) -> Iterator[str]:
    """A line for each reason that rows were not measured for, and how many they are."""
    reasons = Counter(
        (row["name"], row["ms_per_sample"] is None, row["note"]) for row in report["trajectories"] if row.get("note")
    )
    for (name, nothing, reason), count in reasons.items():
        yield f"{name}: {count} {'' if nothing else 'steps and networks '}not measured, as {reason}"
