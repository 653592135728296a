"""Samples, whoever drew them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from serving.bundle import BundleError, Condition, Output


@dataclass(frozen=True, eq=False)
class Samples:
    """N samples: row i of every array belongs to provenance[i].

    arrays: one array [N, ...] per output, by name. provenance: model, bundle digest, seed, solver and steps of each,
    under a mask or a picture "condition_sha256", of its bytes, under a label also "label", its index, and "label_name",
    "notices" that the model's samples carry, and
    "unfinished" where the training was not through; of a chain model, seed and "stages", which holds the same for every
    stage. outputs: what the arrays mean, in the order of the manifest or of the stages; the masks or pictures that a
    client gave as a condition come first, and ``given`` names them: they were not drawn.
    """

    arrays: dict[str, NDArray[Any]]
    provenance: list[dict[str, Any]]
    outputs: tuple[Output, ...]
    given: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.provenance)

    @property
    def seeds(self) -> list[int]:
        return [facts["seed"] for facts in self.provenance]

    @property
    def names(self) -> list[str]:
        """Of files, each once: the seed, and where it has been before, how often it has: 000007, 000007_2, 000007_3."""
        times: Counter[int] = Counter()
        names = []
        for seed in self.seeds:
            times[seed] += 1
            names.append(f"{seed:06d}" if times[seed] == 1 else f"{seed:06d}_{times[seed]}")
        return names


def notices_of(provenance: Mapping[str, Any]) -> list[str]:
    """What a sample's model, or a chain's stages, say of it, each once."""
    stages = provenance.get("stages", [provenance])
    return list(dict.fromkeys(notice for facts in stages for notice in facts.get("notices", ())))


def bundles_of(provenance: Mapping[str, Any]) -> tuple[str | None, ...]:
    """The digests of the bundles that a sample was drawn by, of a chain's stages in order."""
    return tuple(facts.get("bundle") for facts in provenance.get("stages", [provenance]))


def under(condition: Condition, given: NDArray[Any], samples: Samples) -> Samples:
    """The samples with the masks or pictures [N, C, H, W] that they were drawn under.

    Raises BundleError if what was drawn has the name of those.
    """
    if condition.name in samples.arrays:
        raise BundleError(f"{samples.provenance[0].get('model')} draws {condition.name!r} under {condition.name!r}")
    arrays = {condition.name: given, **samples.arrays}
    return Samples(arrays, samples.provenance, (condition.as_output(), *samples.outputs), (condition.name,))


def joined(chain: str, stages: Sequence[Samples]) -> Samples:
    """What a chain drew, from what its stages drew for the same seeds."""
    seeds = stages[0].seeds
    provenance = [
        {"model": chain, "seed": seed, "stages": list(facts)}
        for seed, *facts in zip(seeds, *(stage.provenance for stage in stages), strict=True)
    ]
    arrays = {name: values for stage in stages for name, values in stage.arrays.items()}
    return Samples(arrays, provenance, tuple(output for stage in stages for output in stage.outputs))
