"""The rows of the table one after the other, under pytest-benchmark: ``pytest benchmarks/latency``."""

from collections.abc import Iterator

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.latency.contenders import ROWS, Case, batches
from benchmarks.latency.processes import RowNotPossibleError, Worker
from benchmarks.latency.workload import make_case
from export.chain import find_chains
from serving.bundle import REPOSITORY, BundleError
from training.checkpoint import CheckpointError
from training.models import family_names

ROUNDS = 10


@pytest.fixture(scope="module", params=[*family_names(), *find_chains(REPOSITORY)[0]])
def case(request: pytest.FixtureRequest) -> Case:
    try:
        return make_case(request.param, [], REPOSITORY, 4, {"steps": 8, "solver": "dpmpp_2m"})
    except (BundleError, CheckpointError, ValueError) as error:
        pytest.skip(str(error))  # of the models, those are timed that are built here


@pytest.fixture(params=ROWS)
def row(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def worker(row: str, case: Case) -> Iterator[Worker]:
    try:
        with Worker(ROWS[row], case) as opened:
            yield opened
    except RowNotPossibleError as error:
        pytest.skip(str(error))  # a row that this model or machine cannot have, as medgen-openvino without it


def test_latency(benchmark: BenchmarkFixture, worker: Worker, row: str, case: Case) -> None:
    warm_up, rounds = batches(row, ROUNDS)
    seeds = list(range(case.batch))
    last = benchmark.pedantic(worker.round, args=(seeds,), rounds=rounds, warmup_rounds=warm_up)
    benchmark.extra_info["samples"] = case.batch
    benchmark.extra_info["peak_memory_mib"] = last.peak_mib
