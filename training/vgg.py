"""What VGG16 sees in a picture: Simonyan and Zisserman 2015 (arXiv 1409.1556), up to its fourth block."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.state_dict import read_published

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512))  # of convolutions; a maximum is between two blocks
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours


class Vgg16Features(nn.Module):
    """Grey pictures [B, 1, H, W] in [-1, 1] -> features [B, 256, H/4, W/4], torchvision's ``features[:16]``.

    With 4 ``blocks`` they are [B, 512, H/8, W/8], ``features[:23]``.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.widths = WIDTHS[:blocks]
        self.features = nn.ModuleDict()
        below, place = 3, 0
        for block in self.widths:
            for width in block:
                self.features[str(place)] = nn.Conv2d(below, width, 3, padding=1)
                below, place = width, place + 2
            place += 1
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(1, 3, 1, 1), persistent=False)

    def stages(self, picture: Tensor) -> Iterator[Tensor]:
        """The features after each block: relu1_2, relu2_2, relu3_3 and so on."""
        seen = ((picture / 2 + 0.5) - self.mean) / self.deviation
        place = 0
        for number, block in enumerate(self.widths):
            if number:
                seen = F.max_pool2d(seen, 2)
                place += 1
            for _ in block:
                seen = F.relu(self.features[str(place)](seen))
                place += 2
            yield seen

    def forward(self, picture: Tensor) -> Tensor:
        *_, last = self.stages(picture)
        return last


def load_vgg16(file: Path, blocks: int = 3) -> Vgg16Features:
    """From a state dict of torchvision's vgg16, of which the first convolutions are read, as torch.save writes it.

    Raises ValueError if it is none.
    """
    content, features = read_published(file), Vgg16Features(blocks)
    weights = content if isinstance(content, Mapping) else {}
    for name, wanted in features.state_dict().items():
        found = weights.get(name)
        shape = tuple(found.shape) if isinstance(found, Tensor) else None
        if not isinstance(found, Tensor) or shape != tuple(wanted.shape):
            raise ValueError(
                f"{file} holds no weights of torchvision's vgg16: it has {name} of {shape}, not {tuple(wanted.shape)}"
            )
        if not found.isfinite().all():
            raise ValueError(f"{file}: {name} holds NaN or infinity")
        wanted.copy_(found)
    return features.requires_grad_(False).eval()
