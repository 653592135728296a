"""Images and masks of any size become squares of the training size."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


def fit_image(image: Floats, size: int) -> Floats:
    """An image [H, W] as [size, size]: padded to a square with zeros, then area-averaged, or enlarged bilinearly."""
    square = _centred_in_square(image)
    if size > len(square):
        return np.array(Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR))
    weights = _overlaps(len(square), size)
    return weights @ square @ weights.T


def fit_mask(mask: Bools, size: int) -> tuple[NDArray[np.uint8], int]:
    """A mask [H, W] as [size, size] of 0 and 1, laid out like ``fit_image``, and how many lesions it is too coarse for.

    A pixel is set where at least half its area is lesion. A connected lesion that would leave no pixel keeps the one
    under its centre, and is counted.
    """
    square = _centred_in_square(mask)
    weights = _overlaps(len(square), size)
    fitted = weights @ square.astype(np.float32) @ weights.T >= 0.5

    labels, count = ndimage.label(square, structure=np.ones((3, 3)))
    rows, columns = np.nonzero(square)
    scale = size / len(square)
    shown = fitted[((rows + 0.5) * scale).astype(int), ((columns + 0.5) * scale).astype(int)]
    lost = np.setdiff1d(np.arange(1, count + 1), labels[rows[shown], columns[shown]])
    for row, column in ndimage.center_of_mass(square, labels, lost):
        fitted[int((row + 0.5) * scale), int((column + 0.5) * scale)] = True
    return fitted.astype(np.uint8), len(lost)


def fit_classes(classes: NDArray[np.uint8], size: int, count: int) -> NDArray[np.uint8]:
    """Class indices below ``count`` [H, W] as [size, size], laid out like ``fit_image``.

    A pixel gets the class with the greatest share of its area; of equal shares the highest, never the background 0.
    """
    square = _centred_in_square(classes)
    weights = _overlaps(len(square), size)
    shares = [weights @ (square == index).astype(np.float32) @ weights.T for index in reversed(range(count))]
    return (count - 1 - np.argmax(shares, axis=0)).astype(np.uint8)


def _centred_in_square(pixels: NDArray[Any]) -> NDArray[Any]:
    side = max(pixels.shape)
    missing = [side - extent for extent in pixels.shape]
    return np.pad(pixels, [(gap // 2, gap - gap // 2) for gap in missing])


def _overlaps(pixels: int, size: int) -> Floats:
    """Weights [size, pixels]: the share of each of `size` equal intervals that every pixel covers."""
    edges = np.arange(size + 1) * (pixels / size)
    first = np.arange(pixels)
    covered = np.minimum(edges[1:, None], first + 1) - np.maximum(edges[:-1, None], first)
    return (covered.clip(min=0) * (size / pixels)).astype(np.float32)
