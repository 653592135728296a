"""Samples, whoever drew them."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from serving.bundle import Output


@dataclass(frozen=True, eq=False)
class Samples:
    """N samples: row i of every array belongs to provenance[i].

    arrays: one array [N, ...] per output, by name. provenance: model, bundle digest, seed, solver and steps of each.
    outputs: what the arrays mean, in the order of the manifest.
    """

    arrays: dict[str, NDArray[Any]]
    provenance: list[dict[str, Any]]
    outputs: tuple[Output, ...]

    def __len__(self) -> int:
        return len(self.provenance)

    @property
    def seeds(self) -> list[int]:
        return [facts["seed"] for facts in self.provenance]
