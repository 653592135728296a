"""The rows without medgen: a loop in Python around a diffusers scheduler, on the networks as one has them today."""

import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch._inductor.config
from torch import Tensor, nn

from benchmarks.latency.contenders import Arrays, Case, NotPossibleError, Stage, Stopwatch
from benchmarks.latency.masks import conditions
from benchmarks.latency.network_files import export_networks, session_network
from benchmarks.latency.pytorch_stage import LoadedStage, Tensors
from training.descent import Descent
from training.family import Network
from training.models import load_family


class Loop:
    """All stages, one after the other, each in a loop around a scheduler of its own."""

    note = ""

    def __init__(self, case: Case) -> None:
        torch.set_num_threads(case.threads)
        self.case = case
        self.networks = Stopwatch()
        self.stages = [self.opened(LoadedStage(stage)) for stage in case.stages]

    def opened(self, stage: LoadedStage) -> tuple[LoadedStage, Mapping[str, Network]]:
        if stage.scheduler() is None and stage.stage.solver is not None:
            raise NotPossibleError(without_scheduler(stage.stage))
        prepared = self.prepared(stage.stage, stage.networks)
        return stage, {name: self.networks.timing(network) for name, network in prepared.items()}

    def prepared(self, stage: Stage, networks: dict[str, nn.Module]) -> Mapping[str, Network]:
        raise NotImplementedError

    def sample(self, seeds: list[int]) -> Arrays:
        condition, pictures = self.case.condition, self.case.pictures
        tensors = {}
        if condition is not None:
            tensors = {condition.name: torch.from_numpy(conditions(condition, len(seeds), pictures))}
        # A gradient cannot be had of what was made in inference_mode.
        with torch.no_grad() if any(goes_down(stage) for stage, _ in self.stages) else torch.inference_mode():
            for stage, networks in self.stages:
                tensors |= self.drawn(stage, networks, seeds, tensors)
        return {output.name: tensors[output.name].numpy() for output in self.case.outputs}

    def drawn(self, stage: LoadedStage, networks: Mapping[str, Network], seeds: list[int], tensors: Tensors) -> Tensors:
        if stage.stage.solver is None:
            return stage.by_pass(networks, seeds, tensors)
        return stage.by_scheduler(networks, seeds, tensors)

    def processes(self) -> list[int]:
        return [os.getpid()]

    def close(self) -> None:
        pass


def without_scheduler(stage: Stage) -> str:
    return f"diffusers has no scheduler that does what {stage.solver} of {stage.model} does"


class Eager(Loop):
    """Where diffusers has no such scheduler, the solver's table is run in PyTorch: there must be a yardstick.

    Such a stage has no networks of its own loop.
    """

    def opened(self, stage: LoadedStage) -> tuple[LoadedStage, Mapping[str, Network]]:
        if stage.scheduler() is not None or stage.stage.solver is None:
            return super().opened(stage)
        if isinstance(stage.family, Descent):
            setattr(stage.family, "gradient", by_autograd(stage.family))  # noqa: B010 - a method of this instance alone
        reason = f"{without_scheduler(stage.stage)}; this is medgen's own step in PyTorch"
        self.note = f"{self.note}; {reason}" if self.note else reason
        timed = self.networks.timing(stage.family.network)
        setattr(stage.family, "network", timed)  # noqa: B010 - a method of this instance alone
        return stage, {}

    def prepared(self, stage: Stage, networks: dict[str, nn.Module]) -> Mapping[str, Network]:
        return networks

    def drawn(self, stage: LoadedStage, networks: Mapping[str, Network], seeds: list[int], tensors: Tensors) -> Tensors:
        return super().drawn(stage, networks, seeds, tensors) if networks else stage.by_table(seeds, tensors)


def goes_down(stage: LoadedStage) -> bool:
    return isinstance(stage.family, Descent)


def by_autograd(family: Descent) -> Network:
    """The gradient as a loop of one's own has it: ``Tensor.backward``, which is faster than torch.func.grad."""

    def gradient(state: Tensor, *given: Tensor) -> Tensor:
        with torch.enable_grad():
            sought = state.detach().requires_grad_(True)
            (found,) = torch.autograd.grad(family.losses(sought, *given).sum(), sought)
        return found

    family.requires_grad_(False)
    return gradient


class PaperSampler(Eager):
    """The solvers and steps of the models' papers, on the same weights: what the fast solvers are instead of."""

    def __init__(self, case: Case) -> None:
        stages = tuple(map(as_in_the_paper, case.stages))
        self.note = f"{', '.join(map(str, stages))}: other samples by nature, so they are not compared; one batch"
        super().__init__(replace(case, stages=stages))


def as_in_the_paper(stage: Stage) -> Stage:
    family = load_family(stage.model)
    if "paper" not in family.presets:
        raise NotPossibleError(f"{stage.model} has no preset of its paper")
    published = family.sampling_of_the_paper()
    if published is None:
        raise NotPossibleError(f"{stage.model} draws in one pass, in its paper too")
    solver, steps = published
    return replace(stage, solver=solver, steps=steps)


class ChannelsLast(Loop):
    def prepared(self, stage: Stage, networks: dict[str, nn.Module]) -> Mapping[str, Network]:
        return {name: channels_last(network) for name, network in networks.items()}


def channels_last(network: nn.Module) -> Network:
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # PyTorch's types lack it

    def run(noisy: Tensor, *others: Tensor) -> Tensor:
        out: Tensor = network(noisy.contiguous(memory_format=torch.channels_last), *others)
        return out

    return run


class Compiled(Loop):
    note = "its memory includes that of compiling"

    def prepared(self, stage: Stage, networks: dict[str, nn.Module]) -> Mapping[str, Network]:
        return {name: torch.compile(network) for name, network in networks.items()}


class Bf16(Loop):
    """PyTorch's own way to bfloat16: autocast, which chooses what stays in float32, and channels_last."""

    def prepared(self, stage: Stage, networks: dict[str, nn.Module]) -> Mapping[str, Network]:
        return {name: in_bf16(channels_last(network)) for name, network in networks.items()}


class CompiledBf16(Loop):
    """The same compiled, with the weights frozen into it: rearranged and rounded once."""

    note = "its memory includes that of compiling"

    def prepared(self, stage: Stage, networks: dict[str, nn.Module]) -> Mapping[str, Network]:
        torch._inductor.config.freezing = True
        return {name: torch.compile(in_bf16(channels_last(network))) for name, network in networks.items()}


def in_bf16(network: Network) -> Network:
    def run(*inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            out = network(*inputs)
        return out.float()

    return run


class OnnxRuntimeLoop(Loop):
    """The networks exported alone, at the exporter's own opset; the loop stays in Python."""

    def prepared(self, stage: Stage, networks: dict[str, nn.Module]) -> Mapping[str, Network]:
        with TemporaryDirectory() as folder:
            # In a process of its own, so that the memory of exporting is not counted.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                pool.submit(export_networks, stage, Path(folder)).result()
            for network in networks.values():
                network.to("meta")  # the weights are in the sessions now
            return {name: session_network(Path(folder) / f"{name}.onnx", self.case.threads) for name in networks}
