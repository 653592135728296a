"""Standard normal noise that belongs to a sample alone: every draw is a block of its own in the sample's own stream.

The streams are Philox 4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), a counter-based
generator: any block of any stream is reached at once, so a draw depends on no other draw.
"""

import hashlib
from operator import index

import numpy as np
from numpy.typing import NDArray

START = 0  # the draw that starts a trajectory; draw r + 1 is the noise of row r of the solver's table


def draw(seed: int, stage: str, number: int, out: NDArray[np.float32]) -> None:
    """Fill ``out`` (float32, C-contiguous) with draw ``number`` >= 0 of the stream (seed, stage), 0 <= seed < 2**63.

    Draws of two streams, or of two numbers, share nothing: the stream is the generator's key, the number the high word
    of its counter. Raises TypeError for a seed or number that is no integer, ValueError for one out of range.
    """
    seed, number = index(seed), index(number)
    if not (0 <= seed < 2**63 and number >= 0):
        raise ValueError(f"seed is {seed} and number {number}; they must be from 0 to 2**63 - 1, and 0 or more")
    key = np.array([seed, _stage_word(stage)], np.uint64)
    philox = np.random.Philox(counter=np.array([0, 0, 0, number], np.uint64), key=key)
    np.random.Generator(philox).standard_normal(dtype=np.float32, out=out)


def _stage_word(stage: str) -> int:
    return int.from_bytes(hashlib.sha256(stage.encode()).digest()[:8], "little")
