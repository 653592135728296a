"""How like a picture is to the real one of the same mask."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.evaluation.pairs import EvaluationError, Pairs
from serving.bundle import file_digest
from training.state_dict import read_published

KERNEL, SIGMA = 11, 1.5
SCALES = (0.0448, 0.2856, 0.3001, 0.2363)  # MS-SSIM's weights of four scales, as the cardiac paper's code has them
VGG = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of LPIPS's colours in [-1, 1]


def partners(real: Pairs, synthetic: Pairs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of real and of synthetic pairs with the same mask, each real one once; empty masks make no pair."""
    rows: dict[bytes, list[int]] = {}
    for row, mask in enumerate(real.masks):
        if mask.any():
            rows.setdefault(mask.tobytes(), []).append(row)
    found = [(rows[mask.tobytes()].pop(0), k) for k, mask in enumerate(synthetic.masks) if rows.get(mask.tobytes())]
    both = np.array(found, np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def of_other_patients(pairs: Pairs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of pairs, and for each that of another patient's; as many as there can be, none of one patient alone."""
    rows = np.argsort(pairs.groups, kind="stable")
    partners = np.roll(rows, np.bincount(pairs.groups).max())
    apart = pairs.groups[rows] != pairs.groups[partners]
    return rows[apart], partners[apart]


def scales_for(size: int) -> tuple[float, ...]:
    """As many of the four scales as pictures of this size have: torchmetrics wants more than ten pixels at the last."""
    fitting = 1
    while fitting < len(SCALES) and size // 2**fitting > KERNEL - 1:
        fitting += 1
    return SCALES[:fitting]


def likeness(real: Pairs, synthetic: Pairs, lpips: "Lpips | None" = None) -> Mapping[str, NDArray[np.float64]]:
    """PSNR (dB), SSIM and MS-SSIM of each two pictures, whose range is 1, and LPIPS if its network is given."""
    import torch
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure,
        structural_similarity_index_measure,
    )

    one, other = (torch.from_numpy(pairs.images)[:, None] for pairs in (real, synthetic))
    gaussian: dict[str, Any] = {"kernel_size": KERNEL, "sigma": SIGMA, "data_range": 1.0, "reduction": "none"}
    errors = ((one - other) ** 2).mean((1, 2, 3)).clamp(min=1e-12)
    found: dict[str, Any] = {
        "PSNR": -10 * torch.log10(errors),
        "SSIM": structural_similarity_index_measure(one, other, **gaussian),
    }
    betas = scales_for(real.size)
    if len(betas) > 1:
        found["MS-SSIM"] = multiscale_structural_similarity_index_measure(
            one, other, betas=betas, normalize="relu", **gaussian
        )
    if lpips is not None:
        found["LPIPS"] = lpips(one, other)
    return {name: values.double().reshape(-1).numpy() for name, values in found.items()}


class Lpips:
    """Zhang et al. 2018 (arXiv 1801.03924) on VGG16: its heads are in torchmetrics, its weights in a file of the user.

    Raises EvaluationError if the file holds no state dict of torchvision's vgg16.
    """

    def __init__(self, file: Path) -> None:
        import torch
        import torchmetrics
        from torch import nn

        heads = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "vgg.pth"
        try:
            self.digest = file_digest(file)
            if file.suffix == ".safetensors":
                from safetensors.torch import load_file

                weights = load_file(file)
            else:
                weights = read_published(file)
            self._blocks, below, place = [], 3, 0
            for widths in VGG:
                block: list[nn.Module] = [nn.MaxPool2d(2)] if place else []
                place += 1 if place else 0
                for width in widths:
                    convolution = nn.Conv2d(below, width, 3, padding=1)
                    convolution.load_state_dict(
                        {part: weights[f"features.{place}.{part}"].float() for part in ("weight", "bias")}
                    )
                    block += [convolution, nn.ReLU()]
                    below, place = width, place + 2
                self._blocks.append(nn.Sequential(*block).eval().requires_grad_(False))
        except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise EvaluationError(f"{file} holds no weights of torchvision's vgg16: {reason}") from error
        kept = torch.load(heads, map_location="cpu", weights_only=True)
        self._heads = [kept[f"lin{k}.model.1.weight"] for k in range(len(VGG))]
        self._shift, self._scale = (torch.tensor(each).view(1, 3, 1, 1) for each in (SHIFT, SCALE))

    def __call__(self, one: Any, other: Any) -> Any:
        """Distances [N] of grey pictures [N, 1, S, S] in [0, 1]."""
        import torch

        parts = zip(one.split(16), other.split(16), strict=True)
        with torch.no_grad():
            return torch.cat([self._distances(*part) for part in parts])

    def _distances(self, one: Any, other: Any) -> Any:
        import torch

        seen = [((side.repeat(1, 3, 1, 1) * 2 - 1) - self._shift) / self._scale for side in (one, other)]
        total = torch.zeros(len(one))
        for block, head in zip(self._blocks, self._heads, strict=True):
            seen = [block(side) for side in seen]
            units = [side / (side.square().sum(1, keepdim=True).sqrt() + 1e-10) for side in seen]
            total += torch.nn.functional.conv2d((units[0] - units[1]).square(), head).mean((1, 2, 3))
        return total
