"""The rows of the table one after the other, under pytest-benchmark: ``pytest benchmarks/latency``."""

from collections.abc import Iterator

import pytest

from benchmarks.latency.command import make_case
from benchmarks.latency.rows import ROWS, Case
from benchmarks.latency.workers import RowNotPossibleError, Worker
from serving.bundle import REPOSITORY, BundleError, bundle_folder, load_bundle
from training.checkpoint import CheckpointError
from training.models import family_names

ROUNDS = 10
WARM_UP = 2


@pytest.fixture(scope="module", params=family_names())
def case(request: pytest.FixtureRequest) -> Case:
    try:
        bundle = load_bundle(bundle_folder(REPOSITORY, request.param))
        return make_case(bundle, None, REPOSITORY, steps=8, batch=4, solver="ddim")
    except (BundleError, CheckpointError, ValueError) as error:
        pytest.skip(str(error))


@pytest.fixture(params=ROWS)
def worker(request: pytest.FixtureRequest, case: Case) -> Iterator[Worker]:
    try:
        with Worker(ROWS[request.param], case) as opened:
            yield opened
    except RowNotPossibleError as error:
        pytest.skip(str(error))


def test_latency(benchmark, worker: Worker, case: Case) -> None:  # type: ignore[no-untyped-def]
    last = benchmark.pedantic(worker.round, args=(list(range(case.batch)),), rounds=ROUNDS, warmup_rounds=WARM_UP)
    benchmark.extra_info["samples"] = case.batch
    benchmark.extra_info["peak_memory_mib"] = last.peak_mib
