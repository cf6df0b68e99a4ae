"""Arrays that grow in place: a server's tables get more rows without a copy of the existing ones.

A large array is an anonymous private mapping, which grows by mremap: page tables move, bytes do not, so that growing
100 million rows takes as long as growing a thousand. Huge pages are requested, since accesses are random. A mapping
with a view in use cannot be moved: only then are the rows copied to a new one, and the view keeps the old one. Below
a megabyte, an array is an ordinary numpy array, whose size doubles.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_MAPPED = 2**20
"""Size in bytes at and above which an array is mapped."""
_PAGE = mmap.PAGESIZE
_HUGE = 2 * 2**20
"""Mappings have a multiple of this size, so that they are aligned to huge pages, also after they were moved."""


class GrowableArray:
    """An array of rows that grows in place: `array`, [capacity, *shape], every new row filled with `fill`.

    Use `array` only until the next `reserve`. With `touch`, memory is mapped now, so that the first writes cause no
    page faults.
    """

    def __init__(
        self,
        dtype: DTypeLike,
        shape: tuple[int, ...] = (),
        rows: int = 0,
        fill: float = 0,
        touch: bool = False,
    ) -> None:
        self._dtype, self._shape, self._fill = np.dtype(dtype), shape, fill
        self._row = self._dtype.itemsize * math.prod(shape)
        self._map: mmap.mmap | None = None
        self.array: NDArray[Any] = np.empty((0, *shape), dtype)
        self.reserve(rows, touch=touch)

    def __len__(self) -> int:
        return len(self.array)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the array occupies."""
        return self.array.nbytes if self._map is None else len(self._map)

    def next_capacity(self, rows: int) -> int:
        """Return the number of rows to grow to: more than `rows`, so that growth is rare."""
        held = len(self) * self._row
        if rows * self._row < _MAPPED:
            return max(rows, 2 * len(self))
        return max(rows, (held + max(held // 32, _HUGE)) // self._row)

    def reserve(self, rows: int, touch: bool = False) -> None:
        """Make room for `rows`, which may be fewer than there are."""
        had = len(self)
        if rows <= had:
            return
        if rows * self._row < _MAPPED:
            grown = np.empty((rows, *self._shape), self._dtype)
            grown[:had] = self.array
            grown[had:] = self._fill
            self.array = grown
            return
        size = -(-rows * self._row // _HUGE) * _HUGE
        if not self._resized(size):
            self._copy(size)
        assert self._map is not None
        with suppress(OSError):
            # A system without huge pages.
            self._map.madvise(mmap.MADV_HUGEPAGE)
        rows = size // self._row
        self.array = np.frombuffer(
            self._map, self._dtype, size // self._row * self._row // self._dtype.itemsize
        )
        self.array = self.array.reshape(rows, *self._shape)
        if self._fill != 0:
            self.array[had:] = self._fill
        elif touch:
            np.frombuffer(self._map, np.uint8)[had * self._row :: _PAGE] = 0

    def _resized(self, size: int) -> bool:
        """Grow the mapping in place, if there is one and no view of it is in use."""
        if self._map is None:
            return False
        shape = self.array.shape
        self.array = np.empty(0, self._dtype)
        try:
            self._map.resize(size)
        except (BufferError, SystemError, OSError):
            self.array = np.frombuffer(self._map, self._dtype, math.prod(shape)).reshape(shape)
            return False
        return True

    def _copy(self, size: int) -> None:
        """Move the rows to a new mapping."""
        new = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        np.frombuffer(new, self._dtype, self.array.size)[:] = self.array.reshape(-1)
        self._map = new
