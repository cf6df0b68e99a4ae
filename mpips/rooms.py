"""Rooms: memory for large messages that is used again, because new memory costs more than to fill it does.

The system hands out large memory page by page, as it is touched, which takes longer than to copy a message into it. A
room is free again when nobody refers to it any more: arrays made of it do, as long as they live.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

LEAST = 1 << 16
"""Bytes; what is smaller is not worth it."""
MOST = 1 << 29
"""Bytes of all rooms together; what does not fit gets memory of its own."""
_ALONE = 3
"""References to a room that nobody uses, as `sys.getrefcount` counts: from the list, the loop, and its own argument."""


class Rooms:
    """Memory of one rank that is lent out."""

    def __init__(self, most: int = MOST) -> None:
        self.most, self.nbytes = most, 0
        self._rooms: list[NDArray[np.uint8]] = []

    def __call__(self, nbytes: int) -> NDArray[np.uint8]:
        """Give u1[nbytes], whatever is in it; it is lent as long as it, or an array made of it, is referred to."""
        if nbytes < LEAST:
            return np.empty(nbytes, np.uint8)
        for room in self._rooms:
            if nbytes <= len(room) <= 4 * nbytes and sys.getrefcount(room) == _ALONE:
                return room[:nbytes]
        size = 1 << (nbytes - 1).bit_length()
        if self.nbytes + size > self.most:
            self._drop()
            if self.nbytes + size > self.most:
                return np.empty(nbytes, np.uint8)
        made = np.empty(size, np.uint8)
        self._rooms.append(made)
        self.nbytes += size
        return made[:nbytes]

    def _drop(self) -> None:
        """Give back what nobody uses."""
        kept = [room for room in self._rooms if sys.getrefcount(room) > _ALONE]
        self._rooms, self.nbytes = kept, sum(len(room) for room in kept)
