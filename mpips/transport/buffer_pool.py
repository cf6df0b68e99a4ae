"""BufferPool: memory for large messages that is used again, because new memory costs more than to fill it does.

The system hands out large memory page by page, as it is touched, which takes longer than to copy a message into it. A
buffer is free again when nobody refers to it any more: arrays made of it do, as long as they live.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

LEAST = 1 << 16
"""Bytes; what is smaller is not worth it."""
MOST = 1 << 29
"""Bytes of all buffers together; what does not fit gets memory of its own."""


def _references(buffers: list[NDArray[np.uint8]]) -> list[int]:
    """Count what refers to each buffer; what is counted besides depends on the interpreter."""
    return [sys.getrefcount(buffer) for buffer in buffers]


_ALONE = _references([np.empty(1, np.uint8)])[0]
"""The count of a buffer that nobody uses."""


class BufferPool:
    """Memory of one rank that is lent out."""

    def __init__(self, most: int = MOST) -> None:
        self.most, self.nbytes = most, 0
        self._buffers: list[NDArray[np.uint8]] = []

    def __call__(self, nbytes: int) -> NDArray[np.uint8]:
        """Give u1[nbytes], whatever is in it; it is lent as long as it, or an array made of it, is referred to."""
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
        """Give back what nobody uses."""
        counts = _references(self._buffers)
        kept = [buffer for buffer, count in zip(self._buffers, counts, strict=True) if count > _ALONE]
        self._buffers, self.nbytes = kept, sum(len(buffer) for buffer in kept)
