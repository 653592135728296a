"""Standard normal noise that belongs to a sample alone: every draw is a block of its own in the sample's own stream.

The streams are Philox 4x64 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), a counter-based
generator: any block of any stream is reached at once, so a draw depends on no other draw. What makes normals of a
block is numpy's ziggurat: it takes as many words as it happens to need and ends with the C library's log, so a draw
cannot be shared out, and no GPU has its bits. Draws of several samples can: numpy lets other threads run meanwhile.
"""

import functools
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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


def draw_starts(
    seeds: Sequence[int], stage: str, shape: tuple[int, int, int], noise_channels: int
) -> NDArray[np.float32]:
    """The states [N, C, H, W] that trajectories start from: noise, and 0 in the channels after ``noise_channels``."""
    states = np.zeros((len(seeds), *shape), np.float32)
    draw_all(seeds, stage, START, [state[:noise_channels] for state in states])
    return states


def draw_all(seeds: Sequence[int], stage: str, number: int, outs: Sequence[NDArray[np.float32]]) -> None:
    """The same draw of several streams, at the same time; what each gets is what ``draw`` gives."""
    draw_each(seeds, stage, [number] * len(seeds), outs)


def draw_each(seeds: Sequence[int], stage: str, numbers: Sequence[int], outs: Sequence[NDArray[np.float32]]) -> None:
    """A draw of each of several streams, as ``draw_all``."""
    if len(seeds) == 1:
        draw(seeds[0], stage, numbers[0], outs[0])
        return
    for _ in _threads().map(lambda seed, number, out: draw(seed, stage, number, out), seeds, numbers, outs):
        pass  # an error of a thread is raised here


@functools.cache
def _threads() -> ThreadPoolExecutor:
    """As many as this process may use processors; they are started when they are first needed."""
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="noise")


def _stage_word(stage: str) -> int:
    return int.from_bytes(hashlib.sha256(stage.encode()).digest()[:8], "little")
