"""``medgen benchmarks load``: arrivals, the simulation and what it shows, and a run beside Triton's own batcher."""

import json
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
from click.testing import CliRunner
from live import free_ports
from tiny import write_tiny_bundle

from benchmarks.load.arrivals import MIX, Arrival, mean_row_steps, poisson
from benchmarks.load.command import load
from benchmarks.load.figures import summed_up
from benchmarks.load.open_loop import LoadError, play
from benchmarks.load.simulated import COSTS, capacity, simulated
from benchmarks.load.simulation import (
    Policy,
    in_flight,
    joining,
    shortest_remaining,
    simulate,
    simulate_static,
)
from serving.bundle import bundle_folder
from serving.sampling.scheduler import Cost, Work

CPU = Cost({1: 0.020, 2: 0.042, 4: 0.077, 8: 0.135})
GPU = COSTS["a GPU of 8 ms and 0.5 ms a row (a guess)"]


def test_arrivals_are_those_of_their_seed_rate_and_mix():
    arrivals = poisson(5.0, 3, 4000)
    assert arrivals == poisson(5.0, 3, 4000) != poisson(5.0, 4, 4000)
    assert arrivals[-1].second == pytest.approx(800, rel=0.05)
    gaps = np.diff([arrival.second for arrival in arrivals])
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)
    assert {arrival.rows for arrival in arrivals} == {1, 2, 3, 4}
    for kind in MIX:
        assert np.mean([arrival.steps == kind.steps for arrival in arrivals]) == pytest.approx(kind.share, abs=0.03)
    work = np.mean([arrival.rows * arrival.steps for arrival in arrivals])
    assert work == pytest.approx(mean_row_steps(), rel=0.05)


def test_a_static_batch_answers_all_when_its_last_is_done():
    arrivals = [Arrival(0.0, 1, 2, 0), Arrival(0.5, 2, 1, 0), Arrival(0.6, 1, 3, 0)]
    linear, padded = Cost({1: 1.0, 4: 4.0}), Cost({1: 1.0, 4: 4.0}, padded=True)
    # The first alone for 2 s; then 3 rows, and 1 row for two steps more; where that is one graph, 4 rows three times.
    assert simulate_static(arrivals, linear).latencies == pytest.approx([2.0, 6.5, 6.4])
    assert simulate_static(arrivals, padded).latencies == pytest.approx([2.0, 13.5, 13.4])


def test_the_simulation_serves_who_is_there_and_no_one_else():
    def first_come(works: list[Work], rate: float) -> list[int]:
        return [0]

    arrivals = [Arrival(1.0, 1, 2, 0), Arrival(1.5, 2, 1, 0), Arrival(9.0, 1, 1, 0)]
    outcome = simulate(arrivals, Cost({1: 1.0, 2: 2.0}), first_come)
    assert outcome.latencies == pytest.approx([2.0, 3.5, 1.0])
    assert (outcome.end, outcome.launches, outcome.row_steps) == (10.0, 4, 5)


def p95(latencies: list[float], arrivals: list[Arrival], steps: int) -> float:
    return float(np.percentile([s for s, one in zip(latencies, arrivals, strict=True) if one.steps == steps], 95))


@pytest.mark.parametrize("cost", [CPU, GPU], ids=["cpu", "gpu"])
def test_the_scheduler_beats_other_policies(cost: Cost):
    """At load 0.8, over three streams: short requests by far; long ones come hardly later than in static batches."""
    largest = max(cost.seconds)
    policies: dict[str, Callable[[], Policy]] = {
        "first come": lambda: joining(largest, lambda work: work.arrival),
        "shortest first": lambda: joining(largest, lambda work: work.rows * work.steps),
        "shortest remaining": lambda: shortest_remaining(largest),
        "ours": lambda: in_flight(cost),
    }
    short: dict[str, list[float]] = {name: [] for name in [*policies, "static"]}
    long, ends, mean = ({name: [] for name in short} for _ in range(3))
    for seed in range(3):
        arrivals = poisson(0.8 * capacity(cost) / mean_row_steps(), seed, 800)
        outcomes = {name: simulate(arrivals, cost, policy()) for name, policy in policies.items()}
        outcomes["static"] = simulate_static(arrivals, cost)
        for name, outcome in outcomes.items():
            short[name].append(p95(outcome.latencies, arrivals, 8))
            long[name].append(p95(outcome.latencies, arrivals, 50))
            ends[name].append(outcome.end)
            mean[name].append(np.mean(outcome.latencies))
    short, long, ends, mean = ({name: np.mean(of[name]) for name in of} for of in (short, long, ends, mean))
    assert short["ours"] < short["static"] / 4
    assert short["ours"] < 0.5 * min(short["first come"], short["shortest first"])
    assert short["ours"] < 1.5 * short["shortest remaining"]  # which lets long work starve
    assert mean["ours"] < 1.02 * min(mean.values())
    assert long["ours"] < 1.1 * long["static"]
    assert ends["ours"] <= 1.001 * ends["static"]


def test_a_simulated_gpu_does_half_as_much_again():
    """Throughput when more is asked for than it can do."""
    figures = {(machine, one.way): one.steps_per_second for machine, one in simulated((1.5,), seed=1)}
    for machine in COSTS:
        assert figures[machine, "in_flight"] > 1.5 * figures[machine, "static"]


def test_nobody_there_is_no_full_queue():
    with pytest.raises(LoadError, match="2 requests failed, the first"):
        play("127.0.0.1:1", "pig", [Arrival(0.0, 1, 8, 0), Arrival(0.0, 1, 8, 1)])


def test_figures_are_of_those_who_were_served():
    arrivals = [Arrival(0.0, 2, 8, 0), Arrival(1.0, 1, 8, 0), Arrival(2.0, 3, 50, 0)]
    figures = summed_up("in_flight", 0.5, arrivals, [0.5, None, 4.0], until=10.0)
    assert (figures.samples_per_second, figures.steps_per_second, figures.refused) == (0.5, 16.6, 1)
    few, many = figures.classes
    assert (few.steps, few.requests, few.refused, few.p50, few.p99) == (8, 2, 1, 0.5, 0.5)
    assert (many.steps, many.requests, many.refused, many.p95) == (50, 1, 0, 4.0)


def test_a_run_beside_tritons_own_batcher(tmp_path):
    repository, file = tmp_path / "repository", tmp_path / "load.json"
    write_tiny_bundle(bundle_folder(repository, "tiny"))
    options = ["--model=tiny", f"--repository={repository}", "--seconds=1", "--load=0.3", "--rounds=2"]
    done = CliRunner().invoke(load, [*options, f"--json={file}"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "SIMULATED, not measured" in done.output
    report = json.loads(file.read_text())
    assert [one["way"] for one in report["measured"]] == ["in_flight", "static"]
    assert report["differing_requests"] == 0
    assert report["idle_seconds"].keys() == {"in_flight", "static"}
    for one in report["measured"]:
        assert sum(kind["requests"] - kind["refused"] for kind in one["classes"]) > 0
        assert one["memory_mib"][1] > 20
    assert 0 < report["measured"][0]["network_share"] < 1
    assert {one["machine"] for one in report["simulated"]} == set(COSTS)


def test_the_server_is_scraped_where_it_is_told(tmp_path):
    repository = tmp_path / "repository"
    write_tiny_bundle(bundle_folder(repository, "tiny"))
    (port,) = free_ports(1)
    ended = threading.Event()

    def told() -> bool:
        while not ended.is_set():
            with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                if b"medgen_steps_total{" in answer.read():
                    return True
            time.sleep(0.05)
        return False

    options = ["--model=tiny", f"--repository={repository}", "--seconds=1", "--load=0.3", "--rounds=1"]
    with ThreadPoolExecutor(1) as thread:
        scraped = thread.submit(told)
        try:
            done = CliRunner().invoke(load, [*options, f"--metrics-port={port}"], catch_exceptions=False)
        finally:
            ended.set()
    assert done.exit_code == 0, done.output
    assert scraped.result()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model=nothing"], "no bundle at"),
        (["--model=cmr_ddpm"], "cmr_ddpm is a chain"),
        (["--model=pig", "--json=/nowhere/at/all.json"], "there is no folder /nowhere/at"),
    ],
)
def test_what_cannot_be_measured_is_said(tmp_path, options, said):
    if options == ["--model=nothing"]:
        options = [*options, f"--repository={tmp_path}"]
    done = CliRunner().invoke(load, options)
    assert done.exit_code != 0
    assert said in " ".join(done.output.split())
