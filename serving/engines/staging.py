"""Host memory by which values go to the GPU and come back."""

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from serving.engines.device import Device, DeviceArray


class Staging:
    """Pinned memory for one tensor, [up to the first of ``shape``, ...], that goes one way; made once for all batches.

    From and to other memory the driver copies twice, by way of pinned memory of its own, and the host waits for it.
    """

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: DTypeLike) -> None:
        self._device = device
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        self._pinned = device.pinned(nbytes).view(dtype).reshape(shape)

    def upload(self, values: NDArray[Any], array: DeviceArray) -> None:
        """Copy values to the front of an array; they may change at once. Between two the device is waited for."""
        staged = self._pinned[: len(values)]
        staged[:] = values
        self._device.upload(staged, array)

    def download(self, array: DeviceArray) -> NDArray[Any]:
        """An array's values once the device is synchronized; the next download overwrites them."""
        staged = self._pinned[: array.shape[0]]
        self._device.download(array, staged)
        return staged
