"""Pairs held in memory."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

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

    Masks hold class indices, which ``labels`` names. Five bytes a pixel stay in memory; loader
    processes that are forked share them. ``names`` are the files' stems, with the slice where a file holds several.
    ``reading`` is what the reader decided, as JSON holds it, ``warnings`` what of it may be wrong, and ``files`` what
    the pairs were read from.

    Raises:
        DataError: two pairs have the same name.
    """

    def __init__(
        self,
        names: Sequence[str],
        images: Sequence[Floats],
        masks: Sequence[NDArray[np.uint8]],
        labels: tuple[str, ...],
        reading: Mapping[str, Any] | None = None,
        warnings: Sequence[str] = (),
        files: Listing | None = None,
    ) -> None:
        self.names, self.labels = tuple(names), labels
        if twice := [name for name, count in Counter(self.names).items() if count > 1]:
            raise DataError(f"more than one pair has the name {some(twice)}")
        self.reading, self.warnings, self.files = dict(reading or {}), tuple(warnings), dict(files or {})
        self.items = [
            {"image": torch.from_numpy(image)[None], "mask": torch.from_numpy(mask)[None]}
            for image, mask in zip(images, masks, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return dict(self.items[index])
