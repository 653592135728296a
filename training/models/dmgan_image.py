"""dmgan_image: what a prior could not draw, put back into a picture that was found again through it.

G2 of dm-GAN, Jiao, Xiao and Li 2023 (doi 10.3934/mbe.2023863), after AsynDGAN, Chang et al. 2020 (arXiv 2006.00080). G1
is `mganprior`: its reconstruction is G2's condition, the only reading under which a network that halves its input twice
and doubles it twice draws the paper's 256 x 256 pixels. Several discriminators judge, each of which has pictures of its
own, here or at sites (`training.federated`): they give G2 the gradient of their losses by the pictures that it drew.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from serving.bundle import Condition
from training.adversarial import GRID, Adversarial, AdversarialPreset, spread
from training.family import Batch, Loss, Preset, Turn
from training.federated.panel import Panel
from training.models.mganprior import NOTICE
from training.translators import residual_generator
from training.vgg import Vgg16Features, load_vgg16

RECENT = 16  # drawn pictures that ``spread`` is measured on


@dataclasses.dataclass(frozen=True, kw_only=True)
class DmGanPreset(AdversarialPreset):
    """Adds the networks' shape, the losses, and how G1 finds the pictures that G2 learns from."""

    width: int  # of G2's features at full size: AsynDGAN's 64
    blocks: int  # the paper's 9
    dropout: float  # between the convolutions of a block: the paper has it, the share is AsynDGAN's
    critic_width: int  # AsynDGAN's 64; the paper says PatchGAN of 70 x 70, which it is
    sees_condition: bool  # the discriminators, beside a picture, what it was made of: AsynDGAN's; the paper is unclear
    critic: float  # weight of a discriminator's loss: AsynDGAN's 0.05 a site
    l1: float  # weight beside the adversarial loss: AsynDGAN's 100; the paper says nothing of it
    perceptual: float  # the same of VGG16's features: AsynDGAN's 1; the paper says nothing of it
    vgg16: str | None  # weights of torchvision's layout, a file; without them there is no perceptual term
    site_weights: Literal["equal", "size"]  # of the sites' votes: AsynDGAN's are equal; the paper's eq. 1 allows others
    codes: int  # of G1: the paper's 20
    layer: int  # of G1, after which the codes' features are added up: the paper's 8
    inversion_steps: int  # of G1 with heavy_ball: medgen's; the paper does not say

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size % 4 or self.size < 32:  # below it, a norm of the critic's sees one pixel
            raise ValueError(f"preset field 'size' is {self.size}; it must be a multiple of 4 and at least 32")
        least = {"width": 1, "blocks": 1, "critic_width": 1, "critic": 0, "l1": 0, "perceptual": 0}
        for name, lowest in {**least, "codes": 1, "layer": 1, "inversion_steps": 1}.items():
            if not getattr(self, name) >= lowest:
                raise ValueError(f"preset field {name!r} is {getattr(self, name)}; it must be at least {lowest}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"preset field 'dropout' is {self.dropout}; it must be at least 0 and below 1")
        if self.objective == "wasserstein":
            raise ValueError("preset field 'objective' is 'wasserstein'; sites have non_saturating or least_squares")


# Adam at 2e-4 with 0.5 and 0.999 is the paper's, and 100 epochs of its 170 pictures are 17,000 steps of one. The batch,
# of which it says nothing, is pix2pix's 1; that the rate falls over the second half is AsynDGAN's. The paper's eq. 2 is
# the loss that Goodfellow's section 3 advises against; AsynDGAN's is the other one, which is "non_saturating".
# fmt: off
PRESETS = {
    "paper": DmGanPreset(                       # 11.37 M parameters, and 2.77 M a discriminator
        size=256, width=64, blocks=9, dropout=0.5, critic_width=64, sees_condition=True, objective="non_saturating",
        critic=0.05, l1=100.0, perceptual=1.0, vgg16=None, site_weights="equal", codes=20, layer=8, inversion_steps=300,
        batch=1, steps=(17_000,), learning_rate=2e-4, betas=(0.5, 0.999), lr_schedule="linear_from_half",
        weight_decay=0.0, ema_decay=0.0, penalty=0.0),
    "small": DmGanPreset(                       # 0.40 M parameters, and 0.39 M a discriminator
        size=64,  width=12, blocks=9, dropout=0.5, critic_width=24, sees_condition=True, objective="non_saturating",
        critic=0.05, l1=100.0, perceptual=1.0, vgg16=None, site_weights="equal", codes=10, layer=4, inversion_steps=200,
        batch=4, steps=(2_000,),   learning_rate=2e-4, betas=(0.5, 0.999), lr_schedule="linear_from_half",
        weight_decay=0.0, ema_decay=0.0, penalty=0.0),
}
# fmt: on


class DmGanImage(Adversarial):
    """The state is nothing; the condition is G1's reconstruction, and the output the picture.

    Dropout is off when it draws: the paper gives it as a means against over-fitting, and measures how near a picture
    comes to the one that went in, which noise would only harm; what varies with the seed is G1's codes.

    A batch of training data is {"condition": float32 [B, 1, H, W] in [-1, 1], "image": the same}, the reconstructions
    and what they are of. ``panel`` judges what is drawn; it must be set before training.
    """

    name: ClassVar[str] = "dmgan_image"
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    measures: ClassVar[tuple[str, ...]] = (*Adversarial.measures, "l1", "sites")
    learns_through: ClassVar[str | None] = "pggan"
    notices = (NOTICE,)

    preset: DmGanPreset
    panel: Panel
    drawn_already: Tensor
    recent: Tensor

    def __init__(self, preset: DmGanPreset) -> None:
        super().__init__()
        self.describe(preset, latent=1)
        self.condition = Condition("reconstruction", (1, preset.size, preset.size), low=0.0, high=1.0)
        self.generator = residual_generator(preset.width, preset.blocks, preset.dropout)
        self.register_buffer("drawn_already", torch.zeros((), dtype=torch.int64), persistent=False)  # batches
        self.register_buffer("recent", torch.zeros(RECENT, 1, GRID, GRID), persistent=False)
        self._vgg16: list[Vgg16Features] = []  # no submodule: its weights belong to no checkpoint

    @property
    def noise_channels(self) -> int:
        return 0

    @property
    def condition_item(self) -> str:
        return "condition"

    @property
    def facts(self) -> Mapping[str, Any]:
        preset = self.preset
        terms = [f"{preset.objective} of the sites", f"{preset.l1:g} x L1"]
        terms += [f"{preset.perceptual:g} x VGG16" if self.perceives else "no perceptual term: VGG16 was not given"]
        found = {"codes": preset.codes, "layer": preset.layer, "heavy_ball_steps": preset.inversion_steps}
        return {"loss": ", ".join(terms), "learnt_from": found}

    def finish(self, sample: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        assert condition is not None
        return ((self.generator(condition * 2 - 1) / 2 + 0.5).clamp(0, 1),)

    # --- training ---

    def turns(self, phase: str) -> tuple[Turn, ...]:
        return (Turn("generator", self.generator, self.refine, self.preset.betas, clip=None),)

    def advance(self, phase: str) -> None:
        self.drawn_already += 1

    def saving(self, step: int) -> None:
        self.panel.save(step)

    def refine(self, batch: Batch, generator: torch.Generator) -> Loss:
        """The paper's eq. 2 for G2, and AsynDGAN's L1 and perceptual terms, which need no site."""
        condition, image = batch["condition"], batch["image"]
        with torch.random.fork_rng():  # dropout draws from the global generator
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            drawn = self.generator(condition)
        if not drawn.isfinite().all():  # no site is to be blamed
            raise FloatingPointError(
                f"the generator draws NaN or infinity at step {int(self.drawn_already)}; the last checkpoint is good"
            )
        verdict = self.panel.judge(int(self.drawn_already), drawn.detach(), condition)
        deceiving = (drawn * verdict.gradient.to(drawn)).sum()  # its gradient by ``drawn`` is the sites'
        deceiving = deceiving + (verdict.deceiving - deceiving.detach())
        l1 = F.l1_loss(drawn, image)
        loss = deceiving + self.preset.l1 * l1 + self.preset.perceptual * self.seen_difference(drawn, image)
        measures = {
            "discriminator": loss.new_tensor(verdict.critic),
            "spread": self.recent_spread(drawn),
            "l1": l1.detach(),
            "sites": loss.new_tensor(verdict.sites),
        }
        return loss, measures

    @property
    def perceives(self) -> bool:
        return bool(self.preset.vgg16 and self.preset.perceptual)

    def vgg16(self) -> Vgg16Features:
        """Loaded when it is to learn: who draws with what it has learnt need not have the file. Raises ValueError."""
        if not self._vgg16:
            self._vgg16 = [load_vgg16(Path(str(self.preset.vgg16)), blocks=4)]
        return self._vgg16[0]

    def seen_difference(self, drawn: Tensor, image: Tensor) -> Tensor:
        """The mean squared differences of VGG16's features after its first four blocks, added up: AsynDGAN's."""
        if not self.perceives:
            return drawn.new_zeros(())
        vgg16 = self.vgg16()
        stages = zip(vgg16.to(drawn.device).stages(drawn), vgg16.stages(image), strict=True)
        return sum((F.mse_loss(one, other) for one, other in stages), drawn.new_zeros(()))

    @torch.no_grad()
    def recent_spread(self, drawn: Tensor) -> Tensor:
        """Batches may be of one picture, which does not differ from itself: of the latest pictures."""
        coarse = F.adaptive_avg_pool2d(drawn.float(), GRID)[-RECENT:]
        self.recent.copy_(torch.cat([self.recent, coarse])[-RECENT:])
        seen = min(RECENT, (int(self.drawn_already) + 1) * len(coarse))
        return spread(self.recent[-seen:]) / self.data_spread.clamp(min=1e-6) if seen > 1 else drawn.new_ones(())

    def begin(self, phase: str, dataset: Dataset[Any]) -> None:
        self.drawn_already.zero_()
        super().begin(phase, dataset)

    def trouble(self, step: int, means: Mapping[str, float]) -> str | None:
        if means["discriminator"] < 0:  # where sites add noise to what they say, they do not say it
            means = {**means, "discriminator": float("inf")}
        return super().trouble(step, means)
