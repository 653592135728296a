"""What the cardiac families have in common: the classes of their masks, and what they take and give.

Edirisooriya et al., "Balancing Fidelity, Utility, and Privacy in Synthetic Cardiac MRI Generation": a mask model draws
the classes, and one of three image models the picture under them.
"""

from serving.bundle import Output
from training.data.classes import FIELD_OF_VIEW, HEART
from training.painters import Painter, PainterPreset

CLASSES = len(HEART)


def mask_output(size: int) -> Output:
    """Class indices uint8 [1, size, size]."""
    return Output("mask", "uint8", (1, size, size), low=0, high=CLASSES - 1, labels=HEART, spacing=spacing(size))


def image_output(size: int) -> Output:
    """Grey levels float32 [1, size, size] in [0, 1]."""
    return Output("image", "float32", (1, size, size), low=0.0, high=1.0, spacing=spacing(size), modality="MR")


def spacing(size: int) -> tuple[float, float]:
    """Millimetres between the pixels of a heart that is drawn in ``size`` rows and columns."""
    pixel = FIELD_OF_VIEW / size
    return pixel, pixel


class HeartPainter(Painter):
    """A slice of a heart under a mask of its structures."""

    def describe_heart(self, preset: PainterPreset) -> None:
        self.describe(preset, HEART, image_output(preset.size))
