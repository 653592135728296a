"""mganprior: a picture found again among those that a trained generator can draw, by several of its latent codes.

Gu et al. 2020 (arXiv 1912.07116), with a generator of Karras et al. (`pggan`): each code runs through the generator's
first layers, their features are added up, each feature of each code with a weight of its own, and the other layers make
a picture of the sum. Codes and weights go down the picture's difference from the one that was given. Nothing is trained
here: the generator is a `pggan` checkpoint's.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from serving.bundle import Condition, Output
from training.descent import DESCENT, Block, Descent
from training.family import Family, Preset
from training.models.pggan import PRESETS as PRIORS
from training.models.pggan import Pggan, PgganPreset
from training.progressive import Generator
from training.vgg import Vgg16Features, load_vgg16

NOTICE = (
    "An inversion is a near copy of the image that went in, not an anonymous one: "
    "who may not see that image may not see this sample."
)
BEST = 100.0  # dB, of a picture found again to the last bit


@dataclasses.dataclass(frozen=True, kw_only=True)
class MGanPriorPreset(Preset):
    """Adds how a picture is looked for; ``size`` is that of the prior."""

    batch: int = 1
    steps: tuple[int, ...] = ()
    learning_rate: float = 0.0
    lr_schedule: str = "constant"
    weight_decay: float = 0.0
    ema_decay: float = 0.0
    prior: PgganPreset
    codes: int
    layer: int  # after which of the generator's layers the codes' features are added up, counted from 1
    learn_weights: bool  # if not, all stay what they begin as: 1 / codes
    vgg16: str | None = None  # weights of torchvision's layout, a file; without them the loss has no perceptual term
    perceptual: float = 0.001  # its weight

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size != self.prior.size:
            raise ValueError(f"preset field 'size' is {self.size}; the prior draws {self.prior.size} pixels")
        if self.codes < 1:
            raise ValueError(f"preset field 'codes' is {self.codes}; it must be at least 1")
        if not 1 <= self.layer <= (last := 2 * len(self.prior.widths)):
            raise ValueError(f"preset field 'layer' is {self.layer}; the prior has the layers 1 to {last}")
        if not self.perceptual >= 0:
            raise ValueError(f"preset field 'perceptual' is {self.perceptual}; it must be at least 0")

    @property
    def features(self) -> int:
        """How many the prior has after ``layer`` layers."""
        return self.prior.widths[(self.layer - 1) // 2]


# The authors' own way is --solver gd --steps 3000.
# fmt: off
PRESETS = {
    "paper": MGanPriorPreset(
        size=256, prior=PRIORS["paper"], codes=20, layer=8, learn_weights=True,
        schedule=DESCENT, clip=None, default_solver="heavy_ball", default_steps=300),
    "small": MGanPriorPreset(
        size=64,  prior=PRIORS["small"], codes=10, layer=4, learn_weights=True,
        schedule=DESCENT, clip=None, default_solver="heavy_ball", default_steps=200),
}
# fmt: on


class MGanPrior(Descent):
    """The state holds the codes, and after them how far the weights are from 1 / codes: [B, channels, 1, 1]."""

    name: ClassVar[str] = "mganprior"
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    phases: ClassVar[tuple[str, ...]] = ()
    made_from: ClassVar[str | None] = Pggan.name
    as_published: ClassVar[tuple[str, int] | None] = ("gd", 3000)
    chosen_when_built: ClassVar[tuple[str, ...]] = (
        "codes",
        "layer",
        "learn_weights",
        "vgg16",
        "perceptual",
        "default_solver",
        "default_steps",
    )
    notices = (NOTICE,)

    preset: MGanPriorPreset

    def __init__(self, preset: MGanPriorPreset) -> None:
        super().__init__()
        self.preset = preset
        self.generator = Generator(preset.prior.latent, preset.prior.widths)
        blocks = [Block(preset.codes * preset.prior.latent, 1.0)]
        if preset.learn_weights:
            # With weights of this size features of codes that are independent add up to the size of one code's.
            blocks.append(Block(preset.codes * preset.features, preset.codes**-0.5))
        self.blocks = blocks
        self.sample_shape = (sum(block.channels for block in blocks), 1, 1)
        picture = (1, preset.size, preset.size)
        self.condition = Condition("image", picture, low=-1.0, high=1.0)
        self.outputs = (
            Output("reconstruction", "float32", picture, low=0.0, high=1.0),
            Output("psnr", "float32", (1,), low=0.0, high=BEST),
        )
        self.vgg16: Vgg16Features | None = None
        self.vgg16_digest = ""
        if preset.vgg16:
            self.vgg16 = load_vgg16(Path(preset.vgg16))
            self.vgg16_digest = hashlib.sha256(Path(preset.vgg16).read_bytes()).hexdigest()

    @classmethod
    def of(cls, prior: Family, preset: Preset, fields: Mapping[str, Any]) -> "MGanPrior":
        """The inversion through a trained prior, as a preset with some fields changed says."""
        assert isinstance(prior, Pggan)
        if prior.growing:
            raise ValueError(
                f"the {prior.name} has grown to {prior.growing}; {cls.name} draws with all of its layers, so it must "
                "be fully grown: train it on with --resume"
            )
        held = {"prior": dataclasses.asdict(prior.preset), "size": prior.preset.size}
        preset = preset.replaced({**fields, **held})
        assert isinstance(preset, MGanPriorPreset)
        made = cls(preset)
        made.generator.load_state_dict(prior.generator.state_dict())
        return made.eval()

    @property
    def noise_channels(self) -> int:
        return self.blocks[0].channels

    @property
    def facts(self) -> Mapping[str, Any]:
        loss = "mean squared error alone: without VGG16 there is no perceptual term"
        if self.vgg16 is not None:
            weight = self.preset.perceptual
            loss = f"mean squared error, and {weight:g} x VGG16's mean difference (weights {self.vgg16_digest})"
        return {"codes": self.preset.codes, "layer": self.preset.layer, "loss": loss}

    def render(self, state: Tensor) -> Tensor:
        """The picture [B, 1, S, S] that codes and weights make: the paper's eq. 2 and 3. It has no bound."""
        codes, layer = self.preset.codes, self.preset.layer
        latents, *offsets = state.flatten(1).split([block.channels for block in self.blocks], dim=1)
        features = self.generator.head(latents.reshape(-1, self.preset.prior.latent), layer).unflatten(0, (-1, codes))
        weights = 1 / codes + offsets[0].unflatten(1, (codes, -1))[..., None, None] if offsets else 1 / codes
        return self.generator.tail((features * weights).sum(1), layer)

    def losses(self, state: Tensor, condition: Tensor | None = None) -> Tensor:
        """The mean squared error, and the mean absolute difference of VGG16's features where there are: eq. 5."""
        assert condition is not None
        picture = self.render(state)
        loss = (picture - condition).square().mean((1, 2, 3))
        if self.vgg16 is not None:
            difference = self.vgg16(picture) - self.vgg16(condition)
            loss = loss + self.preset.perceptual * difference.abs().mean((1, 2, 3))
        return loss

    def finish(self, sample: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        """The picture in [0, 1], and its peak signal-to-noise ratio in dB, [B, 1]."""
        assert condition is not None
        found = (self.render(sample) / 2 + 0.5).clamp(0, 1)
        error = (found - (condition / 2 + 0.5)).square().mean((1, 2, 3))
        return found, (-10 * error.clamp(min=10 ** (-BEST / 10)).log10()).clamp(min=0.0)[:, None]
