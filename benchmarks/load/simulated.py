"""Machines that are not here: what their scheduler would do, by what a step costs on them. No network runs."""

from collections.abc import Iterator

from benchmarks.load.arrivals import mean_row_steps, poisson
from benchmarks.load.figures import Figures, summed_up
from benchmarks.load.simulation import in_flight, simulate, simulate_static
from serving.sampling.scheduler import Cost

REQUESTS = 2000
COSTS = {
    # Images per second of one step by batch, as SGLang's authors quote for a much larger network (pull request 22183).
    "H200, Qwen-Image at 512 px": Cost(
        {rows: rows / rate for rows, rate in {1: 6.0, 2: 10.9, 4: 16.6, 8: 18.8, 16: 19.2}.items()}, padded=True
    ),
    "a GPU of 8 ms and 0.5 ms a row (a guess)": Cost({rows: 0.008 + 0.0005 * rows for rows in (1, 2, 4, 8, 16)}, True),
}


def capacity(cost: Cost) -> float:
    """Row-steps per second in the best of all batches."""
    return max(rows / seconds for rows, seconds in cost.seconds.items())


def simulated(loads: tuple[float, ...], seed: int) -> Iterator[tuple[str, Figures]]:
    """(machine, figures), both ways for every load."""
    for machine, cost in COSTS.items():
        for load in loads:
            arrivals = poisson(load * capacity(cost) / mean_row_steps(), seed, REQUESTS)
            for way, outcome in {
                "in_flight": simulate(arrivals, cost, in_flight(cost)),
                "static": simulate_static(arrivals, cost),
            }.items():
                yield machine, summed_up(way, load, arrivals, outcome.latencies, outcome.end)
