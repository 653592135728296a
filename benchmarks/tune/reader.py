"""What a network finds in pictures that learnt to find it in real ones: whether they follow their masks."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.evaluation.cache import Cache
from benchmarks.evaluation.pairs import Floats, Masks, Pairs
from benchmarks.evaluation.segmentation import Segmenter, segmented
from benchmarks.evaluation.statistics import Array
from benchmarks.tune.gate import agreement


@dataclass(frozen=True)
class Reader:
    """Masks uint8 [N, S, S] of images [N, S, S] in [0, 1]; ``identity`` is what they depend on beside the images."""

    identity: str
    read: Callable[[Floats], Masks]

    def agreement(self, pairs: Pairs, cache: Cache) -> Array:
        """Dice [N] of each mask with what is found in its picture: the mean over classes that either has."""
        digest = hashlib.sha256(np.ascontiguousarray(pairs.images).data).hexdigest()
        made_of = [self.identity, digest, pairs.size]
        found = cache.arrays("read", made_of, lambda: {"masks": self.read(pairs.images)})
        return agreement(pairs.masks, found["masks"])


def reader_of(segmenter: Segmenter) -> Reader:
    return Reader(f"DynUNet {segmenter.identity}", lambda images: segmented(segmenter.network, images))
