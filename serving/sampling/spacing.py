"""Which training timesteps a number of steps takes, largest first: Lin et al. 2023 (arXiv 2305.08891), table 2.

Each as diffusers and MONAI have it, int64 [steps]. ``last`` is the number of training timesteps, ``offset`` what is
added to timesteps that would end at 0; where it would lead past the last timestep, it is what there is room for.
"""

import numpy as np
from numpy.typing import NDArray

SPACINGS = ("leading", "trailing", "linspace")

Timesteps = NDArray[np.int64]


def spaced(spacing: str, last: int, steps: int, offset: int) -> Timesteps:
    """For samplers that step from timestep to timestep: DDPM, DDIM."""
    if spacing == "linspace":
        offset = min(offset, last - steps)
        if steps == 1:
            return np.array([last - 1])  # as MONAI; diffusers' would be 0, where nothing is left to do
        return np.linspace(0, last - 1 - offset, steps).round().astype(np.int64)[::-1] + offset
    if spacing == "leading":
        return _multiples(last // steps, steps, last, offset)
    return trailing(last, steps)


def spaced_above_clean(spacing: str, last: int, steps: int, offset: int) -> Timesteps:
    """For DPM-Solver, which takes clean data for one more timestep; all timesteps if there are as many steps."""
    if steps == last:
        return np.arange(last)[::-1]
    if spacing == "linspace":
        return np.linspace(0, last - 1, steps + 1).round().astype(np.int64)[:0:-1]
    if spacing == "leading":
        return _multiples(last // (steps + 1), steps + 1, last, offset)[:-1]
    return trailing(last, steps)


def trailing(last: int, steps: int) -> Timesteps:
    """Every (last / steps)-th, rounded, from last - 1 down."""
    return np.rint(np.arange(steps, 0, -1) * last / steps).astype(np.int64) - 1


def _multiples(ratio: int, steps: int, last: int, offset: int) -> Timesteps:
    room = last - 1 - (steps - 1) * ratio
    return np.arange(steps)[::-1] * ratio + min(offset, room)
