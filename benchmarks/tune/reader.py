"""What a network finds in pictures that learnt to find it in real ones: whether they follow their masks."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.evaluation.cache import Cache
from benchmarks.evaluation.pairs import Floats, Masks, Pairs
from benchmarks.evaluation.segmentation import Segmenter, segmented, weights_of
from benchmarks.evaluation.statistics import Array
from benchmarks.tune.gate import Followed, agreement


@dataclass(frozen=True)
class Reader:
    """Masks uint8 [N, S, S] of images [N, S, S] in [0, 1]; ``identity`` is what they depend on beside the images, and
    ``learnt`` says from what it learnt."""

    identity: str
    learnt: str
    read: Callable[[Floats], Masks]

    def found(self, pairs: Pairs, cache: Cache) -> Masks:
        digest = hashlib.sha256(np.ascontiguousarray(pairs.images).data).hexdigest()
        kept = cache.arrays("read", [self.identity, digest, pairs.size], lambda: {"masks": self.read(pairs.images)})
        masks: Masks = kept["masks"]
        return masks

    def agreement(self, pairs: Pairs, cache: Cache) -> Array:
        """Dice [N] of each mask with what is found in its picture: the mean over classes that either has, NaN where
        there is nothing and nothing is found."""
        return agreement(pairs.masks, self.found(pairs, cache))

    def told(self, real: Pairs, cache: Cache) -> str:
        """What is to be known of it."""
        dice = np.nanmean(self.agreement(real, cache))
        return f"read by a segmenter of {self.learnt}; Dice {dice:.3f} on the real pairs"

    def followed(self, pairs: Pairs, cache: Cache, seed: int) -> Followed:
        """The same, and with what is found in the picture of another, drawn by chance."""
        found = self.found(pairs, cache)
        order = np.random.default_rng(seed).permutation(len(pairs))
        others = np.empty(len(pairs), np.int64)
        others[order] = np.roll(order, 1)
        return Followed(agreement(pairs.masks, found), agreement(pairs.masks, found[others]))


def reader_of(segmenter: Segmenter) -> Reader:
    network, real = segmenter.network, segmenter.real
    digest = hashlib.sha256(b"".join(values.tobytes() for values in weights_of(network).values())).hexdigest()
    learnt = f"{len(real)} of {real.name}, split {real.facts.get('split', 'all')}"
    identity = f"DynUNet {segmenter.identity}, weights of sha256 {digest}"
    return Reader(identity, learnt, lambda images: segmented(network, images))
