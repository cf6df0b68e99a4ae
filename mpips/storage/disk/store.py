"""The store of a server: rows that are larger than memory, in files of a node-local disk, under a limit.

Arrays of rows are mapped files (`mpips.storage.disk.disk_file`), so that whoever reads or writes them sees an array:
results do not depend on the store. Where a request's slots are known, `touch` starts to read all pages that it needs
at once, and keeps count of what is in memory; when that is more than the limit, the pages that were touched least are
written and dropped (`mpips.storage.disk.page_clock`). Rows get slots in the order of their first push, so those that
are used often lie together.

A program's function that goes through arrays by itself is not seen: `settle` asks the system now and then. What cannot
be on disk, the key index, counts towards the limit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import RLock
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

import numpy as np
from numpy.typing import NDArray

from mpips.errors import LayoutError
from mpips.storage.disk import page_clock
from mpips.storage.disk.disk_file import PAGE, DiskFile, check_folder
from mpips.storage.disk.page_clock import Runs
from mpips.storage.disk.spec import StoreSpec

_SHARE = 8
"""One request at a time may bring in one page in so many; and so many times less than all is left to rows at least."""
_STAY = 0.7
"""This part of the memory is for rows that stay; the rest for those that come and go."""
_AHEAD = 32
"""One page in so many is written before it has to go."""
_SELDOM = 50
"""Pause after `settle`, as a multiple of its duration; a second at least."""


class Store:
    """The rows of a server on disk, of which at most `memory` bytes are in memory; see the module.

    Raises:
        InputError: the folder is not usable.
    """

    def __init__(
        self, memory: float, folder: str | Path = "", now: Callable[[], float] = perf_counter
    ) -> None:
        self.folder, self._now, self._next = check_folder(folder), now, 0.0
        self._limit = int(memory)
        self._files: WeakSet[DiskFile] = WeakSet()
        # The file with the clock's hand, and the hand.
        self._at, self._hand = 0, np.zeros(3, np.int64)
        self._leaving: deque[tuple[ref[DiskFile], int, int, int]] = deque()
        self._leaving_pages = 0
        self._fixed: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._rows: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        # Checkpoints are written by another thread.
        self._lock = RLock()

    @staticmethod
    def of(spec: StoreSpec) -> Store | None:
        """Return a job's store; None if all rows are to be in memory."""
        return Store(spec.memory, spec.folder) if spec.memory else None

    # What it holds.

    def file(self) -> DiskFile:
        """Return a new, empty file."""
        made = DiskFile(self.folder)
        with self._lock:
            self._files.add(made)
        return made

    def hold(self, owner: object, nbytes: int, rows: int = 0) -> None:
        """Count bytes of memory of `owner` that cannot be on disk, and of its `rows`, in place of those before.

        Raises:
            LayoutError: they are so many that no room is left for rows.
        """
        with self._lock:
            self._fixed[owner], self._rows[owner] = nbytes, rows
            held = sum(self._fixed.values())
        if held > self._limit - self._limit // _SHARE:
            raise LayoutError(
                f"store.memory = {self._limit:,}: the key indexes alone take {held:,} bytes of it on this server, and "
                f"an eighth is for rows: set it to {2 * held:,} or more, or use more servers"
            )

    @property
    def resident(self) -> int:
        """Bytes of files that are in memory, as far as known."""
        with self._lock:
            return PAGE * sum(each.present for each in self._files)

    @property
    def used(self) -> int:
        """Bytes of memory that count towards the limit."""
        with self._lock:
            return self.resident + sum(self._fixed.values())

    @property
    def on_disk(self) -> int:
        """Bytes of all files."""
        with self._lock:
            return sum(each.size for each in self._files)

    def account(self) -> dict[str, int]:
        """Return the limit, and the bytes in memory and on disk."""
        return {"limit": self._limit, "memory": self.used, "disk": self.on_disk}

    # Requests.

    def rows_in_memory(self, owner: object, row: int) -> int:
        """Return how many rows of `row` bytes in all arrays stay in memory: of all memory, the share of `owner`."""
        share = self._rows.get(owner, 0) / max(sum(self._rows.values()), 1)
        return int(_STAY * self._most * PAGE * share) // row

    def rows_at_once(self, row: int) -> int:
        """Return how many rows of `row` bytes in all arrays may be brought in at once, wherever they are."""
        return max(self._most // _SHARE // max(row // PAGE + 1, 1), 1)

    def rows_together(self, row: int) -> int:
        """Return how many rows of `row` bytes in all arrays may be brought in at once if they lie together."""
        return max(self._most * PAGE // _SHARE // row, 1)

    def touch(self, file: DiskFile, slots: NDArray[np.int32] | slice, row: int) -> None:
        """Start to read the rows of slots, of `row` bytes each in a file, and make room for them."""
        with self._lock:
            if isinstance(slots, slice):
                if slots.stop <= slots.start:
                    return
                first, last = slots.start * row // PAGE, (slots.stop * row - 1) // PAGE
                runs = np.empty(((last - first) // 2 + 2, 3), np.int64)
                runs = runs[: page_clock.touch_run(file.heat, first, last, runs)]
            else:
                runs = np.empty((len(slots) * ((row - 1) // PAGE + 2), 3), np.int64)
                runs = runs[: page_clock.touch(file.heat, slots, row, PAGE, runs)]
            if not len(runs):
                return
            file.present += int(runs[:, 2].sum())
            self._make_room()
            for first, count, _ in runs.tolist():
                file.prefetch(first, count)

    def settle(self, seldom: bool = False) -> None:
        """Ask the system what is in memory, and drop what is too much; if `seldom`, only now and then."""
        begin = self._now()
        if seldom and begin < self._next:
            return
        with self._lock:
            for each in self._files:
                each.present = page_clock.settle(each.heat, each.resident())
            self._make_room()
        end = self._now()
        self._next = end + max(1.0, _SELDOM * (end - begin))

    # Room.

    @property
    def _most(self) -> int:
        """Pages of files that may be in memory."""
        return max(self._limit - sum(self._fixed.values()), self._limit // _SHARE) // PAGE

    def _make_room(self) -> None:
        """Drop pages until no more than the limit are in memory, or are known to be."""
        most = self._most
        over = sum(each.present for each in self._files) - most
        if over <= 0:
            return
        self._choose(over + most // _AHEAD)
        while over > 0 and self._leaving:
            file, first, count, pages = self._leaving.popleft()
            self._leaving_pages -= pages
            over -= self._drop(file(), first, count)

    def _choose(self, wanted: int) -> None:
        """Let pages leave until so many are about to, and start to write them."""
        files = list(self._files)
        # Each page has fewer chances than MOST.
        for _ in range(len(files) * page_clock.MOST):
            if self._leaving_pages >= wanted:
                return
            file = files[self._at % len(files)]
            runs = np.empty((wanted - self._leaving_pages, 3), np.int64)
            page_clock.sweep(file.heat, self._hand, wanted - self._leaving_pages, runs)
            self._leaving_pages += int(self._hand[1])
            for first, count, pages in runs[: self._hand[2]].tolist():
                file.start_writing(first, count)
                self._leaving.append((ref(file), first, count, pages))
            if self._hand[0] >= len(file.heat):
                self._hand[0], self._at = 0, self._at + 1

    def _drop(self, file: DiskFile | None, first: int, count: int) -> int:
        """Drop the pages of a run that have not been touched since; return how many. The file may be gone."""
        if file is None:
            return 0
        runs: Runs = np.empty((count, 3), np.int64)
        runs = runs[: page_clock.leave(file.heat, first, count, runs)]
        for begin, size, _ in runs.tolist():
            file.drop(begin, size)
        dropped = int(runs[:, 2].sum())
        file.present -= dropped
        return dropped
