"""Pairs held in memory."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from training.data.preparation.resize import Floats


class LoadedPairs(Dataset[dict[str, Tensor]]):
    """Decoded (image, mask) pairs: items are {"image": float32 [1, S, S] in [-1, 1], "mask": uint8 [1, S, S]}.

    Masks hold class indices, which ``labels`` names. Five bytes a pixel stay in memory; loader
    processes that are forked share them. ``names`` are the files' stems, with the slice where a file holds several.
    """

    def __init__(
        self,
        names: Sequence[str],
        images: Sequence[Floats],
        masks: Sequence[NDArray[np.uint8]],
        labels: tuple[str, ...],
    ) -> None:
        self.names, self.labels = tuple(names), labels
        self.items = [
            {"image": torch.from_numpy(image)[None], "mask": torch.from_numpy(mask)[None]}
            for image, mask in zip(images, masks, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return dict(self.items[index])
