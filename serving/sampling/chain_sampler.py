"""From one set of seeds through all stages of a chain, in this process."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.bundle import Condition
from serving.chain import SEED, Chain, check_stages
from serving.sampling.requests import parse_request
from serving.sampling.sampler import Sampler


class ChainSampler:
    """Samples of one chain; samplers: of every stage, by its model's name.

    Raises ChainError if the stages do not fit together.
    """

    def __init__(self, chain: Chain, samplers: Mapping[str, Sampler]) -> None:
        self.chain = chain
        self._samplers = [samplers[stage.model] for stage in chain.stages]
        self.manifests = {model: sampler.bundle.manifest for model, sampler in samplers.items()}
        check_stages(chain, self.manifests)

    @property
    def condition(self) -> Condition | None:
        """What a client is to give beside the seeds, by the chain's name for it."""
        if (taken := self.chain.conditioned) is None:
            return None
        model, _ = taken
        wanted = self.manifests[model].condition
        return None if wanted is None else replace(wanted, name=str(self.chain.condition))

    def sample(
        self,
        seeds: NDArray[np.int64],
        parameters: Mapping[str, Any],
        progress: Callable[[int, int], object] | None = None,
        condition: NDArray[Any] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """The chain's outputs for seeds [N, 1], in batches that every stage can hold: as a client asks a server.

        condition: what the chain draws under, a row for each seed, where it is one that does.

        Raises:
            BadRequest: a stage cannot do what parameters ask for.
            EngineError: an engine failed, or its values are not finite.
        """
        size = min(manifest.max_batch for manifest in self.manifests.values())
        parts = []
        for first in range(0, len(seeds), size):
            rows = slice(first, first + size)
            parts.append(self._batch(seeds[rows], parameters, None if condition is None else condition[rows]))
            if progress is not None:
                progress(min(first + size, len(seeds)), len(seeds))
        return {name: np.concatenate([part[name] for part in parts]) for name in self.chain.outputs}

    def _batch(
        self, seeds: NDArray[np.int64], parameters: Mapping[str, Any], given: NDArray[Any] | None
    ) -> dict[str, NDArray[Any]]:
        tensors: dict[str, NDArray[Any]] = {SEED: seeds}
        if self.chain.condition is not None and given is not None:
            tensors[self.chain.condition] = given
        parameters = self.chain.for_stages(parameters)
        for stage, sampler in zip(self.chain.stages, self._samplers, strict=True):
            manifest = sampler.bundle.manifest
            condition = None if manifest.condition is None else tensors.get(stage.inputs[manifest.condition.name])
            (drawn,) = sampler.sample([parse_request(manifest, seeds, parameters, condition)])
            tensors |= {stage.outputs[name]: values for name, values in drawn.items() if name in stage.outputs}
        return tensors
