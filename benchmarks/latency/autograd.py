"""The rows of an inversion as one writes it today: a loss, ``backward`` and an optimiser of PyTorch's."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.latency.contenders import NotPossibleError
from benchmarks.latency.pytorch_stage import LoadedStage, Tensors
from benchmarks.latency.without_medgen import Loop
from serving.sampling import noise
from training.descent import Descent
from training.family import Network


class Sgd(Loop):
    """At the rate of mGANprior's authors, whose way it is; the model's weights are frozen."""

    note = "torch.optim.SGD at 1.0 on the plain gradient: other samples by nature, so they are not compared"

    def optimiser(self, sought: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(sought, lr=1.0)

    def opened(self, stage: LoadedStage) -> tuple[LoadedStage, Mapping[str, Network]]:
        if not isinstance(stage.family, Descent):
            raise NotPossibleError(f"{stage.stage.model} goes down no loss")
        stage.family.requires_grad_(False)
        return stage, {}

    def drawn(self, stage: LoadedStage, networks: Mapping[str, Network], seeds: list[int], tensors: Tensors) -> Tensors:
        family: Any = stage.family
        condition = stage.condition(tensors)
        state = stage.noise(seeds, noise.START)
        blocks = [part.clone() for part in state.split([block.channels for block in family.blocks], dim=1)]
        timed: Callable[..., Tensor] = self.networks.timing(self.backward)
        with torch.enable_grad():
            sought = [block.requires_grad_(True) for block in blocks]
            optimiser = self.optimiser(sought)
            for _ in range(stage.stage.steps):
                optimiser.zero_grad()
                timed(family, sought, condition)
                optimiser.step()
        return stage.named(family.finish(torch.cat(sought, dim=1).detach(), condition))

    def backward(self, family: Descent, sought: list[Tensor], condition: Tensor | None) -> Tensor:
        loss = family.losses(torch.cat(sought, dim=1), condition).sum()
        loss.backward()
        return loss


class SgdInBf16(Sgd):
    """PyTorch's own way to bfloat16; its backward pass computes in what the forward pass did."""

    note = "torch.optim.SGD under autocast: other samples by nature, so they are not compared"

    def backward(self, family: Descent, sought: list[Tensor], condition: Tensor | None) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            loss = family.losses(torch.cat(sought, dim=1), condition).sum()
        loss.backward()
        return loss


class Adam(Sgd):
    note = "torch.optim.Adam at 0.03 on the plain gradient: other samples by nature, so they are not compared"

    def optimiser(self, sought: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.Adam(sought, lr=0.03)
