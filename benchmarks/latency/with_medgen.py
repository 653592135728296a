"""The rows with medgen: the bundle in process, and the same bundle behind a Triton server. No torch."""

import os
import socket
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.latency.bundles import export_bundles
from benchmarks.latency.contenders import Arrays, Case, NotPossibleError, Stopwatch
from benchmarks.latency.masks import conditions
from serving.bundle import bundle_folder, load_bundle
from serving.chain import read_chain
from serving.client import SampleClient
from serving.engines import StepEngine, open_engine
from serving.engines.openvino import lacking, the_core
from serving.sampling.chain_sampler import ChainSampler
from serving.sampling.requests import parse_request
from serving.sampling.sampler import Sampler
from serving.triton.address import Address
from serving.triton.server import TritonServer


class InProcess:
    note = ""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.repository = case.repository
        self.open()

    def open(self) -> None:
        case = self.case
        self.networks: Stopwatch | None = Stopwatch()
        self.samplers = {stage.model: self.sampler(stage.model) for stage in case.stages}
        chain = read_chain(case.repository, case.model)
        self.chain = ChainSampler(chain, self.samplers) if chain else None

    def sampler(self, model: str) -> Sampler:
        bundle = load_bundle(bundle_folder(self.repository, model))
        engine = open_engine(bundle)
        if bundle.manifest.target["name"] == "openvino":
            self.note = lacking(the_core(), bundle.manifest.precision) or self.note
        if not isinstance(engine, StepEngine) or type(engine).generate is not StepEngine.generate:
            self.networks = None
        elif self.networks:
            name = "step" if bundle.manifest.schedule else "finish"
            setattr(engine, name, self.networks.timing(getattr(engine, name)))  # of this instance alone
        return Sampler(bundle, engine)

    def sample(self, seeds: list[int]) -> Arrays:
        drawn = self.draw(np.array(seeds)[:, None])
        return {output.name: drawn[output.name] for output in self.case.outputs}

    def draw(self, seeds: NDArray[np.int64]) -> Arrays:
        if self.chain:
            return self.chain.sample(seeds, self.case.parameters)
        sampler = self.samplers[self.case.model]
        condition = given(self.case, len(seeds))
        (drawn,) = sampler.sample([parse_request(sampler.bundle.manifest, seeds, self.case.parameters, condition)])
        return drawn

    def processes(self) -> list[int]:
        return [os.getpid()]

    def close(self) -> None:
        pass


class Rebuilt(InProcess):
    """The case's checkpoints in process, in bundles that are built for an engine and not kept."""

    target: str
    precision = "fp32"

    def open(self) -> None:
        self.folder = TemporaryDirectory()
        self.repository = Path(self.folder.name)
        # In a process of its own, so that the memory of exporting is not counted.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(export_bundles, self.case, self.repository, self.target, self.precision).result()
        super().open()

    def close(self) -> None:
        self.folder.cleanup()


class OnOnnxRuntime(Rebuilt):
    target = "onnx"


class OnOpenVino(Rebuilt):
    target = "openvino"

    def open(self) -> None:
        if find_spec("openvino") is None:
            raise NotPossibleError("OpenVINO is not installed: pip install 'medgen[openvino]'")
        super().open()


class OnOpenVinoInBf16(OnOpenVino):
    precision = "bf16"


class OverTriton:
    """One client over gRPC; its memory is not counted, that of the server and of the models' processes is."""

    note = "its memory is that of the server and of the models' processes together"
    networks = None

    def __init__(self, case: Case) -> None:
        self.case = case
        with ExitStack() as stack:
            address = Address("127.0.0.1", *free_ports(3))
            models = dict.fromkeys([*(stage.model for stage in case.stages), case.model])
            server = TritonServer(case.repository, models, address, show=lambda line: None, verbose=False)
            stack.enter_context(server).wait_until_ready()
            self.client = stack.enter_context(SampleClient(f"{address.host}:{address.grpc}"))
            self.open = stack.pop_all()

    def sample(self, seeds: list[int]) -> Arrays:
        condition = given(self.case, len(seeds))
        samples = self.client.sample(self.case.model, seeds=seeds, condition=condition, **self.case.parameters)
        return {output.name: samples.arrays[output.name] for output in self.case.outputs}

    def processes(self) -> list[int]:
        return [child.pid for child in psutil.Process().children(recursive=True)]

    def close(self) -> None:
        self.open.close()


def given(case: Case, count: int) -> NDArray[Any] | None:
    return None if case.condition is None else conditions(case.condition, count, case.pictures)


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
