"""The store of a server: rows that are larger than memory, in files of a node-local disk, under a limit.

Rows of sparse vectors that are used much are in memory, the others in a file that is read and written past the page
cache (`mpips.storage.disk.cached_rows`): each vector may have as many rows in memory as it has of all.

What else is large is in mapped files (`mpips.storage.disk.disk_file`), so that whoever reads or writes it sees an
array: dense vectors, and copies. Where a request's slots are known, `touch` starts to read all pages that it needs at
once, and keeps count of what is in memory; when that is more than the limit, the pages that were touched least are
written and dropped (`mpips.storage.disk.page_clock`). A program's function that goes through arrays by itself is not
seen: `settle` asks the system now and then.

What cannot be on disk, the key index and where rows are, counts towards the limit, and so do buffers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import RLock
from time import perf_counter
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet, ref

import numpy as np
from numpy.typing import NDArray

from mpips.errors import LayoutError
from mpips.storage.disk import page_clock
from mpips.storage.disk.direct_file import DirectFile, Reads
from mpips.storage.disk.disk_file import PAGE, DiskFile, check_folder
from mpips.storage.disk.failure import StoreFull
from mpips.storage.disk.page_clock import Runs
from mpips.storage.disk.record_file import RecordFile
from mpips.storage.disk.spec import StoreSpec

_SHARE = 8
"""One request at a time may bring in one page in so many; and so many times less than all is left to rows at least."""
_PAGES = 16
"""One byte in so many is for pages of mapped files, if rows have the rest."""
_READ, _WRITTEN = 32, 64
"""One byte in so many is for reads in flight, and for rows that are not yet written."""
_UNIT = 1 << 16, 1 << 20
"""The least and the most bytes that are written at once."""
_FEW = 16
"""So many rows of each vector may be in memory."""
_WIDEST = 64
"""So many of the widest rows must fit into memory."""
_AHEAD = 32
"""One page in so many is written before it has to go."""
_SELDOM = 50
"""Pause after `settle`, as a multiple of its duration; a second at least."""


COUNTS = ("reads", "writes", "asked", "hits")
"""What is counted from the start."""


class Cached(Protocol):
    """Rows of which some are in memory."""

    @property
    def in_memory(self) -> int:
        """Bytes of rows in memory."""

    @property
    def on_disk(self) -> int:
        """Bytes on disk."""

    def shrink(self) -> None:
        """Have no more rows in memory than may be."""


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
        # Of both; asked for often, by each vector.
        self._sums = 0, 0
        self._cached: WeakSet[Cached] = WeakSet()
        self.reads = Reads(self._limit // _READ)
        """The reads of rows in flight, of one vector at a time."""
        self.reads_made = self.writes_made = 0
        """Rows that were read from disk, and written to it."""
        self._asked = self._absent = 0
        # The time and the account of the last figures.
        self._told: tuple[float, dict[str, int]] = (now(), {})
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

    def enter(self, rows: Cached) -> None:
        """Count rows some of which are in memory, as long as they live."""
        with self._lock:
            self._cached.add(rows)

    def records(self, row: int) -> RecordFile:
        """Return a new file of records of so many bytes."""
        least, most = _UNIT
        unit = min(max(self._limit // _WRITTEN // PAGE * PAGE, least), most)
        return RecordFile(DirectFile(self.folder), self.reads, row, unit)

    def hold(self, owner: object, nbytes: int, rows: int = 0, row: int = 0) -> None:
        """Count bytes of memory of `owner` that cannot be on disk, and of its `rows`, in place of those before.

        Raises:
            StoreFull: they are so many that no room is left for rows.
            LayoutError: a `row` has too many.
            StoreFailed: rows of others have to leave, and cannot be written.
        """
        with self._lock:
            self._fixed[owner], self._rows[owner] = nbytes, rows
            self._sums = held, _ = sum(self._fixed.values()), sum(self._rows.values())
        if held > self._limit - self._limit // _SHARE:
            raise StoreFull(
                f"store.memory = {self._limit:,}: key indexes and the like take {held:,} bytes of it on this server, "
                f"and an eighth is for rows: set it to {2 * held:,} or more, or use more servers"
            )
        if row * _WIDEST > self._limit:
            raise LayoutError(
                f"store.memory = {self._limit:,}: rows of {row:,} bytes do not fit: set it to {row * _WIDEST:,} or more"
            )
        for each in list(self._cached):
            each.shrink()

    @property
    def resident(self) -> int:
        """Bytes of rows and of files that are in memory, as far as known."""
        with self._lock:
            return PAGE * sum(each.present for each in self._files) + self._in_memory

    @property
    def _in_memory(self) -> int:
        return sum(each.in_memory for each in self._cached)

    @property
    def used(self) -> int:
        """Bytes of memory that count towards the limit."""
        with self._lock:
            return self.resident + sum(self._fixed.values()) + len(self.reads.buffer)

    @property
    def on_disk(self) -> int:
        """Bytes of all files."""
        with self._lock:
            return sum(each.size for each in self._files) + sum(each.on_disk for each in self._cached)

    def account(self) -> dict[str, int]:
        """Return the limit, the bytes in memory and on disk, and how many rows were read, written, asked for and found.

        `hits` are those of `asked` that were in memory, or new; `reads` and `writes` are rows.
        """
        return {
            "limit": self._limit,
            "memory": self.used,
            "disk": self.on_disk,
            "reads": self.reads_made,
            "writes": self.writes_made,
            "asked": self._asked,
            "hits": self._asked - self._absent,
        }

    def figures(self) -> dict[str, float]:
        """Return limit and bytes as `account` does; and since the last call the seconds, rows a second, hit rate."""
        now, account, (before, counted) = self._now(), self.account(), self._told
        self._told = now, account
        seconds = max(now - before, 1e-9)
        did = {name: account[name] - counted.get(name, 0) for name in COUNTS}
        return {
            **{name: account[name] for name in ("limit", "memory", "disk")},
            "seconds": seconds,
            "reads_per_s": did["reads"] / seconds,
            "writes_per_s": did["writes"] / seconds,
            "hit_rate": did["hits"] / did["asked"] if did["asked"] else 1.0,
        }

    def count(self, asked: int, absent: int) -> None:
        """Count rows that a request uses, and those of them that are not in memory."""
        self._asked += asked
        self._absent += absent

    # Requests.

    def rows_in_memory(self, owner: object, row: int) -> int:
        """Return how many rows of `row` bytes in all arrays may be in memory: of all memory, the share of `owner`."""
        mine, every = self._rows.get(owner, 0), self._sums[1]
        room = self._room - self._limit // _PAGES
        share = mine if every <= room else int(room * (mine / every))
        return max(share, min(mine, _FEW * row)) // row

    @property
    def _room(self) -> int:
        """Bytes of memory for rows and pages."""
        return max(self._limit - self._sums[0], self._limit // _SHARE) - len(self.reads.buffer)

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
        return max(self._room - self._in_memory, self._limit // _PAGES) // PAGE

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
