"""A stage of a case in PyTorch: its weights, its noise, and the scheduler of its loop."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.latency.contenders import Stage
from benchmarks.latency.diffusers_schedulers import Scheduler, ancestral_noise, make_scheduler
from export.graphs import Finish
from serving.sampling import noise
from serving.sampling.solvers import COLUMNS, SOLVERS, solver_table
from training.checkpoint import load_built
from training.family import Network

S = COLUMNS.index("s")
FINISH = "finish"
Tensors = dict[str, Tensor]


class LoadedStage:
    """Draws its noise as medgen does, so that the samples can be compared."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.family, _ = load_built(stage.manifest, stage.checkpoint)
        schedule = self.family.preset.schedule
        self.table = np.zeros((0, len(COLUMNS)))
        if schedule is not None:
            self.table = solver_table(str(stage.solver), schedule, stage.steps)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """What a loop calls; of a model without steps all that there is, once."""
        return self.family.networks() if self.family.preset.schedule else {FINISH: Finish(self.family)}

    def scheduler(self) -> Scheduler | None:
        preset, networks = self.family.preset, self.networks
        if preset.schedule is None or self.stage.solver is None:
            return None
        return make_scheduler(self.stage.solver, preset.schedule, preset.clip, self.stage.steps, len(networks))

    def condition(self, tensors: Tensors) -> Tensor | None:
        expected = self.family.condition
        return None if expected is None else tensors[self.stage.inputs[expected.name]]

    def by_scheduler(self, networks: Mapping[str, Network], seeds: list[int], tensors: Tensors) -> Tensors:
        """What a loop around the scheduler draws from what earlier stages drew."""
        scheduler, condition = self.scheduler(), self.condition(tensors)
        assert scheduler is not None
        state = self.noise(seeds, noise.START)
        for number, t in zip(range(1, len(self.table) + 1), scheduler.timesteps, strict=True):
            with ancestral_noise(self.noise(seeds, number)):
                state = self.family.scheduler_step(networks, scheduler, t, state, condition)
        return self.named(self.family.finish(state, condition))

    def by_pass(self, networks: Mapping[str, Network], seeds: list[int], tensors: Tensors) -> Tensors:
        """What one pass draws."""
        condition = self.condition(tensors)
        drawn = networks[FINISH](self.noise(seeds, noise.START), *(() if condition is None else (condition,)))
        return self.named([drawn] if isinstance(drawn, Tensor) else drawn)

    def by_table(self, seeds: list[int], tensors: Tensors) -> Tensors:
        """What medgen's own step draws."""
        draws = len(self.table) + 1 if SOLVERS[str(self.stage.solver)].stochastic else 1
        noises = [self.noise(seeds, number) for number in range(draws)]
        return self.named(self.family.sample(noises, self.stage.solver, self.stage.steps, self.condition(tensors)))

    def noise(self, seeds: list[int], number: int) -> Tensor:
        family = self.family
        if number == noise.START:
            return torch.from_numpy(noise.draw_starts(seeds, family.name, family.sample_shape, family.noise_channels))
        drawn = np.zeros((len(seeds), *family.sample_shape), np.float32)
        if self.table[number - 1, S] != 0:
            for seed, sample in zip(seeds, drawn, strict=True):
                noise.draw(seed, family.name, number, out=sample)
        return torch.from_numpy(drawn)

    def named(self, outputs: Sequence[Tensor]) -> Tensors:
        names = self.stage.outputs
        return {
            names[output.name]: value
            for output, value in zip(self.family.outputs, outputs, strict=True)
            if output.name in names
        }
