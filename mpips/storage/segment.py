"""Segments: a server's part of the vectors (paper, sections 3.1 and 3.2).

A segment holds the rows of one vector for the key ranges that its server owns: the values and the update's
state columns are arrays with one row per slot. Sparse segments find a key's slot in an ordered index, and give a
slot to a key when it is first pushed; a key without one reads as its initial value (mpips/storage/initial.py),
usually 0. In a dense segment every owned key has a slot from the start, slots lie in key order, and therefore every
key range is one run of slots. Wherever slots are one run, also in a sparse segment, operations on their rows use plain
array views.

With a store (`mpips.storage.disk.store`) rows are on disk that do not fit into its memory. Operations are then made in
parts that do, and each part is first brought in; an update in Python gets all rows of a push at once. Arrays of a
sparse segment have the rows in memory, until a function asks for all: then they are in mapped files, in the order of
slots.

All operations use slots: `resolve` maps keys to slots once, and a server that caches a worker's key list keeps the
slots, which are valid until rows are dropped (`Segment.keep`).

When an update raises, the error is sent to the caller and the segment continues to serve: new keys keep their slots
with initial rows, rows that the function has already changed stay changed (there is no roll-back), and the round is
dropped, though its number stays in the clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mpips.errors import LayoutError, ProtocolError, UsageError
from mpips.jit.kernel import kernel
from mpips.keys import KeyArray, is_wide, upper
from mpips.ranges import ALL, KeyRange, coalesce, intersection
from mpips.storage import initial
from mpips.storage.dense_index import DenseIndex, listed
from mpips.storage.disk.cached_rows import CachedRows
from mpips.storage.disk.mapped_rows import MappedRows, Positions
from mpips.storage.disk.sorted_copy import SortedCopy
from mpips.storage.disk.store import Store
from mpips.storage.growable_array import GrowableArray
from mpips.storage.key_index import MAX_KEYS, KeyIndex
from mpips.storage.key_index import Slots as Slots
from mpips.storage.key_index import one_by_one as one_by_one
from mpips.storage.pair_index import PairIndex
from mpips.storage.updates import BUILT_IN, DTYPES, Column, Update, VectorSpec, settings_of, update_named

Array = NDArray[Any]
_TYPES = ("f4", "f8", "i4", "i8")
_DTYPES = [np.dtype(each) for each in DTYPES]
_PIECE = 1 << 16
"""Rows of a dense segment that are set to their initial values at once."""


@kernel(*(f"void({t}[:,::1], i4[::1], {t}[:,::1])" for t in _TYPES))
def _gather(values: Array, slots: NDArray[np.int32], out: Array) -> None:
    # By far the most frequent case, without an inner loop.
    if values.shape[1] == 1:
        column, target = values[:, 0], out[:, 0]
        for i in range(len(slots)):
            s = slots[i]
            target[i] = column[np.uint32(s)] if s >= 0 else 0
        return
    for i in range(len(slots)):
        s = slots[i]
        if s < 0:
            out[i, :] = 0
        else:
            for j in range(values.shape[1]):
                out[i, j] = values[s, j]


class Clock(Protocol):
    """The part of a ranged vector clock that a segment uses (mpips/storage/vector_clock.py)."""

    def set(self, key_range: KeyRange, node: int, time: int, /) -> Any:
        """Record that `node` has reached `time` on every key of the range."""


class Rows(NamedTuple):
    """Rows of a segment in key order: keys u64[n] or KEY128[n], values [n, width], state columns name -> [n, width]."""

    keys: KeyArray
    values: Array
    state: dict[str, Array]


class Segment:
    """The rows of one vector on one server.

    Keys are u64[n], or KEY128[n] (`mpips.keys`) of a vector with 128-bit keys, sorted and unique. Slots are i32[n], or
    a slice of one run. Rows are [n, width] of the vector's dtype, pushed ones of the type and width that the update
    takes.

    `ranges` are the key ranges that the server owns, cut at the vector's extent. `update` is looked up by the vector's
    specification unless given. `settings` may be changed at any time. A sparse segment has room for `expect` keys
    before it first grows. With a `store` large arrays are on disk.

    Raises:
        LayoutError: there are more dense keys than slots, or the update has columns of no known type.

    >>> segment = Segment(VectorSpec("w", width=2))
    >>> slots = segment.resolve(np.array([5, 9], np.uint64), create=True)
    >>> len(segment), segment.values[slots].tolist()
    (2, [[0.0, 0.0], [0.0, 0.0]])

    A function on the servers (`mpips.call`) gets one, and uses its arrays, or these:

    >>> segment.values[slots] = [[1.0, 2.0], [0.0, 3.0]]
    >>> found = segment.resolve(np.array([9, 11], np.uint64))  # -1: it has no row
    >>> segment.keys_of(found[:1]).tolist(), found.tolist()
    ([9], [1, -1])
    >>> keys, slots = segment.select(KeyRange(0, 9))
    >>> keys.tolist(), segment.pull(keys).tolist(), segment.items()[0].tolist()
    ([5], [[1.0, 2.0]], [5, 9])
    """

    def __init__(
        self,
        spec: VectorSpec,
        ranges: Iterable[KeyRange] = (ALL,),
        update: Update | None = None,
        expect: int = 0,
        store: Store | None = None,
    ) -> None:
        self.spec, self.store = spec, store
        self.update = update_named(spec.update) if update is None else update
        self.settings = settings_of(spec) if update is None else dict(spec.settings)
        self.push_row = self.update.push_row(spec)
        self.reply_row = self.update.reply_row(spec)
        self.clock: Clock | None = None
        self.notes: dict[str, tuple[NDArray[np.int32], Array]] = {}
        """Further rows of server functions for some keys, "notes": name -> (slots, rows); saved in checkpoints."""
        owned = [intersection(piece, KeyRange(0, spec.extent)) for piece in coalesce(ranges)]
        self.ranges = [piece for piece in owned if piece is not None]
        self._dtype, self._push_dtype = np.dtype(spec.dtype), np.dtype(self.push_row.dtype)
        self._push_width = self.push_row.width
        columns = {"": Column(spec.dtype, spec.width), **self.update.columns(spec)}
        for column in (*columns.values(), self.push_row, self.reply_row):
            if column.dtype not in (*DTYPES, "int8"):
                raise LayoutError(f"vector {spec.name!r}: {column.dtype!r} is none of {', '.join(DTYPES)}")
        for name, column in columns.items():
            if not column.fits():
                raise LayoutError(
                    f"vector {spec.name!r}: state column {name!r}: width {column.width!r} must be 1 or more, and fill "
                    f"{column.fill!r} a number of {column.dtype}"
                )
        expect = 0 if spec.dense else min(expect, MAX_KEYS)
        self._wide, self.layout = spec.key_bits == 128, columns
        """The columns by name, "" the values."""
        self._begins = np.array([piece.begin for piece in self.ranges] or [1], np.uint64)
        self._lasts = np.array([piece.end - 1 for piece in self.ranges] or [0], np.uint64)
        # The owned range, if there is only one: most checks compare with it.
        self._first, self._last = int(self._begins[0]), int(self._lasts[0]) if len(self.ranges) == 1 else -1
        self.moves = 0
        """How many times the arrays have moved in memory."""
        self._allocate(expect)
        self._zero = spec.init == 0
        """Whether new rows and keys without a slot are 0."""
        if spec.dense and not self._zero:
            for mine in self.ranges:
                for begin in range(mine.begin, mine.end, _PIECE):
                    keys, run = self.select(KeyRange(begin, min(begin + _PIECE, mine.end)))
                    for at, part in self._parts(run, [""]):
                        initial.fill(spec.init, keys[at], self._rows[part])

    def _allocate(self, expect: int) -> None:
        """Make an empty index, and the arrays, with room for so many keys."""
        self._index = self._empty_index(expect)
        self._count = len(self._index)
        self._paging: CachedRows | MappedRows | None = None
        if self.store is not None and not self.spec.dense:
            # As many as may be in memory are made as keys come.
            self._columns = {
                name: GrowableArray(column.dtype, (column.width,), tight=True)
                for name, column in self.layout.items()
            }
            self._paging = CachedRows(self.store, self._columns, self._begin)
        else:
            self._columns = self._arrays(max(self._count, expect), touch=expect > 0)
            if self.store is not None:
                self._paging = MappedRows(self.store, self._columns)
        self._publish()

    def _empty_index(self, expect: int) -> KeyIndex | PairIndex | DenseIndex:
        if self.spec.dense:
            return DenseIndex(self.ranges, self.spec.name)
        tight = self.store is not None
        return PairIndex(expect, tight) if self._wide else KeyIndex(expect, tight)

    def _arrays(self, rows: int, touch: bool = False) -> dict[str, GrowableArray]:
        """Make arrays of new rows, each at its slot."""
        return {
            name: GrowableArray(
                column.dtype, (column.width,), rows, column.fill, touch=touch,
                file=None if self.store is None else self.store.file(),
            )
            for name, column in self.layout.items()
        }  # fmt: skip

    def _publish(self) -> None:
        arrays = {name: column.array for name, column in self._columns.items()}
        self._rows: Array = arrays.pop("")
        self._state = arrays
        self.capacity = min(len(column) for column in self._columns.values())
        """Rows that fit into all arrays."""
        self.moves += 1
        if self._paging is not None:
            self._paging.hold(self._index.nbytes, self._count)

    @property
    def values(self) -> Array:
        """[capacity, width], by slot: only the first len(self) rows are valid."""
        self._straighten()
        return self._rows

    @property
    def state(self) -> dict[str, Array]:
        """State columns by name, [capacity, their width], by slot."""
        self._straighten()
        return self._state

    def _straighten(self) -> None:
        """Have each row at its slot, from now on in mapped files if it was not."""
        paging = self._paging
        if paging is None or paging.straight:
            return
        copy = paging.sorted_copy(np.arange(self._count, dtype=np.int32))
        columns = self._arrays(self._count)
        assert self.store is not None
        mapped = MappedRows(self.store, columns)
        mapped.hold(self._index.nbytes, self._count)
        for name in columns:
            mapped.write(name, copy.column(name))
        self._columns, self._paging = columns, mapped
        self._publish()

    def taken(self, name: str, slots: Slots) -> Array:
        """Return a copy of some rows of a column ("": the values), without bringing in others."""
        return self._taken([name], slots)[name]

    def scale(self, name: str, by: float) -> None:
        """Multiply a state column of all rows."""
        column = self._state[name]
        for _, part in self._parts(slice(0, len(self)), [name]) if by != 1 else ():
            column[part] = column[part] * by

    def _parts(self, slots: Slots, names: Iterable[str] | None = None) -> Iterator[tuple[slice, Slots]]:
        """Yield parts of slots, as places among them and positions in some columns (default: all), brought in."""
        if self._paging is None:
            yield slice(0, slots.stop - slots.start if isinstance(slots, slice) else len(slots)), slots
        else:
            yield from self._paging.parts(slots, names)

    def announce(self, keys: KeyArray | KeyRange) -> None:
        """Bring in the rows of keys that will be used soon, as many as may be at once."""
        if self._paging is not None and (self.spec.dense or not isinstance(keys, KeyRange)):
            self._paging.prefetch(self.resolve(keys))

    def __len__(self) -> int:
        # Compiled requests insert keys, too.
        return len(self._index)

    @property
    def index_addresses(self) -> tuple[int, ...]:
        """The key index, as kernels find it: `KeyIndex.addresses`; zeros if there is none."""
        return self._index.addresses

    @property
    def begins_otherwise(self) -> bool:
        """Whether a key's first row has to be written: it is not 0."""
        return not (self._zero or self.spec.dense)

    # Keys to slots.

    def resolve(self, keys: KeyArray | KeyRange, create: bool = False) -> Slots:
        """Return the slots of keys (sorted, unique) as i32[n], or those of a dense range as a slice.

        With `create` every key gets a slot; without, -1 stands for a key that has none. A range stands for its keys
        that this server owns; a sparse segment lists them one by one.
        Raises ProtocolError when a key to create lies outside the owned ranges, or keys are of another size.
        """
        if isinstance(keys, KeyRange):
            if isinstance(self._index, DenseIndex):
                return self._index.run(keys)
            keys = self.listed(keys)
        elif is_wide(keys) != self._wide:
            raise ProtocolError(
                f"vector {self.spec.name!r} has keys of {self.spec.key_bits} bits, not {keys.itemsize * 8}"
            )
        if not create:
            return self._index.find(keys)
        if not self.spec.dense:
            self._check_owned(keys)
        return self._insert(keys)

    def slots_of(self, keys: KeyArray) -> NDArray[np.int32]:
        """Return the slots of keys in any order, as i32[n]; new keys get slots.

        For keys that were checked already, by another replica of this segment or by the reader of a checkpoint.
        """
        return one_by_one(self._insert(keys))

    def _insert(self, keys: KeyArray) -> Slots:
        """Insert keys, and create rows for new slots."""
        before = self._count
        slots = self._index.insert(keys)
        count = len(self._index)
        if self._paging is None:
            if count > self.capacity:
                self._grow(count)
            if count > before and not self._zero:
                initial.fill(self.spec.init, self._index.keys()[before:count], self._rows[before:count])
            self._count = count
        elif count > before:
            self._count = count
            self._add_rows(self._paging, before)
        return slots

    def _add_rows(self, paging: CachedRows | MappedRows, before: int) -> None:
        """Create rows for new slots with a store."""
        count = self._count
        paging.hold(self._index.nbytes, count)
        room = paging.room(count)
        if room > self.capacity:
            self._grow(room)
        if isinstance(paging, CachedRows):
            paging.place(before, count)
        elif not self._zero:
            for _, part in paging.parts(slice(before, count), [""]):
                self._rows[part] = self.spec.initial(self._index.keys()[part])

    def _begin(self, slots: NDArray[np.int32], arrays: Mapping[str, Array], at: Positions) -> None:
        """Set the rows of new slots in some arrays, by column."""
        for name, array in arrays.items():
            if name or self._zero:
                array[at] = self.layout[name].fill
            else:
                array[at] = self.spec.initial(self._index.keys()[slots])

    def _check_owned(self, keys: KeyArray) -> None:
        """Raise ProtocolError unless all of some sorted keys lie in the owned ranges."""
        if not len(keys):
            return
        keys = upper(keys)
        first, last = keys.item(0), keys.item(-1)
        if self._first <= first and last <= self._last:
            return
        inside = np.searchsorted(keys, self._lasts, "right") - np.searchsorted(keys, self._begins, "left")
        if inside.sum() != len(keys):
            raise ProtocolError(
                f"vector {self.spec.name!r}: keys {first} to {last} are not all owned by this server"
            )

    def listed(self, wanted: KeyRange) -> KeyArray:
        """Return every owned key of a range, in order; ProtocolError if they are more than there may be slots."""
        if self._wide:
            raise ProtocolError(
                f"vector {self.spec.name!r}: 128-bit keys of a range cannot be listed key by key"
            )
        if sum(piece.span for owned in self.ranges if (piece := intersection(owned, wanted))) > MAX_KEYS:
            raise ProtocolError(f"vector {self.spec.name!r}: {wanted} is too wide to be listed key by key")
        return listed(self.ranges, wanted)

    def _grow(self, rows: int) -> None:
        """Grow the arrays in place to so many rows: no request waits for a copy of rows."""
        # Views, which would prevent the arrays from growing in place.
        del self._rows, self._state
        try:
            for column in self._columns.values():
                column.reserve(column.next_capacity(rows))
        finally:
            self._publish()
        if self.store is not None:
            # New rows were filled, or copied into a file.
            self.store.settle()

    # Pull and push.

    def pull(self, keys: KeyArray | KeyRange, out: Array | None = None) -> Array:
        """Return one row [n, width] per key (see `resolve`); a key that nobody pushed reads as its initial value.

        `out`, contiguous and of the vector's dtype, receives the rows if given. They are always a copy, so
        that they can be sent while the segment is being updated.
        """
        return self.pull_slots(self.resolve(keys), out, keys)

    def pull_slots(
        self, slots: Slots, out: Array | None = None, keys: KeyArray | KeyRange | None = None
    ) -> Array:
        """Return the rows of slots that were resolved before, as `pull` does; TypeError if `out` does not fit.

        `keys` are those that the slots were resolved from: needed where some have no slot.
        """
        if self.update.read is not None:
            rows = self._read(slots, keys)
            if out is None:
                return rows if rows.base is None else rows.copy()
            out.reshape(rows.shape)[...] = rows
            return out.reshape(rows.shape)
        size = slots.stop - slots.start if isinstance(slots, slice) else len(slots)
        width = self.spec.width
        if out is None:
            target = np.empty((size, width), self._dtype)
        elif out.dtype == self._dtype and out.flags.carray and out.size == size * width:
            target = out.reshape(size, width)
        else:
            raise TypeError(f"out must be {size} x {width} {self._dtype}, contiguous")
        for at, part in self._parts(slots, [""]):
            if isinstance(part, slice):
                target[at] = self._rows[part]
            else:
                _gather(self._rows, part, target[at])
        if not (self._zero or isinstance(slots, slice)) and len(absent := np.flatnonzero(slots < 0)):
            target[absent] = self.spec.initial(self._named(keys, absent))
        return target

    def _named(self, keys: KeyArray | KeyRange | None, places: NDArray[np.int64]) -> KeyArray:
        """Return the keys at some places."""
        assert keys is not None
        return (self.listed(keys) if isinstance(keys, KeyRange) else keys)[places]

    def _read(self, slots: Slots, keys: KeyArray | KeyRange | None) -> Array:
        slots = one_by_one(slots)
        known = slots >= 0
        rows = self._rows_read(slots[known])
        if known.all():
            # They may be a view of the values.
            return np.array(rows)
        out = np.empty((len(slots), *rows.shape[1:]), rows.dtype)
        out[known] = rows
        absent = np.flatnonzero(~known)
        # New rows are all alike if values begin with 0.
        new = Segment(self.spec, self.ranges, self.update)
        out[absent] = new._rows_read(new.slots_of(self._named(keys, absent[:1] if self._zero else absent)))
        return out

    def _rows_read(self, slots: NDArray[np.int32]) -> Array:
        """Return what the update's `read` says the rows of slots are; ProtocolError if they are not so many."""
        assert self.update.read is not None
        if self._paging is None:
            return self.checked(self.update.read(self._rows, self._state, slots), len(slots), "read")
        with self._paging.whole(slots) as (arrays, positions):
            values = arrays.pop("")
            # They may be a view of rows that move.
            rows = np.array(self.update.read(values, arrays, one_by_one(positions)))
        return self.checked(rows, len(slots), "read")

    def checked(self, rows: Array, count: int, what: str) -> Array:
        """Return rows from the update, [count] or [count, any width]; ProtocolError if they are others."""
        if (
            not isinstance(rows, np.ndarray)
            or rows.dtype not in _DTYPES
            or rows.shape[:1] != (count,)
            or rows.ndim > 2
        ):
            found = (
                f"{rows.dtype} of shape {list(rows.shape)}"
                if isinstance(rows, np.ndarray)
                else repr(rows)[:80]
            )
            raise ProtocolError(
                f"vector {self.spec.name!r}: {what} of update {self.update.name!r} returned {found} for {count} rows; "
                f"it must be an array of as many rows, of {', '.join(DTYPES)}"
            )
        return rows

    def push(self, keys: KeyArray | KeyRange, rows: Array, reply: bool = False) -> Array | None:
        """Update the keys (see `resolve`) by rows [n, push width]; return the reply rows if asked for."""
        return self.push_slots(self.resolve(keys, create=True), rows, reply)

    def push_slots(self, slots: Slots, rows: Array, reply: bool = False) -> Array | None:
        """Update slots that were resolved before (none -1), as `push` does.

        The reply is what the update returned, perhaps `rows` itself, or else the new values as a copy.
        """
        rows = self.shaped(slots, rows)
        answer = self.apply(slots, rows)
        if not reply:
            return None
        if answer is None:
            return self.pull_slots(slots)
        answer = self.checked(answer, len(rows), "the function")
        # The next push changes these while the reply is being sent.
        mine = (self._rows, *self._state.values())
        return answer.copy() if any(np.may_share_memory(answer, column) for column in mine) else answer

    def shaped(self, slots: Slots, rows: Array) -> Array:
        """Return rows as updates take them, [n, push width], writable and aligned; ProtocolError if they are others."""
        size = slots.stop - slots.start if isinstance(slots, slice) else len(slots)
        width = self._push_width or (rows.shape[1] if rows.ndim == 2 else 1)
        if rows.size != size * width or rows.dtype != self._push_dtype:
            want = f"{size} x {width} {self.push_row.dtype}"
            raise ProtocolError(
                f"vector {self.spec.name!r}: push of {rows.shape} {rows.dtype}, expected {want}"
            )
        if not rows.flags.carray:
            rows = rows.copy()
        return rows if rows.ndim == 2 else rows.reshape(size, width)

    def apply(self, slots: Slots, rows: Array) -> Array | None:
        """Run the update on shaped rows; return what it returned, see `checked`."""
        if self._paging is None:
            return self._apply(self._rows, self._state, slots, rows)
        if self.update.name in BUILT_IN:
            for at, part in self._paging.parts(slots):
                self._apply(self._rows, self._state, part, rows[at])
            return None
        with self._paging.whole(slots) as (arrays, positions):
            values = arrays.pop("")
            return self._apply(values, arrays, positions, rows)

    def _apply(self, values: Array, state: dict[str, Array], slots: Slots, rows: Array) -> Array | None:
        if self.update.kernel is not None:
            # As other kernels call it.
            self.update.apply(values, state, one_by_one(slots), rows, self.settings)
            return None
        if not self.spec.dense and self.update.apply_range is None:
            # Its result may depend on the slots.
            slots = one_by_one(slots)
        if not isinstance(slots, slice):
            return self.update.apply(values, state, slots, rows, self.settings)
        values = values[slots]
        state = {name: column[slots] for name, column in state.items()} if state else {}
        if self.update.apply_range is not None:
            return self.update.apply_range(values, state, rows, self.settings)
        return self.update.apply(values, state, np.arange(len(values), dtype=np.int32), rows, self.settings)

    def advance(self, keys: KeyRange, node: int, time: int) -> None:
        """Record in the clock, if there is one, that `node`'s pushes up to `time` are applied on a range."""
        if self.clock is not None:
            for owned in self.ranges:
                piece = intersection(owned, keys)
                if piece is not None:
                    self.clock.set(piece, node, time)

    # Rows in key order.

    def select(self, wanted: KeyRange = ALL) -> tuple[KeyArray, Slots]:
        """Return the keys of a range that have a slot, in order, and their slots."""
        if wanted.empty:
            return np.empty(0, self.spec.key_dtype), np.empty(0, np.int32)
        return self._index.select(wanted.begin, wanted.end - 1)

    def cut(self, wanted: KeyRange, count: int) -> int:
        """Return where to split a range so that its first part has at most `count` slots: its end if it has no more.

        Of 128-bit keys, those of one upper half are not split, and may be more.
        """
        if wanted.empty:
            return wanted.end
        keys = upper(self._index.select(wanted.begin, wanted.end - 1, count + 1)[0])
        if len(keys) <= count:
            return wanted.end
        stop = int(keys[count])
        return stop + 1 if self._wide and count and keys[0] == stop else stop

    def keys_of(self, slots: Slots) -> KeyArray:
        """Return the keys of slots, as a copy."""
        keys = self._index.keys()[slots]
        return keys.copy() if isinstance(slots, slice) else keys

    def items(self, wanted: KeyRange = ALL) -> tuple[KeyArray, Array]:
        """Return the keys of a range that have a slot and their rows, in key order, as a range pull does."""
        keys, slots = self.select(wanted)
        return keys, self.pull_slots(slots, keys=keys)

    def export(self, wanted: KeyRange = ALL) -> tuple[KeyArray, Array]:
        """Return keys and values of a range in key order, without the rows that have their initial values.

        A key without a row reads as its initial value, so these rows carry no information; without them the result
        does not depend on the layout.
        """
        keys, slots = self.select(wanted)
        values = self.taken("", slots)
        kept = (values != (0 if self._zero else self.spec.initial(keys))).any(axis=1)
        return keys[kept], values[kept]

    def export_state(self, wanted: KeyRange = ALL) -> Rows:
        """Return copies of all rows of a range, zero or not, with the update's state: for a checkpoint."""
        keys, slots = self.select(wanted)
        return self._rows_of(keys, slots)

    def _rows_of(self, keys: KeyArray, slots: Slots) -> Rows:
        """Return copies of the rows of keys."""
        state = self._taken(self._columns, slots)
        return Rows(keys, state.pop(""), state)

    def in_pieces(self) -> dict[str, Iterable[Array]]:
        """Return all rows by column ("": the values), in the order of their slots, in pieces that fit into memory.

        >>> segment = Segment(VectorSpec("w"))
        >>> segment.push(np.array([9], np.uint64), np.ones((1, 1)))
        >>> [piece.tolist() for piece in segment.in_pieces()[""]]
        [[[1.0]]]
        """
        n = len(self)
        if self._paging is None:
            return {name: (column.array[:n],) for name, column in self._columns.items()}
        copy = self._paging.sorted_copy(np.arange(n, dtype=np.int32))
        return {name: copy.column(name) for name in self._columns}

    def everything(self) -> Iterator[tuple[Slots, dict[str, Array]]]:
        """Yield slots and their rows [n, width] by column ("": the values), in any order, in parts that fit in memory.

        For functions on the servers that go through all rows. These are to be read only.

        >>> segment = Segment(VectorSpec("w"))
        >>> segment.push(np.array([5, 9], np.uint64), np.array([[1.0], [2.0]]))
        >>> sum(float(rows[""].sum()) for _, rows in segment.everything())
        3.0
        """
        if self._paging is not None:
            yield from self._paging.everything()
            return
        n = len(self)
        yield slice(0, n), {name: column.array[:n] for name, column in self._columns.items()}

    def sorted_copy(self) -> tuple[KeyArray, SortedCopy] | None:
        """Copy all rows of a segment with a store; return the keys in order, and the copy. None without a store.

        >>> Segment(VectorSpec("w")).sorted_copy() is None
        True
        """
        if self._paging is None:
            return None
        keys, slots = self.select()
        ranks = np.empty(len(keys), np.int32)
        ranks[slots] = np.arange(len(keys), dtype=np.int32)
        return keys, self._paging.sorted_copy(ranks)

    def rows_at_once(self) -> int:
        """Return how many rows may be imported at once: all, but with a store as many as fit into its memory.

        >>> Segment(VectorSpec("w")).rows_at_once()
        2147483646
        """
        row = sum(each.row for each in self._columns.values())
        return MAX_KEYS if self.store is None else self.store.rows_together(row)

    def _taken(self, names: Iterable[str], slots: Slots) -> dict[str, Array]:
        """Return copies of the rows of some columns."""
        if self._paging is not None:
            return self._paging.taken(slots, names)
        arrays = {name: self._columns[name].array[slots] for name in names}
        return {name: each.copy() for name, each in arrays.items()} if isinstance(slots, slice) else arrays

    def in_slot_order(self) -> Rows:
        """Return all rows as `export_state` does, but in the order of their slots: for a copy with the same slots."""
        everything = slice(0, len(self))
        return self._rows_of(self.keys_of(everything), everything)

    def import_state(self, rows: Rows) -> None:
        """Set the rows of their keys, values and state alike: the inverse of `export_state` and `in_slot_order`.

        Raises:
            ProtocolError: they have other state columns, or rows of other types or widths.
        """
        if set(rows.state) != set(self._state):
            have, want = sorted(rows.state), sorted(self._state)
            raise ProtocolError(f"vector {self.spec.name!r}: state columns {have}, expected {want}")
        own = {"values": self._rows, **self._state}
        for name, column in {"values": rows.values, **rows.state}.items():
            found, wanted = ((each.dtype, each.shape[1]) for each in (column, own[name]))
            # They would be converted, and a single number repeated.
            if found != wanted:
                raise ProtocolError(
                    f"vector {self.spec.name!r}: {name} of {found[0]} of width {found[1]}, expected {wanted[0]} of "
                    f"width {wanted[1]}"
                )
        slots = self._insert(rows.keys)
        for at, part in self._parts(slots):
            self._rows[part] = rows.values[at]
            for name, column in rows.state.items():
                self._state[name][part] = column[at]

    def set_rows(self, keys: KeyArray, values: Array) -> None:
        """Set the rows of keys, with the state that new rows have.

        Raises:
            ProtocolError: the values are of another type or shape, or a key is not in the segment's ranges.

        >>> segment = Segment(VectorSpec("w", width=2, update="adagrad"))
        >>> segment.set_rows(np.array([5], np.uint64), np.array([[1.0, 2.0]]))
        >>> segment.items()[1].tolist()
        [[1.0, 2.0]]
        """
        if values.dtype != self._dtype or values.shape != (len(keys), self.spec.width):
            raise ProtocolError(
                f"vector {self.spec.name!r}: rows of {values.dtype} of shape {list(values.shape)} to set, expected "
                f"{self._dtype} of shape {[len(keys), self.spec.width]}"
            )
        slots = self.resolve(keys, create=True)
        for at, part in self._parts(slots):
            self._rows[part] = values[at]
            for name, column in self._state.items():
                column[part] = self.layout[name].fill

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Drop the rows of a sparse segment whose slots are not among `kept`, b1[len]; the others get new slots.

        Slots that were resolved before are no longer valid. UsageError for a dense segment.
        """
        if self.spec.dense:
            raise UsageError(f"vector {self.spec.name!r}: a dense vector has a row for each key")
        keys, found = self.select()
        slots = one_by_one(found)
        keys, slots = keys[kept[slots]], slots[kept[slots]]
        places = np.full(len(kept), -1, np.int32)
        places[slots] = np.arange(len(slots), dtype=np.int32)
        for name, (of, noted) in self.notes.items():
            stay = places[of] >= 0
            self.notes[name] = places[of][stay], noted[stay]
        if isinstance(self._paging, CachedRows):
            # No row is moved, so that nothing can fail.
            self._index = self._empty_index(len(keys))
            self._index.insert(keys)
            self._paging.keep(slots)
            self._count = len(keys)
            self._publish()
            return
        rows = self._rows_of(keys, slots)
        self._allocate(len(keys))
        self.import_state(rows)
