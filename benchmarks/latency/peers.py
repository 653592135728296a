"""The rows without medgen: a loop in Python around a diffusers scheduler, on the networks as one has them today."""

import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from benchmarks.latency.rows import Arrays, Case, NotPossibleError, Stopwatch
from benchmarks.latency.schedulers import Scheduler, ancestral_noise, make_scheduler
from export.graphs import quiet
from serving import noise
from serving.solvers import COLUMNS, solver_table
from training.checkpoint import load_checkpoint
from training.family import Family, Network

S = COLUMNS.index("s")


class Loop:
    """Draws its noise as medgen does, so that the samples can be compared."""

    note = ""

    def __init__(self, case: Case) -> None:
        torch.set_num_threads(case.threads)
        self.case = case
        self.family, _ = load_checkpoint(case.checkpoint)
        self.table = solver_table(case.solver, self.family.preset.schedule, case.steps)
        if self.scheduler() is None:
            self.without_scheduler()
        self.networks = Stopwatch()
        prepared = self.prepared(self.family.networks())
        self.timed_networks = {name: self.networks.timing(network) for name, network in prepared.items()}

    def scheduler(self) -> Scheduler | None:
        preset = self.family.preset
        names = self.family.networks()
        return make_scheduler(self.case.solver, preset.schedule, preset.clip, self.case.steps, len(names))

    def without_scheduler(self) -> None:
        raise NotPossibleError(f"diffusers has no scheduler that does what {self.case.solver} does")

    def prepared(self, networks: dict[str, nn.Module]) -> Mapping[str, Network]:
        raise NotImplementedError

    def sample(self, seeds: list[int]) -> Arrays:
        with torch.inference_mode():
            outputs = self.outputs([self.noise(seeds, number) for number in range(len(self.table) + 1)])
        return {output.name: value.numpy() for output, value in zip(self.family.outputs, outputs, strict=True)}

    def outputs(self, noises: list[Tensor]) -> tuple[Tensor, ...]:
        scheduler = self.scheduler()
        assert scheduler is not None
        state, *later = noises
        for t, row_noise in zip(scheduler.timesteps, later, strict=True):
            with ancestral_noise(row_noise):
                state = self.family.scheduler_step(self.timed_networks, scheduler, t, state)
        return self.family.finish(state)

    def noise(self, seeds: list[int], number: int) -> Tensor:
        drawn = np.zeros((len(seeds), *self.family.sample_shape), np.float32)
        if number == noise.START or self.table[number - 1, S] != 0:
            for seed, sample in zip(seeds, drawn, strict=True):
                noise.draw(seed, self.family.name, number, out=sample)
        return torch.from_numpy(drawn)

    def processes(self) -> list[int]:
        return [os.getpid()]

    def close(self) -> None:
        pass


class Eager(Loop):
    """Where diffusers has no such scheduler, the solver's table is run in PyTorch: there must be a yardstick."""

    def without_scheduler(self) -> None:
        self.note = (
            f"diffusers has no scheduler that does what {self.case.solver} does; this is medgen's own step in PyTorch"
        )

    def prepared(self, networks: dict[str, nn.Module]) -> Mapping[str, Network]:
        return networks

    def outputs(self, noises: list[Tensor]) -> tuple[Tensor, ...]:
        if not self.note:
            return super().outputs(noises)
        return self.family.sample(noises, self.case.solver, self.case.steps)


class ChannelsLast(Loop):
    def prepared(self, networks: dict[str, nn.Module]) -> Mapping[str, Network]:
        return {name: channels_last(network) for name, network in networks.items()}


def channels_last(network: nn.Module) -> Network:
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(noisy: Tensor, t: Tensor) -> Tensor:
        out: Tensor = network(noisy.contiguous(memory_format=torch.channels_last), t)
        return out

    return run


class Compiled(Loop):
    note = "its memory includes that of compiling"

    def prepared(self, networks: dict[str, nn.Module]) -> Mapping[str, Network]:
        return {name: torch.compile(network) for name, network in networks.items()}


class OnnxRuntimeLoop(Loop):
    """The networks exported alone, at the exporter's own opset; the loop stays in Python."""

    def prepared(self, networks: dict[str, nn.Module]) -> Mapping[str, Network]:
        with TemporaryDirectory() as folder:
            # In a process of its own, so that the memory of exporting is not counted.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                pool.submit(export_networks, self.case, Path(folder)).result()
            self.family.to("meta")  # the weights are in the sessions now
            return {name: session_network(Path(folder) / f"{name}.onnx", self.case.threads) for name in networks}


def session_network(path: Path, threads: int) -> Network:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]

    def run(noisy: Tensor, t: Tensor) -> Tensor:
        (out,) = session.run(None, dict(zip(names, (noisy.numpy(), t.numpy()), strict=True)))
        return torch.from_numpy(out)

    return run


def export_networks(case: Case, folder: Path) -> None:
    family, _ = load_checkpoint(case.checkpoint)
    networks = family.networks()
    for name, inputs in example_inputs(family, networks, case).items():
        dynamic = ({0: torch.export.Dim("batch")}, None)
        with quiet():
            program = torch.onnx.export(networks[name], inputs, dynamo=True, dynamic_shapes=dynamic, verbose=False)
        assert program is not None
        program.save(folder / f"{name}.onnx")


def example_inputs(family: Family, networks: Mapping[str, Network], case: Case) -> dict[str, tuple[Tensor, Tensor]]:
    """What each network is given in one step of the loop."""
    seen = {}

    def watched(name: str) -> Network:
        def run(noisy: Tensor, t: Tensor) -> Tensor:
            seen[name] = noisy, t
            return networks[name](noisy, t)

        return run

    preset = family.preset
    scheduler = make_scheduler(case.solver, preset.schedule, preset.clip, case.steps, len(networks))
    assert scheduler is not None
    with torch.inference_mode(False), torch.no_grad():
        state = torch.randn(2, *family.sample_shape)
        family.scheduler_step({name: watched(name) for name in networks}, scheduler, scheduler.timesteps[0], state)
    return seen
