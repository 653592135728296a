"""What the files of a trained generator say, whichever library wrote them."""

import dataclasses
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from serving.sampling.solvers import Schedule
from training import CheckpointError

Weights = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """The noise, and how the authors sample. solver: None if that is by none of medgen's."""

    schedule: Schedule
    clip: float | None
    solver: str | None
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Network:
    """described: {"library", "class", "config"}, as ``training.models.imported`` makes it; weights: by its names."""

    described: Mapping[str, Any]
    weights: Weights

    @property
    def config(self) -> Mapping[str, Any]:
        config: Mapping[str, Any] = self.described["config"]
        return config


@dataclasses.dataclass(frozen=True)
class Found:
    """size: rows and columns of the states; scale: of latents; None where the files do not say."""

    format: str
    denoiser: Network
    autoencoder: Network | None
    sampling: Sampling
    size: tuple[int, int] | None
    scale: float | None
    shift: float
    sha256: Mapping[str, str]


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object; raises CheckpointError."""
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}; it must be an object")
    return content


def refuse_unknown(made_with: Mapping[str, Any], kind: type, where: str) -> None:
    """A setting that this version of the library would leave out is not left out."""
    known = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    if unknown := made_with.keys() - known.keys():
        raise CheckpointError(f"{where} has {min(unknown)!r}, which {kind.__name__} of this version does not know")


def checked(weights: Weights, wanted: Weights, where: str) -> dict[str, Tensor]:
    """The weights, float32, if they are those of the network, no more and no less."""
    if odd := weights.keys() ^ wanted.keys():
        first = min(odd)
        lacks = "holds" if first in weights else "lacks"
        raise CheckpointError(f"{where} and the network of its config differ in {len(odd)} weights: it {lacks} {first}")
    for name, tensor in weights.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"{where}: {name} is {list(tensor.shape)}; the network of its config has {list(wanted[name].shape)}"
            )
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
