"""Families that find a state by going down a loss: their network is its gradient, their solvers are optimisers."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import grad

from serving.sampling.solvers import Schedule
from training.family import Family

LONGEST = 10_000  # steps that a request may ask for
DESCENT = Schedule("descent", LONGEST, 0.0, 0.0, "gradient")
SMALLEST = 1e-12  # root mean square of a gradient, below which it is not made longer


class Block(NamedTuple):
    """Channels of a state that mean the same, and the size that their values naturally have."""

    channels: int
    size: float


class Descent(Family):
    """The state is what is sought; ``losses`` says how wrong it is."""

    blocks: Sequence[Block]

    def losses(self, state: Tensor, condition: Tensor | None = None) -> Tensor:
        """States [B, C, H, W] -> the loss of each, [B], which no other row has a part in."""
        raise NotImplementedError

    def gradient(self, state: Tensor, condition: Tensor | None = None) -> Tensor:
        """Of each row's loss by its state, [B, C, H, W]."""
        by_state: Tensor = grad(lambda sought: self.losses(sought, condition).sum())(state)
        return by_state

    def direction(self, gradient: Tensor, coeffs: Tensor) -> Tensor:
        """What a step goes along: the gradient where a row's t is 0, and where it is 1 the gradient over its size.

        The size is the root mean square over a block of channels, in units of what the block's values naturally are. So
        a row with c = -0.01 moves each block by a hundredth of itself, whatever the loss is scaled by, however many
        values the block has, and however near the end is. The gradients of blocks differ by orders of magnitude, and
        all shrink as the loss does: no one rate would suit them.
        """
        plain = coeffs[:, 0].view(-1, 1, 1, 1) == 0
        parts = []
        for part, block in zip(gradient.split([block.channels for block in self.blocks], 1), self.blocks, strict=True):
            size = part.square().mean((1, 2, 3), keepdim=True).sqrt() / block.size
            parts.append(torch.where(plain, part, part / (size + SMALLEST)))
        return torch.cat(parts, dim=1)

    def networks(self) -> dict[str, nn.Module]:
        return {}  # there is none that a loop of one's own would call

    def network(self, sample: Tensor, coeffs: Tensor, condition: Tensor | None = None) -> Tensor:
        return self.direction(self.gradient(sample, condition), coeffs)
