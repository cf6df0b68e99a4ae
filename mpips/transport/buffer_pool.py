"""A pool of buffers for large messages: a fresh allocation costs more than the copy of a message into it.

The system maps a large allocation page by page at first touch, which takes longer than the copy. A buffer is free again
when its reference count says that neither it nor an array that views it is in use.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

LEAST = 1 << 16
"""Bytes; smaller requests are allocated by numpy."""
MOST = 1 << 29
"""Bytes of all buffers together; beyond, requests are allocated by numpy."""


def _references(buffers: list[NDArray[np.uint8]]) -> list[int]:
    """Return the reference count of each buffer; its offset depends on the interpreter."""
    return [sys.getrefcount(buffer) for buffer in buffers]


_ALONE = _references([np.empty(1, np.uint8)])[0]
"""The count of a buffer that is free."""


class BufferPool:
    """The buffers of one rank."""

    def __init__(self, most: int = MOST) -> None:
        self.most, self.nbytes = most, 0
        self._buffers: list[NDArray[np.uint8]] = []

    def __call__(self, nbytes: int) -> NDArray[np.uint8]:
        """Return u1[nbytes], uninitialised; it is in use as long as it, or an array that views it, is referred to."""
        if nbytes < LEAST:
            return np.empty(nbytes, np.uint8)
        for number, count in enumerate(_references(self._buffers)):
            if count == _ALONE and nbytes <= len(self._buffers[number]) <= 4 * nbytes:
                return self._buffers[number][:nbytes]
        size = 1 << (nbytes - 1).bit_length()
        if self.nbytes + size > self.most:
            self._drop()
            if self.nbytes + size > self.most:
                return np.empty(nbytes, np.uint8)
        made = np.empty(size, np.uint8)
        self._buffers.append(made)
        self.nbytes += size
        return made[:nbytes]

    def _drop(self) -> None:
        """Release the free buffers."""
        counts = _references(self._buffers)
        kept = [buffer for buffer, count in zip(self._buffers, counts, strict=True) if count > _ALONE]
        self._buffers, self.nbytes = kept, sum(len(buffer) for buffer in kept)
