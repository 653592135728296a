"""Rows of a benchmark that cost nothing, for the processes that run them."""

import os
import time
from pathlib import Path

import numpy as np

from benchmarks.latency.contenders import Case, NotPossibleError, Stopwatch
from serving.bundle import Output

OUTPUTS = (
    Output("mask", "uint8", (1, 32, 32), low=0, high=1, labels=("background", "lesion")),
    Output("image", "float32", (1, 32, 32), low=-1.0, high=1.0),
)
CASE = Case("tiny", (), None, {}, OUTPUTS, Path(), batch=4, threads=1)
NETWORK_SECONDS = 0.02
BALLAST_MIB = 64


class Plain:
    note = "as plain as can be"

    def __init__(self, case: Case) -> None:
        self.networks = Stopwatch()
        self.network = self.networks.timing(time.sleep)

    def sample(self, seeds):
        self.network(NETWORK_SECONDS)
        return {"image": np.array(seeds, np.float32)}

    def processes(self):
        return [os.getpid()]

    def close(self):
        pass


class Large(Plain):
    """Holds memory for a moment: what counts is the peak."""

    def sample(self, seeds):
        np.ones(BALLAST_MIB << 20, np.uint8)
        return super().sample(seeds)


class Impossible(Plain):
    def __init__(self, case):
        raise NotPossibleError("nobody can")


class Broken(Plain):
    def sample(self, seeds):
        raise ValueError("out of seeds\nand a second line")


class Dying(Plain):
    def sample(self, seeds):
        os._exit(9)
