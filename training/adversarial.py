"""What families have in common that learn against a discriminator: losses, penalties, an image pool, collapse."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from serving.bundle import Output
from training.family import Batch, Family, Loss, Network, Preset, Turn

MEASURED = 256  # pictures at most, that the data's spread is taken from
GRID = 4  # rows and columns of what spread is measured on
SETTLING = 16  # batches that statistics are taken from
GONE = 0.01  # share of what a discriminator that only guesses would lose; below it, it is never wrong
WARM = 300  # steps before which that is no wonder: the first pictures are all alike
SAME = 0.05  # share of the data's spread; below it, all pictures are one


@dataclasses.dataclass(frozen=True)
class Objective:
    """``critic``: the discriminator's loss, of its scores of real and of drawn pictures; ``generator``: of drawn ones.

    ``guessing`` is what the critic loses when it cannot tell them apart; None where its loss has no lowest value.
    """

    critic: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    guessing: float | None


OBJECTIVES = {
    # Goodfellow et al. 2014 (arXiv 1406.2661), the generator's loss as its section 3 advises
    "non_saturating": Objective(
        lambda real, drawn: F.softplus(-real).mean() + F.softplus(drawn).mean(),
        lambda drawn: F.softplus(-drawn).mean(),
        2 * math.log(2),
    ),
    # Mao et al. 2017 (arXiv 1611.04076), halved for the discriminator as Zhu et al. do
    "least_squares": Objective(
        lambda real, drawn: ((real - 1).square().mean() + drawn.square().mean()) / 2,
        lambda drawn: (drawn - 1).square().mean(),
        0.25,
    ),
    # Arjovsky et al. 2017 (arXiv 1701.07875), scores kept from drifting as Karras et al. 2018, appendix A.1
    "wasserstein": Objective(
        lambda real, drawn: drawn.mean() - real.mean() + 0.001 * real.square().mean(),
        lambda drawn: -drawn.mean(),
        None,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdversarialPreset(Preset):
    """Of a generator that draws in one pass."""

    schedule: None = None
    clip: None = None
    default_solver: None = None
    default_steps: int = 0
    objective: Literal["non_saturating", "least_squares", "wasserstein"]
    betas: tuple[float, float]  # of Adam
    penalty: float  # weight of the penalty that goes with the objective, see ``Adversarial.penalty``; 0 for none

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"preset field 'betas' is {self.betas}; both must be at least 0 and below 1")
        if not self.penalty >= 0:
            raise ValueError(f"preset field 'penalty' is {self.penalty}; it must be at least 0")


def gradient_of(scores: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """The scores' gradient by each picture, [B, C, H, W], to be learnt from."""
    pictures = pictures.detach().requires_grad_(True)
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(scores(pictures).sum(), pictures, create_graph=True)
    return gradient


def spread(pictures: Tensor) -> Tensor:
    """How far pictures [B, C, H, W] of any size differ: a coarse pixel's standard deviation over the batch."""
    return F.adaptive_avg_pool2d(pictures.detach().float(), GRID).var(0).mean().sqrt()


class Adversarial(Family):
    """A family without steps that draws pictures; a discriminator, which learns first, tells them from the data.

    Its state is what the generator draws from, [B, latent, 1, 1]; its output the image. Pictures are in [-1, 1].
    """

    phases: ClassVar[tuple[str, ...]] = ("adversarial",)
    measures: ClassVar[tuple[str, ...]] = ("discriminator", "spread")

    preset: AdversarialPreset
    generator: nn.Module
    discriminator: nn.Module
    data_spread: Tensor

    def describe(self, preset: AdversarialPreset, latent: int) -> None:
        """Say what goes in and what comes out."""
        self.preset = preset
        self.sample_shape = (latent, 1, 1)
        self.outputs = (Output("image", "float32", (1, preset.size, preset.size), low=0.0, high=1.0),)
        self.register_buffer("data_spread", torch.ones(()))

    @property
    def objective(self) -> Objective:
        return OBJECTIVES[self.preset.objective]

    # --- what a family says of its networks; while it grows they are smaller than what comes out ---

    def drawn(self, latents: Tensor) -> Tensor:
        """Latents [B, latent, 1, 1] -> pictures [B, 1, S, S], as the discriminator sees them."""
        pictures: Tensor = self.generator(latents)
        return pictures

    def judged(self, pictures: Tensor) -> Tensor:
        """Scores of pictures, of any shape; more is more real."""
        scores: Tensor = self.discriminator(pictures)
        return scores

    def real(self, batch: Batch) -> Tensor:
        """The data as the discriminator sees them."""
        return batch["image"]

    def finish(self, sample: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        return ((self.drawn(sample) / 2 + 0.5).clamp(0, 1),)

    # --- training ---

    def latents(self, like: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randn(len(like), *self.sample_shape, generator=generator).to(like)

    @torch.no_grad()
    def begin(self, phase: str, dataset: Dataset[Any]) -> None:
        count = len(dataset)  # type: ignore[arg-type]
        some = Subset(dataset, range(0, count, -(-count // MEASURED)))
        coarse = [F.adaptive_avg_pool2d(batch["image"], GRID) for batch in DataLoader(some, self.preset.batch)]
        self.data_spread.copy_(spread(torch.cat(coarse)) if len(some) > 1 else torch.ones(()))

    def turns(self, phase: str) -> tuple[Turn, ...]:
        betas = self.preset.betas
        return (
            Turn("discriminator", self.discriminator, self.discriminate, betas, clip=None, averaged=False),
            Turn("generator", self.generator, self.deceive, betas, clip=None),
        )

    def trainable(self, phase: str) -> nn.Module:
        return self.generator

    def discriminate(self, batch: Batch, generator: torch.Generator) -> Loss:
        real = self.real(batch)
        with torch.no_grad():
            drawn = self.drawn(self.latents(real, generator))
        loss = self.objective.critic(self.judged(real).float(), self.judged(drawn).float())
        measures = {"discriminator": loss.detach(), "spread": spread(drawn) / self.data_spread.clamp(min=1e-6)}
        return loss + self.penalty(self.judged, real, drawn, generator), measures

    def deceive(self, batch: Batch, generator: torch.Generator) -> Loss:
        drawn = self.drawn(self.latents(batch["image"], generator))
        return self.objective.generator(self.judged(drawn).float()), {}

    def penalty(
        self, judged: Callable[[Tensor], Tensor], real: Tensor, drawn: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Half the weight times the squared gradient at the data (R1: Mescheder et al. 2018, arXiv 1801.04406, eq. 9).

        With "wasserstein" the weight times (length - 1)^2 of the gradient between data and drawn pictures: Gulrajani et
        al. 2017 (arXiv 1704.00028), eq. 3. In float32, whatever the precision.
        """
        if not self.preset.penalty:
            return real.new_zeros(())
        with torch.autocast(real.device.type, enabled=False):
            real, drawn = real.float(), drawn.float()
            if self.preset.objective == "wasserstein":
                share = torch.rand(len(real), 1, 1, 1, generator=generator).to(real)
                lengths = gradient_of(judged, torch.lerp(real, drawn, share)).flatten(1).norm(dim=1)
                return self.preset.penalty * (lengths - 1).square().mean()
            return self.preset.penalty / 2 * gradient_of(judged, real).square().sum((1, 2, 3)).mean()

    @torch.no_grad()
    def settle(self, phase: str) -> None:
        """Batch norms of the generator get the statistics that its averaged weights make of latents."""
        norms = [module for module in self.trainable(phase).modules() if isinstance(module, nn.BatchNorm2d)]
        if not norms:
            return
        generator = torch.Generator().manual_seed(0)
        for norm in norms:
            norm.reset_running_stats()
            norm.train()
            norm.momentum = None  # the mean over all batches
        like = torch.empty(self.preset.batch, device=self.data_spread.device)
        for _ in range(SETTLING):
            self.generator(self.latents(like, generator))
        for norm in norms:
            norm.momentum = 0.0  # as ``frozen_statistics`` has it
            norm.eval()

    def trouble(self, step: int, means: Mapping[str, float]) -> str | None:
        if step < WARM:
            return None
        if means["spread"] < SAME:
            share = f"{100 * means['spread']:.2g} %"
            return f"the generator has collapsed: its pictures differ by {share} of what the data do"
        guessing = self.objective.guessing
        if guessing and means["discriminator"] < GONE * guessing:
            return (
                f"the discriminator is never wrong and tells the generator nothing: its loss is "
                f"{means['discriminator']:.2g}, where it guesses {guessing:.2g}; --set penalty=1 or more data may help"
            )
        return None

    # --- the loop as users write it by hand: there is none ---

    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator}

    def scheduler_step(
        self,
        networks: Mapping[str, Network],
        scheduler: Any,
        t: Tensor,
        sample: Tensor,
        condition: Tensor | None = None,
    ) -> Tensor:
        raise TypeError(f"{self.name} has no steps")


def frozen_statistics(width: int) -> nn.BatchNorm2d:
    """A batch norm whose running statistics training leaves alone: ``settle`` takes them of averaged weights."""
    return nn.BatchNorm2d(width, momentum=0.0)


class ImagePool(nn.Module):
    """The last drawn pictures, from which a discriminator learns as well: Shrivastava et al. 2017 (arXiv 1612.07828).

    It is kept to resume from, and not handed on: its pictures may be near copies of the data.
    """

    pictures: Tensor
    filled: Tensor

    def __init__(self, capacity: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("pictures", torch.zeros(capacity, *shape), persistent=False)
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def swapped(self, drawn: Tensor, generator: torch.Generator) -> Tensor:
        """Pictures [B, C, H, W] for the discriminator, as these are put in.

        A full pool gives one of its own, chosen at random, for every second picture on the average, and keeps that
        picture instead; one of no capacity gives back what comes.
        """
        given = []
        for picture in drawn.detach():
            filled = int(self.filled)
            if filled < len(self.pictures):
                self.pictures[filled] = picture
                self.filled += 1
            elif len(self.pictures) and torch.rand((), generator=generator) < 0.5:
                place = int(torch.randint(len(self.pictures), (), generator=generator))
                picture, self.pictures[place] = self.pictures[place].clone(), picture
            given.append(picture)
        return torch.stack(given)

    @property
    def held(self) -> Tensor:
        return self.pictures[: int(self.filled)]
