"""Arrays of one shape, few in memory and many in a file: a data set may be larger than memory."""

import shutil
import tempfile
from collections.abc import Sequence
from typing import IO, Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from serving.user import cache_folder
from training.data.problems import DataError

IN_MEMORY = 2**28  # bytes
ROOM = 2**28  # bytes that are left free on the disk

T = TypeVar("T", bound=np.generic)


class Spooled(Sequence[NDArray[T]], Generic[T]):
    """Arrays of one shape and type, which may be written to in place.

    Beyond ``in_memory`` bytes they lie in a file of the user's cache folder that has no name and so goes with the
    process, however it ends. It is mapped: the system keeps in memory what is read, as long as there is room, and
    loader processes that are forked share it. ``append`` raises DataError where the disk has no room.
    """

    def __init__(self, in_memory: int = IN_MEMORY) -> None:
        self._limit = in_memory
        self._held: list[NDArray[T]] = []
        self._file: IO[bytes] | None = None
        self._rows = 0
        self._map: NDArray[T] | None = None

    def append(self, array: NDArray[T]) -> None:
        self._rows += 1
        if self._file is None:
            self._held.append(array)
            if self._rows * array.nbytes > self._limit:
                self._spill()
        else:
            self._write(array)

    def _spill(self) -> None:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115, it lives as long as the arrays do
        for array in self._held:
            self._write(array)
        self._like = self._held[0][:0]
        self._shape = self._held[0].shape
        self._held = []

    def _write(self, array: NDArray[T]) -> None:
        assert self._file is not None
        folder = cache_folder()
        if shutil.disk_usage(folder).free < array.nbytes + ROOM:
            raise DataError(
                f"{folder} has no room for pair {self._rows}: the data are more than memory is used for, and lie there "
                "while they are learnt from; XDG_CACHE_HOME names another place"
            )
        self._map = None
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(array).data)

    def __len__(self) -> int:
        return self._rows

    @overload
    def __getitem__(self, index: int) -> NDArray[T]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[NDArray[T]]: ...
    def __getitem__(self, index: Any) -> Any:
        if self._file is None:
            return self._held[index]
        if self._map is None:
            self._file.flush()
            self._map = np.memmap(self._file, self._like.dtype, "r+", shape=(self._rows, *self._shape))
        return self._map[index]
