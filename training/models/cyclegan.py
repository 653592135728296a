"""cyclegan: pictures of one kind turned into pictures of another, learnt from both without pairs.

Zhu et al. 2017 (arXiv 1703.10593). Two generators and two discriminators learn together; ``direction`` says which of
the generators is drawn with, and may be chosen anew when a bundle is built. Pictures are neither cropped at random nor
mirrored, as the authors' are: in a mammogram left and right are findings.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset

from serving.bundle import Condition
from training.adversarial import Adversarial, AdversarialPreset, ImagePool, spread
from training.family import Batch, Loss, Preset, Turn
from training.translators import PatchCritic, residual_generator


@dataclasses.dataclass(frozen=True, kw_only=True)
class CycleGanPreset(AdversarialPreset):
    """Adds the networks' shape and the weights of the losses."""

    direction: Literal["a_to_b", "b_to_a"]  # of the pictures that are drawn
    width: int  # of the generators' features at full size
    blocks: int
    critic_width: int
    cycle: float  # weight of the cycle loss beside the adversarial one
    identity: float  # weight of the identity loss, a share of ``cycle``
    pool: int  # drawn pictures that the discriminators also learn from; 0 for none

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 4 or self.size < 32:  # below it, a norm of the critic's sees one pixel
            raise ValueError(f"preset field 'size' is {self.size}; it must be a multiple of 4 and at least 32")
        for name, least in {"width": 1, "blocks": 1, "critic_width": 1, "cycle": 0, "identity": 0, "pool": 0}.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"preset field {name!r} is {getattr(self, name)}; it must be at least {least}")


# fmt: off
PRESETS = {
    "paper": CycleGanPreset(                    # 11.37 M parameters a generator, 2.76 M a discriminator
        size=256, width=64, blocks=9, critic_width=64, objective="least_squares", cycle=10.0, identity=0.5, pool=50,
        batch=1, steps=(200_000,), learning_rate=2e-4, betas=(0.5, 0.999), lr_schedule="linear_from_half",
        weight_decay=0.0, ema_decay=0.0, penalty=0.0, direction="a_to_b"),
    "small": CycleGanPreset(                    # 0.40 M parameters a generator, 0.39 M a discriminator
        size=64,  width=12, blocks=9, critic_width=24, objective="least_squares", cycle=10.0, identity=0.5, pool=50,
        batch=4, steps=(4_000,),   learning_rate=2e-4, betas=(0.5, 0.999), lr_schedule="linear_from_half",
        weight_decay=0.0, ema_decay=0.0, penalty=0.0, direction="a_to_b"),
}
# fmt: on

WAYS = ("a_to_b", "b_to_a")


class CycleGan(Adversarial):
    """The state is nothing; the condition is a picture of one kind, and the output the same as one of the other.

    A batch of training data is {"a": float32 [B, 1, H, W] in [-1, 1], "b": the same}.
    """

    name: ClassVar[str] = "cyclegan"
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    measures: ClassVar[tuple[str, ...]] = (*Adversarial.measures, "cycle")
    chosen_when_built: ClassVar[tuple[str, ...]] = ("direction",)
    unpaired: ClassVar[bool] = True

    preset: CycleGanPreset

    def __init__(self, preset: CycleGanPreset) -> None:
        super().__init__()
        self.describe(preset, latent=1)
        shape = (1, preset.size, preset.size)
        self.condition = Condition("source", shape, low=0.0, high=1.0)
        self.generators = nn.ModuleDict({way: residual_generator(preset.width, preset.blocks) for way in WAYS})
        self.discriminators = nn.ModuleDict({kind: PatchCritic(preset.critic_width) for kind in "ab"})
        self.pool_a, self.pool_b = ImagePool(preset.pool, shape), ImagePool(preset.pool, shape)
        self._drawn: dict[str, Tensor] = {}

    @property
    def noise_channels(self) -> int:
        return 0

    @property
    def condition_item(self) -> str:
        return self.preset.direction[0]

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"direction": self.preset.direction}

    def finish(self, sample: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        assert condition is not None
        return ((self.generators[self.preset.direction](condition * 2 - 1) / 2 + 0.5).clamp(0, 1),)

    # --- training ---

    def begin(self, phase: str, dataset: Dataset[Any]) -> None:
        super().begin(phase, Kind(dataset, self.preset.direction[-1]))

    def turns(self, phase: str) -> tuple[Turn, ...]:
        """The generators learn first, as the authors' do, and what they drew is judged."""
        betas = self.preset.betas
        return (
            Turn("generators", self.generators, self.translate, betas, clip=None),
            Turn("discriminators", self.discriminators, self.tell_apart, betas, clip=None, averaged=False),
        )

    def trainable(self, phase: str) -> nn.Module:
        return self.generators

    def translate(self, batch: Batch, generator: torch.Generator) -> Loss:
        a, b = batch["a"], batch["b"]
        there, back = self.generators["a_to_b"], self.generators["b_to_a"]
        drawn = {"a": back(b), "b": there(a)}
        self._drawn = {kind: pictures.detach() for kind, pictures in drawn.items()}
        deceiving = sum(self.objective.generator(self.discriminators[kind](drawn[kind]).float()) for kind in "ab")
        cycle = F.l1_loss(back(drawn["b"]), a) + F.l1_loss(there(drawn["a"]), b)
        loss = deceiving + self.preset.cycle * cycle
        if self.preset.identity:
            identity = F.l1_loss(there(b), b) + F.l1_loss(back(a), a)
            loss = loss + self.preset.cycle * self.preset.identity * identity
        return loss, {"cycle": cycle}

    def tell_apart(self, batch: Batch, generator: torch.Generator) -> Loss:
        losses, penalties = [], []
        for kind in "ab":
            drawn = self.pool(kind).swapped(self._drawn[kind], generator)
            judged = self.discriminators[kind]
            losses.append(self.objective.critic(judged(batch[kind]).float(), judged(drawn).float()))
            penalties.append(self.penalty(judged, batch[kind], drawn, generator))
        loss = sum(losses, torch.zeros_like(losses[0]))
        kind = self.preset.direction[-1]
        held = self.pool(kind).held
        shown = held if len(held) > 1 else self._drawn[kind]  # without a pool there is the batch
        differ = spread(shown) / self.data_spread.clamp(min=1e-6) if len(shown) > 1 else torch.ones_like(loss)
        return loss + sum(penalties), {"discriminator": loss.detach() / 2, "spread": differ}

    def pool(self, kind: str) -> ImagePool:
        return self.pool_a if kind == "a" else self.pool_b

    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generators[self.preset.direction]}


class Kind(Dataset[dict[str, Tensor]]):
    """The pictures of one kind, as the data set's images."""

    def __init__(self, pairs: Dataset[Any], kind: str) -> None:
        self.pairs, self.kind = pairs, kind

    def __len__(self) -> int:
        return len(self.pairs)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.pairs[index][self.kind]}
