"""Rows: what one sample needs to be drawn, and what is said about it afterwards."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Bundle, Condition
from serving.engines import EngineError, Float32
from serving.sampling.requests import SampleRequest
from serving.sampling.solvers import COLUMNS, solver_table


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """One sample to draw."""

    seed: int
    solver: str | None
    steps: int
    table: Float32
    condition: NDArray[Any] | None


def rows_of(bundle: Bundle, request: SampleRequest) -> list[Row]:
    """One for each seed; all have the same table."""
    schedule = bundle.manifest.schedule
    if schedule is None or request.solver is None:
        table = np.zeros((0, len(COLUMNS)), np.float32)
    else:
        table = solver_table(request.solver, schedule, request.steps).astype(np.float32)
    conditions = [None] * len(request.seeds) if request.condition is None else request.condition
    return [
        Row(int(seed), request.solver, request.steps, table, condition)
        for seed, condition in zip(request.seeds, conditions, strict=True)
    ]


def provenance(bundle: Bundle, rows: Sequence[Row]) -> NDArray[np.object_]:
    """object [N, 1]: for each row JSON as bytes; ``Sampler.sample`` says what it holds."""
    return np.array([[_facts(bundle, row)] for row in rows], object).reshape(-1, 1)


def _facts(bundle: Bundle, row: Row) -> bytes:
    facts: dict[str, Any] = {"model": bundle.manifest.model, "bundle": bundle.digest}
    facts |= {"seed": row.seed, "solver": row.solver, "steps": row.steps}
    if so_far := bundle.manifest.checkpoint.get("unfinished"):
        facts["unfinished"] = so_far
    if row.condition is not None:
        facts["condition_sha256"] = hashlib.sha256(row.condition.tobytes()).hexdigest()
        facts |= _label(bundle.manifest.condition, row.condition)
    if bundle.manifest.notices:
        facts["notices"] = bundle.manifest.notices
    return json.dumps(facts, sort_keys=True).encode()


def _label(condition: Condition | None, values: NDArray[Any]) -> dict[str, Any]:
    """A label is said as it is, and by its name."""
    if condition is None or not condition.is_label:
        return {}
    index = int(values[0])
    return {"label": index, **({"label_name": condition.labels[index]} if condition.labels else {})}


def not_finite(model: str, rows: Sequence[Row], state: Float32, outputs: Mapping[str, NDArray]) -> EngineError | None:
    """What is wrong with the rows' last state [N, C, H, W] or outputs [N, ...], if anything is."""
    for name, values in {"the last state": state, **outputs}.items():  # a finish that clamps can hide a NaN
        finite = np.isfinite(values).reshape(len(rows), -1).all(axis=1)
        if not finite.all():
            row = rows[int(np.argmin(finite))]
            asked = f"seed {row.seed}, solver {row.solver}, steps {row.steps}"
            return EngineError(f"the engine gave NaN or infinity in {name} of {model} for {asked}")
    return None
