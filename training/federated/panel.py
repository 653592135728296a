"""Those who judge what a generator draws: what it asks them, what they answer, and what it makes of that.

Requests and answers are bytes, of safetensors' format, wherever the judges are: in this process or at sites. So what a
run computes does not depend on where, and what leaves a site is what ``Vote`` has and nothing else.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor


class MessageError(ValueError):
    """Bytes are not what was to come."""


@dataclass(frozen=True)
class Question:
    """Pictures that a generator drew in a step, and what it made them of: float32 [B, 1, S, S] in [-1, 1]."""

    step: int
    drawn: Tensor
    condition: Tensor

    def to_bytes(self) -> bytes:
        return _packed({"drawn": self.drawn, "condition": self.condition}, {"step": self.step})

    @classmethod
    def from_bytes(cls, message: bytes) -> "Question":
        tensors, numbers = _unpacked(message, ("drawn", "condition"), ("step",))
        if tensors["drawn"].shape != tensors["condition"].shape:
            shapes = " and ".join(str(list(tensor.shape)) for tensor in tensors.values())
            raise MessageError(f"a question has pictures of {shapes}, which must be alike")
        if not all(tensor.isfinite().all() for tensor in tensors.values()):
            raise MessageError("a question holds NaN or infinity")
        return cls(int(numbers["step"]), **tensors)


@dataclass(frozen=True)
class Vote:
    """What one discriminator says of drawn pictures.

    step: that of the question. gradient: of the generator's loss by them, [B, 1, S, S]. deceiving: that loss. critic:
    the discriminator's own, of these and of its data, None where it is not to be known. size: of its data, 1 where that
    does not matter.
    """

    step: int
    gradient: Tensor
    deceiving: float
    critic: float | None
    size: int

    def to_bytes(self) -> bytes:
        critic = math.nan if self.critic is None else self.critic
        numbers = {"step": self.step, "deceiving": self.deceiving, "critic": critic, "size": self.size}
        return _packed({"gradient": self.gradient}, numbers)

    @classmethod
    def from_bytes(cls, message: bytes) -> "Vote":
        tensors, numbers = _unpacked(message, ("gradient",), ("step", "deceiving", "critic", "size"))
        if not tensors["gradient"].isfinite().all() or not math.isfinite(numbers["deceiving"]):
            raise MessageError("a vote holds NaN or infinity")
        if math.isinf(numbers["critic"]) or not 1 <= numbers["size"] < 2**31:
            raise MessageError(f"a vote says a loss of {numbers['critic']} on {numbers['size']:g} pictures")
        critic = None if math.isnan(numbers["critic"]) else numbers["critic"]
        return cls(int(numbers["step"]), tensors["gradient"], numbers["deceiving"], critic, int(numbers["size"]))


def _packed(tensors: Mapping[str, Tensor], numbers: Mapping[str, float]) -> bytes:
    plain = {name: tensor.detach().cpu().float().contiguous().clone() for name, tensor in tensors.items()}
    return bytes(save(plain, {name: repr(number) for name, number in numbers.items()}))


def _unpacked(
    message: bytes, tensors: Sequence[str], numbers: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        found = load(message)
        length = int.from_bytes(message[:8], "little")
        told = _metadata(message[8 : 8 + length])
        if sorted(found) != sorted(tensors) or sorted(told) != sorted(numbers):
            raise MessageError(
                f"a message holds {sorted(found)} and {sorted(told)}; wanted are {tensors} and {numbers}"
            )
        if any(tensor.dtype != torch.float32 or tensor.ndim != 4 for tensor in found.values()):
            raise MessageError("a message holds a tensor that is no float32 [B, 1, S, S]")
        said = {name: float(told[name]) for name in numbers}
        if not 0 <= said["step"] < 2**53:
            raise MessageError(f"a message is of step {said['step']:g}")
        return {name: tensor.clone() for name, tensor in found.items()}, said
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise MessageError(f"a message cannot be read: {error}") from error


def _metadata(header: bytes) -> dict[str, str]:
    told = json.loads(header).get("__metadata__", {})
    return {str(name): str(value) for name, value in told.items()}


@dataclass(frozen=True)
class Verdict:
    """The weighted mean of the votes; ``critic`` is -1 where no site says it, ``sites`` how many had a vote."""

    gradient: Tensor
    deceiving: float
    critic: float
    sites: int


class Panel(Protocol):
    """All discriminators of a run."""

    def judge(self, step: int, drawn: Tensor, condition: Tensor) -> Verdict:
        """Have each learn from the pictures that were drawn in a step, and then judge them."""

    def save(self, step: int) -> None:
        """Have each keep what it has learnt, to go on from when a run is resumed at this step."""


def mean_of(votes: Mapping[str, Vote], site_weights: Literal["equal", "size"]) -> Verdict:
    """Of the votes of one site or more, by their names, in whose order they are added up."""
    names = sorted(votes)
    sizes = {name: votes[name].size if site_weights == "size" else 1 for name in names}
    share = {name: sizes[name] / sum(sizes.values()) for name in names}
    gradient = torch.zeros_like(votes[names[0]].gradient)
    for name in names:
        gradient += share[name] * votes[name].gradient
    told = [(share[name], critic) for name in names if (critic := votes[name].critic) is not None]
    critic = sum(part * loss for part, loss in told) / sum(part for part, _ in told) if told else -1.0
    return Verdict(gradient, sum(share[name] * votes[name].deceiving for name in names), critic, len(names))
