"""Draws many samples, a part at a time: into a set that many processes fill, or into one folder."""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from serving.client import Client
from serving.client_checks import Given
from serving.drawn_set import DrawnSet
from serving.sample_set import Samples

Progress = Callable[[int, int], object]


def in_parts(
    client: Client,
    model: str,
    seeds: range,
    part: int,
    given: Given | None,
    asked: Mapping[str, Any],
    progress: Progress,
) -> Iterator[Samples]:
    """Samples of the seeds, `part` at a time; row i of what is given is for the i-th seed."""
    for first in range(0, len(seeds), part):
        rows = range(first, min(first + part, len(seeds)))

        def tell(done: int, _: int, first: int = first) -> None:
            progress(first + done, len(seeds))

        yield _drawn(client, model, seeds, rows, given, asked, tell)


def fill(
    client: Client,
    drawn_set: DrawnSet,
    parts: range,
    given: Given | None,
    progress: Progress,
    notes: Sequence[str] = (),
) -> tuple[int, int]:
    """Draws those of the parts that are not there; how many samples were drawn, and how many were there.

    A set that is new is begun with one sample, which says what draws and what is drawn; notes are kept with that.
    Raises SetError, LayoutError, SamplingError and OSError; what was put in its place stays.
    """
    plan = drawn_set.plan
    if not drawn_set.open():
        drawn_set.begin(_drawn(client, plan.model, plan.seeds_of_all, range(1), given, plan.asked, None), notes)
    drawn_set.describe()
    missing = [part for part in parts if not drawn_set.has(part)]
    there = sum(len(plan.seeds(part)) for part in parts) - (wanted := sum(len(plan.seeds(part)) for part in missing))
    drawn = 0
    for part in missing:
        seeds, before = plan.seeds(part), drawn
        rows = range(seeds[0] - plan.seed, seeds[-1] - plan.seed + 1)

        def tell(done: int, _: int, before: int = before) -> None:
            progress(before + done, wanted)

        drawn_set.add(part, _drawn(client, plan.model, plan.seeds_of_all, rows, given, plan.asked, tell))
        drawn += len(seeds)
    return drawn, there


def digest_of(given: Given) -> str:
    """The sha256 of masks or pictures and of what is known of them."""
    known = [getattr(given, field.name) for field in dataclasses.fields(given) if field.name != "values"]
    digest = hashlib.sha256(repr((given.values.dtype.name, given.values.shape, *known)).encode())
    digest.update(given.values.tobytes())
    return digest.hexdigest()


def _drawn(
    client: Client,
    model: str,
    seeds: range,
    rows: range,
    given: Given | None,
    asked: Mapping[str, Any],
    progress: Progress | None,
) -> Samples:
    part = None if given is None else given.rows(rows.start, rows.stop)
    return client.sample(model, seeds=seeds[rows.start : rows.stop], condition=part, progress=progress, **asked)
