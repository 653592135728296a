"""What the rows of a trajectory read, sent to the GPU many rows at a time."""

import math

import numpy as np

from serving.engines import Float32
from serving.engines.device import Device, DeviceArray, Mark

ALIGNMENT = 256  # bytes; TensorRT reads tensors from such addresses alone


class RowBuffer:
    """Values for each row, in pinned memory and on the GPU; ``shape`` is that of one row's tensor, float32."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self._device = device
        self._pinned = device.pinned(nbytes)
        self._array = device.array((nbytes,), np.uint8)
        self._sent = Mark(device)
        self._is_silent = False

    @staticmethod
    def stride(shape: tuple[int, ...]) -> int:
        """Bytes from one row to the next."""
        return -(-math.prod(shape) * np.dtype(np.float32).itemsize // ALIGNMENT) * ALIGNMENT

    def on_host(self, rows: int, shape: tuple[int, ...]) -> Float32:
        """The rows to be uploaded, each flat: float32 [rows, the product of shape], to be written to.

        Waits until the GPU has read those of the upload before.
        """
        self._sent.wait()
        stride = self.stride(shape)
        return self._pinned[: rows * stride].view(np.float32).reshape(rows, -1)[:, : math.prod(shape)]

    def upload(self, rows: int, shape: tuple[int, ...]) -> None:
        self._device.upload(self._pinned[: rows * self.stride(shape)], self._array)
        self._sent.set()
        self._is_silent = False

    def silence(self) -> None:
        """Have all rows read zeros."""
        if not self._is_silent:
            self._device.zero(self._array)
        self._is_silent = True

    def move_to_front(self, rows: range, shape: tuple[int, ...]) -> None:
        """Have row 0 and the following read what was uploaded as these rows; they are no more than those before."""
        stride = self.stride(shape)
        self._device.copy(self._array.view((len(rows) * stride,), np.uint8, rows.start * stride), self._array)

    def on_device(self, row: int, shape: tuple[int, ...]) -> DeviceArray:
        return self._array.view(shape, np.float32, row * self.stride(shape))
