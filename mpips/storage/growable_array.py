"""Arrays that grow in place: a server's tables get more rows without a copy of the existing ones.

A large array is an anonymous private mapping, which grows by mremap: page tables move, bytes do not, so that growing
100 million rows takes as long as growing a thousand. Huge pages are requested, since accesses are random. A mapping
with a view in use cannot be moved: only then are the rows copied to a new one, and the view keeps the old one. Below
a megabyte, an array is an ordinary numpy array, whose size doubles.

An array on disk is the mapping of a file (`mpips.storage.disk`), and grows with it; also with a view in use, which then
sees the same rows.
"""

from __future__ import annotations

import math
import mmap
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpips.storage.disk.disk_file import DiskFile

_MAPPED = 2**20
"""Size in bytes at and above which an array is mapped."""
_ON_DISK = 2**18
"""Size in bytes at and above which an array is on disk, if it may be."""
_TIGHT = 2**16
"""Size in bytes at and above which a tight array is mapped."""
_PAGE = mmap.PAGESIZE
_HUGE = 2 * 2**20
"""Mappings have a multiple of this size, so that they are aligned to huge pages, also after they were moved."""


class GrowableArray:
    """An array of rows that grows in place: `array`, [capacity, *shape], every new row filled with `fill`.

    Use `array` only until the next `reserve`. With `touch`, memory is mapped now, so that the first writes cause no
    page faults. With a `file` a large array is on disk. A `tight` one grows in small steps and has no huge pages, so
    that it takes as much memory as has been used of it.
    """

    def __init__(
        self,
        dtype: DTypeLike,
        shape: tuple[int, ...] = (),
        rows: int = 0,
        fill: float = 0,
        touch: bool = False,
        file: DiskFile | None = None,
        tight: bool = False,
    ) -> None:
        self._dtype, self._shape, self._fill, self._file = np.dtype(dtype), shape, fill, file
        self._row = self._dtype.itemsize * math.prod(shape)
        self._tight = tight or file is not None
        self._least, self._unit = (_MAPPED, _HUGE)
        if self._tight:
            self._least = self._unit = _TIGHT if file is None else _ON_DISK
        self._map: mmap.mmap | None = None
        self.array: NDArray[Any] = np.empty((0, *shape), dtype)
        self.reserve(rows, touch=touch)

    def __len__(self) -> int:
        return len(self.array)

    @property
    def nbytes(self) -> int:
        """Bytes of memory, or of a file, that the array occupies."""
        return self.array.nbytes if self._map is None else len(self._map)

    @property
    def row(self) -> int:
        """Bytes of a row."""
        return self._row

    @property
    def on_disk(self) -> DiskFile | None:
        """The file that the rows are in; None if they are in memory."""
        return None if self._map is None else self._file

    def next_capacity(self, rows: int) -> int:
        """Return the number of rows to grow to: more than `rows`, so that growth is rare."""
        held = len(self) * self._row
        if rows * self._row < self._least:
            return max(rows, 2 * len(self))
        return max(rows, (held + max(held // 32, self._unit)) // self._row)

    def reserve(self, rows: int, touch: bool = False) -> None:
        """Make room for `rows`, which may be fewer than there are."""
        had = len(self)
        if rows <= had:
            return
        if rows * self._row < self._least:
            grown = np.empty((rows, *self._shape), self._dtype)
            grown[:had] = self.array
            grown[had:] = self._fill
            self.array = grown
            return
        size = -(-rows * self._row // self._unit) * self._unit
        if self._file is not None:
            self._file.grow(size)
        if not self._resized(size):
            self._copy(size)
        assert self._map is not None
        if self._file is not None:
            self._file.map = self._map
        with suppress(OSError):
            # A system without huge pages. Neighbours in a file are not read with a row.
            self._map.madvise(self._advice())
        rows = size // self._row
        self.array = np.frombuffer(
            self._map, self._dtype, size // self._row * self._row // self._dtype.itemsize
        )
        self.array = self.array.reshape(rows, *self._shape)
        if self._fill != 0:
            self.array[had:] = self._fill
        elif touch and self._file is None:
            np.frombuffer(self._map, np.uint8)[had * self._row :: _PAGE] = 0

    def _advice(self) -> int:
        if self._file is not None:
            return mmap.MADV_RANDOM
        return mmap.MADV_NOHUGEPAGE if self._tight else mmap.MADV_HUGEPAGE

    def release(self, rows: int) -> None:
        """Give back the memory of the rows behind the first ones of a mapped array, whose content is lost."""
        begin = -(-rows * self._row // _PAGE) * _PAGE
        if self._map is not None and self._file is None and begin < len(self._map):
            self._map.madvise(mmap.MADV_DONTNEED, begin)

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
        if self._file is None:
            new = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            new = self._file.mapped()
        if self._file is None or self._map is None:
            np.frombuffer(new, self._dtype, self.array.size)[:] = self.array.reshape(-1)
        self._map = new
