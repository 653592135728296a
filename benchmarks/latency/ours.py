"""The rows with medgen: the bundle in process, and the same bundle behind a Triton server. No torch."""

import os
import socket
from contextlib import ExitStack

import numpy as np
import psutil

from benchmarks.latency.rows import Arrays, Case, Stopwatch
from serving.bundle import bundle_folder, load_bundle
from serving.client import SampleClient
from serving.engines import StepEngine, open_engine
from serving.requests import parse_request
from serving.sampler import Sampler
from serving.server import Address, TritonServer


class InProcess:
    note = ""

    def __init__(self, case: Case) -> None:
        bundle = load_bundle(bundle_folder(case.repository, case.model))
        engine = open_engine(bundle)
        self.networks: Stopwatch | None = None
        if isinstance(engine, StepEngine) and type(engine).generate is StepEngine.generate:
            self.networks = Stopwatch()
            setattr(engine, "step", self.networks.timing(engine.step))  # noqa: B010 - a method of this instance alone
        self.sampler = Sampler(bundle, engine)
        self.parameters = {"solver": case.solver, "steps": case.steps}

    def sample(self, seeds: list[int]) -> Arrays:
        request = parse_request(self.sampler.bundle.manifest, np.array(seeds)[:, None], self.parameters)
        (samples,) = self.sampler.sample([request])
        return {name: values for name, values in samples.items() if name != "provenance"}

    def processes(self) -> list[int]:
        return [os.getpid()]

    def close(self) -> None:
        pass


class OverTriton:
    """One client over gRPC; its memory is not counted, that of the server and of the model's process is."""

    note = "its memory is that of the server and of the model's process together"
    networks = None

    def __init__(self, case: Case) -> None:
        self.case = case
        with ExitStack() as stack:
            address = Address("127.0.0.1", *free_ports(3))
            server = TritonServer(case.repository, [case.model], address, show=lambda line: None, verbose=False)
            stack.enter_context(server).wait_until_ready()
            self.client = stack.enter_context(SampleClient(f"{address.host}:{address.grpc}"))
            self.open = stack.pop_all()

    def sample(self, seeds: list[int]) -> Arrays:
        samples = self.client.sample(self.case.model, seeds=seeds, steps=self.case.steps, solver=self.case.solver)
        return samples.arrays

    def processes(self) -> list[int]:
        return [child.pid for child in psutil.Process().children(recursive=True)]

    def close(self) -> None:
        self.open.close()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
