"""imported: a 2-D denoiser of diffusers or MONAI that others have trained, alone or in the latents of an autoencoder.

Rombach et al. 2022 (arXiv 2112.10752) for the latents. It may draw under a mask that lies beside the noisy picture, as
of Konz et al. 2024 (arXiv 2402.05210). It learns nothing here: ``medgen import`` makes its checkpoints.
"""

import dataclasses
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from serving.bundle import Condition, Output
from serving.sampling.solvers import Schedule
from training.denoiser import Denoiser
from training.family import Batch, Preset, SteppingPreset
from training.painters import one_hot

LIBRARIES = {"diffusers": "diffusers", "monai": "monai.networks.nets"}
DENOISERS = ("UNet2DModel", "UNet2DConditionModel", "DiffusionModelUNet")
AUTOENCODERS = ("AutoencoderKL",)

MOST_CLASSES = 256
Encoding = Literal["one-hot", "index", "index/255"]
ENCODINGS: dict[str, Callable[[Tensor, int, torch.dtype], Tensor]] = {
    "one-hot": lambda mask, classes, dtype: one_hot(mask, classes, dtype),
    "index": lambda mask, classes, dtype: mask.to(dtype),
    "index/255": lambda mask, classes, dtype: mask.to(dtype) / 255,
}


@dataclasses.dataclass(frozen=True)
class ImportedPreset(SteppingPreset):
    """Adds the networks as their library makes them, and what their files do not say.

    network, autoencoder: {"library", "class", "config"}, of which the config is what the class is called with.
    state: channels, rows and columns of what is denoised. scale, shift: an autoencoder decodes latents / scale + shift.
    low, high: between them were the grey levels of the pictures that it learned from. spacing: of pixels, in mm.
    labels: the classes of the mask that it draws under, if it does. mask_encoding: in which form it sees them.
    classes: what its class labels mean, of a network that draws under such.
    """

    network: Mapping[str, Any]
    autoencoder: Mapping[str, Any] | None
    state: tuple[int, int, int]
    scale: float
    shift: float
    low: float
    high: float
    spacing: tuple[float, float] | None
    modality: Literal["MG", "MR"] | None
    labels: tuple[str, ...]
    mask_encoding: Encoding | None
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.state) < 1:
            raise ValueError(f"the state is {self.state}; channels, rows and columns must be at least 1")
        if not self.low < self.high:
            raise ValueError(f"the range is from {self.low} to {self.high}; it must rise")
        if self.scale == 0:
            raise ValueError("the scale is 0; latents are divided by it")
        if self.spacing is not None and not min(self.spacing) > 0:
            raise ValueError(f"the spacing is {self.spacing}; both must be above 0 mm")
        if (self.mask_encoding is None) != (not self.labels):
            raise ValueError("the labels of a mask and its encoding go together: give both or neither")
        if self.classes and self.labels:
            raise ValueError("a label and a mask at once are not possible: a model has one condition")
        if len(self.classes) != (expected := self.network["config"].get("num_class_embeds") or 0):
            raise ValueError(f"the network has {expected} classes, and {len(self.classes)} were named; name each once")
        if numbers := [name for name in self.classes if name.isdecimal()]:
            raise ValueError(f"a class is called {numbers[0]!r}; a number is a class's index: call it otherwise")
        if len(self.classes) > MOST_CLASSES:
            raise ValueError(f"the network has {len(self.classes)} classes; at most {MOST_CLASSES} are possible")
        if self.labels and self.autoencoder is not None:
            raise ValueError("a mask beside latents is not possible: how it is made smaller is the authors' affair")


# What it is to be filled in as, small enough to look at.
PRESETS = {
    "small": ImportedPreset(
        size=8, schedule=Schedule("linear", 1000, 1e-4, 0.02, "v", "leading"), clip=1.0, default_solver="ddim",
        default_steps=50, batch=1, steps=(), learning_rate=0.0, lr_schedule="constant", weight_decay=0.0, ema_decay=0.0,
        network={"library": "diffusers", "class": "UNet2DModel",
                 "config": {"in_channels": 1, "out_channels": 1, "block_out_channels": [32],
                            "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}},
        autoencoder=None, state=(1, 8, 8), scale=1.0, shift=0.0, low=-1.0, high=1.0, spacing=None, modality=None,
        labels=(), mask_encoding=None, classes=()),
}  # fmt: skip


def made(described: Mapping[str, Any], classes: tuple[str, ...]) -> nn.Module:
    """The untrained network; raises ValueError for one that is not among ``classes``, or that the library refuses."""
    name, library = described["class"], described["library"]
    if name not in classes:
        raise ValueError(f"{library} has no {name!r} that medgen imports; there are {', '.join(classes)}")
    if heard := hears(described["config"]):
        raise ValueError(f"the {name} has {heard}: it hears a text or the like, which medgen cannot give it")
    try:
        network: nn.Module = getattr(import_module(LIBRARIES[library]), name)(**described["config"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{library} makes no {name} of its config here: {error}") from error
    return network


def hears(config: Mapping[str, Any]) -> str | None:
    """What of a network's config is for more than the state, the time, a mask and a class; without it one with
    cross-attention runs where the widths happen to agree, and attends to itself."""
    blocks = [config.get("mid_block_type"), *config.get("down_block_types", ()), *config.get("up_block_types", ())]
    for block in blocks:
        if "CrossAttn" in str(block):
            return str(block)
    settings = ("with_conditioning", "encoder_hid_dim", "encoder_hid_dim_type", "addition_embed_type")
    return next((f"{name} {config[name]!r}" for name in settings if config.get(name)), None)


class Bare(nn.Module):
    """The network as a function of tensors: (state, t), or with a mask or a label as a third -> what it predicts."""

    def __init__(self, network: nn.Module, preset: ImportedPreset) -> None:
        super().__init__()
        self.net = network
        self.preset = preset
        # One of diffusers that is made to hear a text gets none.
        self.texts = (None,) if preset.network["class"] == "UNet2DConditionModel" else ()

    def forward(self, state: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        classes = {}
        if condition is not None and self.preset.classes:
            classes["class_labels"] = condition[:, 0]
        elif condition is not None:
            encoded = ENCODINGS[str(self.preset.mask_encoding)](condition, len(self.preset.labels), state.dtype)
            state = torch.cat([state, encoded], dim=1)
        found = self.net(state, t, *self.texts, **classes)
        out: Tensor = found if isinstance(found, Tensor) else found.sample
        return out


class Imported(Denoiser):
    """The state is the picture, or its latents; ``finish`` decodes them, and brings the range to 0 .. 1."""

    name: ClassVar[str] = "imported"
    presets: ClassVar[Mapping[str, Preset]] = PRESETS
    phases: ClassVar[tuple[str, ...]] = ()

    preset: ImportedPreset

    def __init__(self, preset: ImportedPreset) -> None:
        super().__init__()
        self.preset = preset
        self.denoiser = Bare(made(preset.network, DENOISERS), preset)
        self.autoencoder = None if preset.autoencoder is None else made(preset.autoencoder, AUTOENCODERS)
        self.sample_shape = preset.state
        with torch.no_grad():
            picture = tuple(self.decoded(torch.zeros(1, *preset.state)).shape[1:])
        self.outputs = (
            Output("image", "float32", picture, low=0.0, high=1.0, spacing=preset.spacing, modality=preset.modality),
        )
        if preset.labels:
            shape, classes = (1, *preset.state[1:]), len(preset.labels)
            self.condition = Condition("mask", shape, classes, preset.labels, preset.spacing)

        if preset.classes:
            self.condition = Condition("label", (1,), len(preset.classes), preset.classes)

    def data(self, batch: Batch) -> Tensor:
        """The states that pictures have without noise; of latents the mean of those that are possible."""
        low, high = self.preset.low, self.preset.high
        picture = low + (batch["image"] / 2 + 0.5) * (high - low)
        if self.autoencoder is None:
            return picture
        encode: Any = self.autoencoder.encode
        found = encode(picture)
        mean: Tensor = found[0] if isinstance(found, tuple) else found.latent_dist.mean
        return (mean - self.preset.shift) * self.preset.scale

    def decoded(self, state: Tensor) -> Tensor:
        """Pictures [B, C, H, W] in the range that was trained on."""
        if self.autoencoder is None:
            return state
        decode: Any = self.autoencoder.decode
        found = decode(state / self.preset.scale + self.preset.shift)
        picture: Tensor = found if isinstance(found, Tensor) else found.sample
        return picture

    def finish(self, sample: Tensor, condition: Tensor | None = None) -> tuple[Tensor, ...]:
        low, high = self.preset.low, self.preset.high
        return (((self.decoded(sample) - low) / (high - low)).clamp(0, 1),)
