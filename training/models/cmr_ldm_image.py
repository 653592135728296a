"""cmr_ldm_image: short-axis cardiac MRI under a mask, drawn by a diffusion model in the latents of a VQ-VAE.

Edirisooriya et al., "Balancing Fidelity, Utility, and Privacy in Synthetic Cardiac MRI Generation", section IV.C.2.b.
The mask lies beside the noisy latents, as each class's share of what a latent covers, and normalises the features on
their way up (SPADE, Park et al. 2019, arXiv 1903.07291).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers import VQModel
from monai.networks.nets import SPADEDiffusionModelUNet
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from serving.sampling.solvers import Schedule
from training.cardiac_families import CLASSES, HeartPainter
from training.family import Batch, Preset
from training.painters import PainterPreset, one_hot
from training.unets import monai_options

MEASURED = 1000  # images at most, that the latents' deviation is taken from


@dataclasses.dataclass(frozen=True)
class LdmPreset(PainterPreset):
    """Adds the autoencoder; ``widths`` and the fields beside them are of the UNet, ``layers`` of both."""

    spade_channels: int
    autoencoder_widths: tuple[int, ...]  # all but the last halve the image
    latent_channels: int
    codes: int

    @property
    def halvings(self) -> int:
        return super().halvings + len(self.autoencoder_widths) - 1

    @property
    def unet_size(self) -> int:
        return self.size >> len(self.autoencoder_widths) - 1

    def __post_init__(self) -> None:
        if not self.autoencoder_widths:
            raise ValueError("preset field 'autoencoder_widths' is (); it must have at least one width")
        super().__post_init__()
        if any(width % self.norm_groups for width in self.autoencoder_widths):
            raise ValueError(
                f"preset field 'norm_groups' is {self.norm_groups}; it must divide {self.autoencoder_widths} too"
            )
        for name in ("spade_channels", "latent_channels", "codes"):
            if getattr(self, name) < 1:
                raise ValueError(f"preset field {name!r} is {getattr(self, name)}; it must be at least 1")


# The paper has three widths and latents of 16 x 16, which ask for a fourth. Its UNet has SPADE in every block and half
# as many parameters; MONAI's has it in the blocks on the way up.
# fmt: off
PRESETS = {
    "paper": LdmPreset(                         # 82.83 M parameters, and 20.97 M of the VQ-VAE
        size=128, widths=(128, 256, 512), attention=(1, 2), layers=2, head_dim=32, norm_groups=32,
        schedule=Schedule("linear", 1000, 1e-4, 0.02, "epsilon"), clip=None, default_solver="ddpm", default_steps=1000,
        batch=16, steps=(17_000, 17_000), learning_rate=2e-4, lr_schedule="constant",
        weight_decay=0.01, ema_decay=0.9999,
        mask_dropout=0.0, spade_channels=128, autoencoder_widths=(64, 128, 256, 256), latent_channels=4, codes=8192),
    "small": LdmPreset(                         # 2.54 M parameters, and 0.68 M of the VQ-VAE
        size=64,  widths=(32, 64, 96),    attention=(1, 2), layers=1, head_dim=32, norm_groups=8,
        schedule=Schedule("linear", 1000, 1e-4, 0.02, "v"), clip=None, default_solver="dpmpp_2m", default_steps=10,
        batch=8,  steps=(1_600, 3_500),   learning_rate=1e-3, lr_schedule="cosine", weight_decay=0.0,   ema_decay=0.999,
        mask_dropout=0.0, spade_channels=32,  autoencoder_widths=(16, 32, 64),       latent_channels=4, codes=512),
}
# fmt: on


class SpadeUNet(nn.Module):
    """The UNet on [noisy latents, each class's share], with the mask's classes in its SPADE norms."""

    def __init__(self, preset: LdmPreset) -> None:
        super().__init__()
        self.unet = SPADEDiffusionModelUNet(
            in_channels=preset.latent_channels + CLASSES,
            out_channels=preset.latent_channels,
            label_nc=CLASSES,
            spade_intermediate_channels=preset.spade_channels,
            **monai_options(preset),
        )

    def forward(self, state: Tensor, t: Tensor, mask: Tensor) -> Tensor:
        classes = one_hot(mask, CLASSES, state.dtype)
        shares = F.avg_pool2d(classes, classes.shape[-1] // state.shape[-1])
        out: Tensor = self.unet(torch.cat([state, shares], dim=1), t, classes)
        return out


class CmrLdmImage(HeartPainter):
    """The state is the image's latents, scaled to a standard deviation of 1; ``finish`` decodes them.

    The network learns on latents that are codes of the VQ-VAE's. What it draws is decoded as it is, as the authors do:
    the nearest code of a latent between two would hang on the last bit of rounding.
    """

    name: ClassVar[str] = "cmr_ldm_image"
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    phases: ClassVar[tuple[str, ...]] = ("autoencoder", "denoiser")

    preset: LdmPreset
    latent_std: Tensor
    code_use: Tensor  # how many latents of a batch have each code: a moving average over training

    def __init__(self, preset: LdmPreset) -> None:
        super().__init__()
        self.describe_heart(preset)
        self.sample_shape = (preset.latent_channels, preset.unet_size, preset.unet_size)
        levels = len(preset.autoencoder_widths)
        self.autoencoder = VQModel(
            in_channels=1,
            out_channels=1,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            block_out_channels=preset.autoencoder_widths,
            layers_per_block=preset.layers,
            latent_channels=preset.latent_channels,
            num_vq_embeddings=preset.codes,
            norm_num_groups=preset.norm_groups,
        )
        self.autoencoder.quantize.legacy = False  # else diffusers weighs the two halves of the loss the wrong way round
        self.denoiser = SpadeUNet(preset)
        self.register_buffer("latent_std", torch.ones(()))
        self.register_buffer("code_use", torch.ones(preset.codes))

    def trainable(self, phase: str) -> nn.Module:
        return {"autoencoder": self.autoencoder, "denoiser": self.denoiser}[phase]

    def loss(self, phase: str, batch: Batch, generator: torch.Generator) -> Tensor:
        if phase == "denoiser":
            return super().loss(phase, batch, generator)
        image = batch["image"]
        latents = self.autoencoder.encode(image).latents.float()
        quantised, commitment, (_, _, codes) = self.autoencoder.quantize(latents)
        decoded = self.autoencoder.decode(quantised, force_not_quantize=True).sample.float()
        if self.training:
            self.restart_codes(latents, codes, generator)
        return F.mse_loss(decoded, image) + commitment

    @torch.no_grad()
    def restart_codes(self, latents: Tensor, codes: Tensor, generator: torch.Generator) -> None:
        """Codes that hardly any latent has become latents of this batch: Dhariwal et al. 2020 (arXiv 2005.00341), 3.

        Else a few codes do all the work: on 309 slices of ACDC, 2 of 512 did.
        """
        book = self.autoencoder.quantize.embedding.weight
        self.code_use.lerp_(torch.bincount(codes, minlength=len(book)).float(), 0.02)
        unused = self.code_use < 0.1 * len(codes) / len(book)
        candidates = latents.permute(0, 2, 3, 1).flatten(0, 2)
        chosen = torch.randint(len(candidates), (int(unused.sum()),), generator=generator)
        book[unused] = candidates[chosen.to(book.device)]
        self.code_use[unused] = len(codes) / len(book)
        if torch.distributed.is_initialized():  # every process has seen other latents
            torch.distributed.broadcast(book, 0)

    @torch.no_grad()
    def begin(self, phase: str, dataset: Dataset[Any]) -> None:
        if phase == "denoiser":
            count = len(dataset)  # type: ignore[arg-type]
            some = Subset(dataset, range(0, count, -(-count // MEASURED)))
            images = (batch["image"].to(self.latent_std.device) for batch in DataLoader(some, self.preset.batch))
            self.latent_std.copy_(torch.cat([self.encoded(image) for image in images]).std())

    def encoded(self, image: Tensor) -> Tensor:
        """The codes of images [B, 1, H, W] in [-1, 1]: latents float32 [B, C, h, w], not yet scaled."""
        quantised, *_ = self.autoencoder.quantize(self.autoencoder.encode(image).latents.float())
        latents: Tensor = quantised
        return latents

    @torch.no_grad()
    def data(self, batch: Batch) -> Tensor:
        return self.encoded(batch["image"]) / self.latent_std

    def finish(self, sample: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        decoded = self.autoencoder.decode(sample * self.latent_std, force_not_quantize=True).sample
        return super().finish(decoded)
