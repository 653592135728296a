"""Pairs, or images alone, and the pairing of two kinds of images that have no pairs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from training.data.listing import Listing
from training.data.preparation.resize import Floats
from training.data.problems import DataError, some


class LoadedPairs(Dataset[dict[str, Tensor]]):
    """Decoded (image, mask) pairs: items are {"image": float32 [1, S, S] in [-1, 1], "mask": uint8 [1, S, S]}.

    Without masks (None) items have the image alone. Masks hold class indices, which ``labels`` names. Five bytes a
    pixel stay in memory, or in a mapped file where they are many (``Spooled``); loader processes that are forked share
    them. ``names`` are the files' stems, with the slice
    where a file holds several. ``reading`` is what the reader decided, as JSON holds it, ``warnings`` what of it may
    be wrong, and ``files`` what the pairs were read from. ``sizes`` are those of the breasts in the pictures, in pixels
    of their files; None where they are not known.

    Raises:
        DataError: two pairs have the same name.
    """

    def __init__(
        self,
        names: Sequence[str],
        images: Sequence[Floats],
        masks: Sequence[NDArray[np.uint8]] | None,
        labels: tuple[str, ...],
        reading: Mapping[str, Any] | None = None,
        warnings: Sequence[str] = (),
        files: Listing | None = None,
        sizes: Sequence[float] | None = None,
    ) -> None:
        self.sizes = sizes
        self.names, self.labels = tuple(names), labels
        if twice := [name for name, count in Counter(self.names).items() if count > 1]:
            raise DataError(f"more than one pair has the name {some(twice)}")
        self.reading, self.warnings, self.files = dict(reading or {}), tuple(warnings), dict(files or {})
        self.items = [{"image": torch.from_numpy(image)[None]} for image in images]
        if masks is not None:
            for item, mask in zip(self.items, masks, strict=True):
                item["mask"] = torch.from_numpy(mask)[None]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return dict(self.items[index])


PARTNERS = 64  # at most, that an image meets in turn


class Images(Protocol):
    """Items have "image"."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Tensor]: ...


class Unpaired(Dataset[dict[str, Tensor]]):
    """Images of two kinds: items are {"a": float32 [1, S, S] in [-1, 1], "b": the same}.

    Each image of the larger kind is there with up to PARTNERS of the other, so that no image has one partner alone.
    ``names`` says which kinds a and b are.
    """

    labels: tuple[str, ...] = ()

    def __init__(self, a: Images, b: Images, names: tuple[str, str]) -> None:
        self.a, self.b, self.names = a, b, names
        self.counts = len(a), len(b)
        self.partners = min(*self.counts, PARTNERS)

    @property
    def files(self) -> Listing:
        """Of both kinds, each file with the kind in front."""
        kinds = zip(self.names, (self.a, self.b), strict=True)
        listings = {name: kind.files for name, kind in kinds if isinstance(kind, LoadedPairs)}
        return {f"{name}/{file}": stat for name, files in listings.items() for file, stat in files.items()}

    def __len__(self) -> int:
        return max(self.counts) * self.partners

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)} does not exist")
        place, partner = divmod(index, self.partners)
        first, second = (place, place + partner) if self.counts[0] >= self.counts[1] else (place + partner, place)
        return {"a": self.a[first % self.counts[0]]["image"], "b": self.b[second % self.counts[1]]["image"]}
