"""How far two sets of pictures are apart: Fréchet's distance over features that are named."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

BANDS = 4
Features = Callable[[Tensor], NDArray[np.float64]]


def pyramid_bands(pictures: Tensor) -> NDArray[np.float64]:
    """Pictures [N, 1, S, S] in [0, 1] -> [N, 6]: mean, deviation, and the logarithm of each band's deviation.

    The bands are those of a Laplacian pyramid: how much there is of details of 1, 2, 4 and 8 pixels. So few numbers can
    be compared over a few dozen pictures, of which Inception's 2048 cannot.
    """
    found = [pictures.mean((1, 2, 3)), pictures.std((1, 2, 3))]
    for _ in range(BANDS):
        smaller = F.avg_pool2d(pictures, 2)
        band = pictures - F.interpolate(smaller, scale_factor=2, mode="bilinear", align_corners=False)
        found.append((band.std((1, 2, 3)) + 1e-4).log())
        pictures = smaller
    return torch.stack(found, 1).double().numpy()


def scripted(file: Path) -> Features:
    """The features of a TorchScript network, such as Inception's: pictures [N, 3, S, S] in [0, 1] -> [N, D]."""
    network = torch.jit.load(str(file), map_location="cpu").eval()

    @torch.no_grad()
    def features(pictures: Tensor) -> NDArray[np.float64]:
        return np.asarray(network(pictures.expand(-1, 3, -1, -1)).double().numpy())

    return features
