"""Samples as PNG files to look at."""

import math
from pathlib import Path

from serving.sample_set import Samples
from serving.writers.layout import BLOCK, Layout, Shapes
from serving.writers.npz import check_name
from serving.writers.pictures import drawings


class Png(Layout):
    """masks/, images/ and overlays/ (images with outlines): one 8-bit PNG a sample, named by its seed."""

    name = "png"

    def bytes_a_sample(self, shapes: Shapes) -> int:
        pictures = [math.prod(shape) for _, shape in shapes.values() if len(shape) == 3 and shape[0] == 1]
        overlay = 3 * max(pictures) if len(pictures) > 1 else 0
        return sum(pictures) + overlay + (len(pictures) + bool(overlay)) * BLOCK

    def write(self, samples: Samples, folder: Path, part: str) -> None:
        for output in samples.outputs:
            check_name(output.name, "overlays")
        for row, name in enumerate(samples.names):
            for kind, picture in drawings(samples, row).items():
                (folder / kind).mkdir(exist_ok=True)
                picture.save(folder / kind / f"{name}.png")
