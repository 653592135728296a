"""pggan: images by a generator and a discriminator that grow together, from 4 x 4 pixels to the preset's size.

Karras et al. 2018 (arXiv 1710.10196). Growing follows the share of the steps that are done, so that it fits any number
of them: the first stage has one unit, each later one a unit of being faded in and a unit more, and the last another.
The authors' optimisers begin anew at every stage and their batches get smaller; here both go on as they are.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.adversarial import Adversarial, AdversarialPreset
from training.family import Batch, Loss, Preset
from training.progressive import SMALLEST, Discriminator, Generator, doubled, halved
from training.state_dict import read_published

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue


@dataclasses.dataclass(frozen=True, kw_only=True)
class PgganPreset(AdversarialPreset):
    """Adds the networks' shape."""

    latent: int
    widths: tuple[int, ...]  # of the features at 4 x 4, 8 x 8, ...
    group: int  # pictures whose deviation the discriminator sees

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.latent, self.group, *self.widths, 1) < 1 or not self.widths:
            raise ValueError(
                f"preset fields 'latent', 'group' and 'widths' are {self.latent}, {self.group} and {self.widths}; all "
                "must be at least 1"
            )
        if self.size != (size := SMALLEST << (len(self.widths) - 1)):
            raise ValueError(f"preset field 'size' is {self.size}; {len(self.widths)} widths make {size}")
        if self.batch < 2:
            raise ValueError(f"preset field 'batch' is {self.batch}; the deviation of a batch needs at least 2")


# fmt: off
PRESETS = {
    "paper": PgganPreset(                       # 23.04 M parameters, and 23.05 M of the discriminator
        size=256, latent=512, widths=(512, 512, 512, 512, 256, 128, 64), group=16, objective="wasserstein",
        penalty=10.0, batch=16, steps=(525_000,), learning_rate=1e-3, betas=(0.0, 0.99), lr_schedule="constant",
        weight_decay=0.0, ema_decay=0.999),
    "small": PgganPreset(                       # 0.26 M parameters, and 0.26 M of the discriminator
        size=64,  latent=64,  widths=(64, 64, 48, 32, 16), group=8, objective="non_saturating",
        penalty=10.0, batch=16, steps=(8_000,),   learning_rate=1e-3, betas=(0.0, 0.99), lr_schedule="constant",
        weight_decay=0.0, ema_decay=0.995),
}
# fmt: on


class Pggan(Adversarial):
    """The state is the latent; while it grows, pictures of a smaller stage are enlarged."""

    name: ClassVar[str] = "pggan"
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    measures: ClassVar[tuple[str, ...]] = (*Adversarial.measures, "stage")
    has_idle_weights: ClassVar[bool] = True

    preset: PgganPreset
    generator: Generator
    discriminator: Discriminator

    def __init__(self, preset: PgganPreset) -> None:
        super().__init__()
        self.describe(preset, preset.latent)
        self.generator = Generator(preset.latent, preset.widths)
        self.discriminator = Discriminator(preset.widths, group=preset.group)
        self.grown = 0.0  # share of the growing that is done

    # ``grown`` decides which layers run, so it is a number and no buffer: graphs are exported of one stage.
    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.grown, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.grown = float(state)

    @property
    def position(self) -> tuple[int, float]:
        """The stage, and how far it is faded in, from above 0 to 1."""
        units = self.grown * 2 * self.generator.stages
        stage = min(int((units + 1) / 2), self.generator.stages - 1)
        return stage, min(1.0, units - (2 * stage - 1)) if stage else 1.0

    @property
    def growing(self) -> str | None:
        """How far it has grown, such as "stage 2 of 4, faded in to 0.5"; None if all stages are there."""
        stage, fade = self.position
        last = self.generator.stages - 1
        return None if (stage, fade) == (last, 1.0) else f"stage {stage} of {last}, faded in to {fade:.2g}"

    def advance(self, phase: str) -> None:
        self.grown = min(1.0, self.grown + 1 / self.preset.steps[0])

    def drawn(self, latents: Tensor) -> Tensor:
        return self.generator(latents.flatten(1), *self.position)

    def judged(self, pictures: Tensor) -> Tensor:
        return self.discriminator(pictures, *self.position)

    def real(self, batch: Batch) -> Tensor:
        """Averaged down to the stage's size, and between that and the stage before as what is drawn is."""
        stage, fade = self.position
        pictures = F.adaptive_avg_pool2d(batch["image"], SMALLEST << stage)
        return pictures if fade == 1 else torch.lerp(doubled(halved(pictures)), pictures, fade)

    def load_published(self, file: Path) -> str:
        """A state dict of genforce's PGGAN as ``torch.save`` writes it, or several under genforce's names for them.

        Of colour models grey ones are made: the picture is Y of ITU-R BT.601, and the discriminator sees it as all
        three colours. The model is then fully grown.
        """
        content = read_published(file)
        if not isinstance(content, dict):
            raise ValueError(f"{file} holds a {type(content).__name__}; a state dict is wanted")
        parts = content if content.keys() & {"generator", "generator_smooth"} else {"generator": content}
        averaged = "generator_smooth" if "generator_smooth" in parts else "generator"
        loaded: list[tuple[nn.Module, str, str]] = [(self.generator, averaged, "output")]
        loaded += [(self.discriminator, "discriminator", "input")] * ("discriminator" in parts)
        found = [checked(network, parts[name], f"{file}: {name}", edge) for network, name, edge in loaded]
        for (network, *_), weights in zip(loaded, found, strict=True):
            network.load_state_dict(weights)
        self.grown = 1.0
        return f"weights of {' and '.join(name for _, name, _ in loaded)}; fully grown, colours become grey"

    def discriminate(self, batch: Batch, generator: torch.Generator) -> Loss:
        loss, measures = super().discriminate(batch, generator)
        stage, fade = self.position
        return loss, {**measures, "stage": loss.new_tensor(max(0, stage - 1 + fade))}

    def finish(self, sample: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        (pictures,) = super().finish(sample)
        return (F.interpolate(pictures, size=(self.preset.size, self.preset.size), mode="nearest"),)


def checked(network: nn.Module, published: Any, where: str, edge: str) -> dict[str, Tensor]:
    """The weights of a published state dict for a network; those of the layers ``edge``.. for grey pictures.

    Raises:
        ValueError: they are of another network, or of one that is still growing.
    """
    if not isinstance(published, Mapping) or not all(isinstance(weight, Tensor) for weight in published.values()):
        raise ValueError(f"{where} is no state dict of tensors")
    weights = {name: weight.float() for name, weight in published.items()}
    if (lod := weights.pop("lod", torch.zeros(()))).any():
        raise ValueError(f"{where} has the lod {lod.tolist()}; only what is fully grown can be taken, whose lod is 0")
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise ValueError(f"{where}: {name} holds NaN or infinity")
        if name.startswith(edge) and weight.ndim:
            weights[name] = grey(name, weight)
    shapes, wanted = ({name: tuple(w.shape) for name, w in d.items()} for d in (weights, network.state_dict()))
    for name in sorted(shapes.keys() | wanted.keys()):
        if shapes.get(name) != wanted.get(name):
            raise ValueError(f"{where} has {name} of {shapes.get(name)}; the preset's networks have {wanted.get(name)}")
    return weights


def grey(name: str, weight: Tensor) -> Tensor:
    """A weight or bias of the layers that make or see pictures, of three colours or of one: as it is for one."""
    colours = torch.tensor(LUMA).to(weight)
    if name.startswith("output") and len(weight) == len(LUMA):
        return torch.tensordot(colours, weight, dims=1)[None]
    if name.startswith("input") and weight.ndim == 4 and weight.shape[1] == len(LUMA):
        return weight.sum(1, keepdim=True) / math.sqrt(len(LUMA))  # He's constant knows of three inputs
    return weight
