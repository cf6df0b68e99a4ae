"""Bytes that are written and read in parts, such as the copy of a shard; on disk if there is a store."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpips.storage.disk.store import Store
from mpips.storage.growable_array import GrowableArray

Raw = NDArray[np.uint8]


class Buffer:
    """So many bytes, all 0 at first.

    >>> buffer = Buffer(4)
    >>> buffer.write(1, np.array([5, 6], np.uint8))
    >>> len(buffer), buffer.read(0, 9).tolist()
    (4, [0, 5, 6, 0])
    """

    def __init__(self, size: int, store: Store | None = None) -> None:
        self._size, self._store = size, store
        self._array = GrowableArray(np.uint8, rows=size, file=None if store is None else store.file())

    def __len__(self) -> int:
        return self._size

    @classmethod
    def of(cls, raw: Raw) -> Buffer:
        """Return a buffer in memory with these bytes."""
        made = cls(len(raw))
        made.write(0, raw)
        return made

    def cut(self, size: int) -> None:
        """Forget the bytes behind the first `size`."""
        self._size = min(self._size, size)

    def write(self, begin: int, raw: Raw) -> None:
        """Write some bytes from `begin` on."""
        self.read(begin, begin + len(raw))[:] = raw

    def read(self, begin: int, end: int) -> Raw:
        """View the bytes from `begin` to `end`, or to the last one."""
        end = min(end, self._size)
        if self._store is not None and self._array.on_disk is not None:
            self._store.touch(self._array.on_disk, slice(begin, end), 1)
        view: Raw = self._array.array[begin:end]
        return view
