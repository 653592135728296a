"""The noise that each training timestep adds, by the name of its schedule."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def linear(levels: int, start: float, end: float) -> Array:
    """Ho et al. 2020 (arXiv 2006.11239), section 4."""
    return np.linspace(start, end, levels)


def scaled_linear(levels: int, start: float, end: float) -> Array:
    """Square roots evenly spaced: the code of Rombach et al. 2022 (arXiv 2112.10752)."""
    return np.linspace(start**0.5, end**0.5, levels) ** 2


def cosine(levels: int, start: float, end: float) -> Array:
    """Nichol and Dhariwal 2021 (arXiv 2102.09672), eq. 17, each beta 0.999 at most; start and end play no part."""
    share = np.cos((np.arange(levels + 1) / levels + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - share[1:] / share[:-1], 0.999)


def sigmoid(levels: int, start: float, end: float) -> Array:
    """The logistic function from -6 to 6, between start and end: Xu et al. 2022 (arXiv 2203.02923), in their code."""
    return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, levels)))


BETAS: dict[str, Callable[[int, float, float], Array]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "cosine": cosine,
    "sigmoid": sigmoid,
}
