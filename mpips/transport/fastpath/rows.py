"""Server fast path: finds the rows of a request, and applies it to them; sums the rows of rounds.

Rows are a run of slots, or a list of slots; they are passed as addresses.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mpips.jit.kernel import kernel
from mpips.jit.kernel_call import ADDRESS, ARGUMENTS, COUNT, FUNCTION, RAISED, SHAPE, SIZE, VARYING, WORDS
from mpips.storage.aggregate import sum_into
from mpips.storage.index_insert import insert
from mpips.storage.index_layout import COUNT as KEYS
from mpips.storage.index_layout import DONE, FIRST, ROOM, UNSET
from mpips.storage.index_lookup import find
from mpips.storage.update_kernels import adagrad_rows, adam_rows, ftrl_rows, sgd_rows
from mpips.transport import header
from mpips.transport.fastpath import rounds
from mpips.transport.fastpath.table import (
    ADAGRAD,
    ADD,
    ARENA,
    ARENA_ROOM,
    ASSIGN,
    BEGIN,
    CAPACITY,
    DTYPE,
    FTRL,
    HEAD,
    INITIAL,
    KERNEL,
    KNOWN,
    KNOWN_ROOM,
    LAST,
    PUSH,
    PUSHED_TYPE,
    PUSHED_WIDTH,
    ROWS,
    SETTINGS,
    SGD,
    STAMPS,
    STATE,
    TOP,
    TOP_ROOM,
    UPDATE,
    VALUES,
    WIDTH,
)
from mpips.transport.fastpath.views import lists_of
from mpips.transport.header import LISTED, WIDE_KEYS
from mpips.transport.key_cache import COUNT as LIST_COUNT
from mpips.transport.key_cache import FIRST as LIST_FIRST
from mpips.transport.key_cache import NAMESPACE as LIST_NAMESPACE
from mpips.transport.key_cache import SHARD as LIST_SHARD
from mpips.transport.key_cache import SIGNATURE_HIGH, SIGNATURE_LOW, USED, look_up
from mpips.transport.key_cache import SLOTS as LIST_SLOTS
from mpips.transport.mpi.abi import at, call, call_words, table
from mpips.transport.mpi.memory import ANSWER_AT, HERE, MEMCPY, NEW_LIST

MOST_WIDTH = 1 << 20
MOST_KEYS = 1 << 27
"""Keys that a request may list; it is handled in Python if it lists more."""
COPY = 0
"""The action of a pull, in addition to those of pushes (`mpips.transport.fastpath.table`)."""
# A number of rows above every slot: slots are not checked again.
EVERYWHERE = 1 << 40
_INT4, _FLOAT4, _FLOAT8, _INT8, _UINT8 = np.int32(0), np.float32(0), np.float64(0), np.int64(0), np.uint64(0)


@kernel()
def _add(mine: Any, rows: Any) -> None:
    """Add `rows` to a run of values."""
    for i in range(len(rows)):
        mine[i] += rows[i]


@kernel()
def _each(values: Any, rows: Any, slots: Any, width: int, act: int) -> None:
    """Apply `act` to the values of slots; a key without a slot (-1) reads as 0."""
    if width == 1:
        for i in range(len(slots)):
            s = np.uint32(slots[i])
            if act == ADD:
                values[s] += rows[i]
            elif act == ASSIGN:
                values[s] = rows[i]
            else:
                rows[i] = values[s] if slots[i] >= 0 else 0
        return
    # Unsigned, so that the compiler vectorizes the loops: a place below 0 would be counted from the end.
    wide = np.uint64(width)
    for i in range(len(slots)):
        row, mine = np.uint64(i) * wide, np.uint64(np.uint32(slots[i])) * wide
        if slots[i] < 0:
            for j in range(wide):
                rows[row + j] = 0
            continue
        for j in range(wide):
            if act == ADD:
                values[mine + j] += rows[row + j]
            elif act == ASSIGN:
                values[mine + j] = rows[row + j]
            else:
                rows[row + j] = values[mine + j]


@kernel()
def _do(
    memory: Any,
    values: int,
    rows: int,
    count: int,
    first: int,
    slots: int,
    width: int,
    act: int,
    like: Any,
    size: int,
) -> None:
    total, run = count * width, values + first * width * size
    if slots != 0:
        _each(at(values, EVERYWHERE, like), at(rows, total, like), at(slots, count, _INT4), width, act)
    elif act == ADD:
        _add(at(run, total, like), at(rows, total, like))
    elif act == ASSIGN:
        call(memory[MEMCPY], (run, rows, total * size))
    else:
        call(memory[MEMCPY], (rows, run, total * size))


@kernel()
def move_rows(
    memory: Any, kind: int, values: int, rows: int, count: int, first: int, slots: int, width: int, act: int
) -> None:
    """Apply `act` (COPY: to the answer) to `count` rows between two addresses; the type is a wire type.

    The values are those of a run of slots from `first` on, or of the slots listed at an address.
    """
    if kind == 0:
        _do(memory, values, rows, count, first, slots, width, act, _FLOAT4, 4)
    elif kind == 1:
        _do(memory, values, rows, count, first, slots, width, act, _FLOAT8, 8)
    elif kind == 2:
        _do(memory, values, rows, count, first, slots, width, act, _INT4, 4)
    else:
        _do(memory, values, rows, count, first, slots, width, act, _INT8, 8)


@kernel()
def _step(part: Any, rows: int, slots: Any, like: Any) -> None:
    """Apply a built-in update that has settings to the rows of slots; `rows` is an address."""
    room, width, settings = part[CAPACITY], part[WIDTH], at(part[SETTINGS], 5, _FLOAT8)
    values, given = table(part[VALUES], room, width, like), table(rows, len(slots), width, like)
    first, second = table(part[STATE], room, width, like), table(part[STATE + 1], room, width, like)
    a, b, c, d = settings[0], settings[1], settings[2], settings[3]
    if part[PUSH] == SGD:
        sgd_rows(values, slots, given, a, b, c)
    elif part[PUSH] == ADAGRAD:
        adagrad_rows(values, first, slots, given, a, b, c, d)
    elif part[PUSH] == FTRL:
        ftrl_rows(values, first, second, slots, given, a, b, c, d)
    else:
        steps = table(part[STATE + 2], room, 1, _INT8)
        adam_rows(values, first, second, steps, slots, given, a, b, c, d, settings[4])


@kernel()
def _list_run(there: int, first: int, count: int) -> None:
    """Write the slots of a run to an address."""
    slots = at(there, count, _INT4)
    for i in range(count):
        slots[i] = first + i


@kernel()
def apply_push(memory: Any, part: Any, rows: int, count: int, first: int, where: int, there: int) -> None:
    """Apply a push to a run of slots from `first` on, or to those listed at `where`; `there` is room for a list."""
    if part[PUSH] <= ASSIGN:
        move_rows(memory, part[DTYPE], part[VALUES], rows, count, first, where, part[WIDTH], part[PUSH])
        return
    slots = at(there if where == 0 else where, count, _INT4)
    if where == 0:
        _list_run(there, first, count)
    if part[DTYPE] == 0:
        _step(part, rows, slots, _FLOAT4)
    else:
        _step(part, rows, slots, _FLOAT8)


@kernel()
def _call_kernel(part: Any, rows: int, count: int, width: int, slots: int) -> bool:
    """Call an update that is a kernel for rows of the slots at an address; return False if it raises."""
    words = at(part[UPDATE], WORDS, _INT8)
    # Its slots i4[count], and then its rows [count, width]. The words of an array of one dimension are seven.
    place = words[VARYING]
    words[place + COUNT] = words[place + SHAPE] = count
    words[place + ADDRESS] = slots
    place += 7
    words[place + COUNT], words[place + ADDRESS] = count * width, rows
    words[place + SHAPE], words[place + SHAPE + 1] = count, width
    words[place + SHAPE + 2] = width * words[place + SIZE]
    words[RAISED] = 0
    return bool(call_words(words[FUNCTION], part[UPDATE] + 8 * ARGUMENTS) == 0)


@kernel()
def call_update(
    memory: Any, part: Any, rows: int, count: int, width: int, first: int, where: int, there: int, wants: bool
) -> bool:
    """Call a program's update for rows of a run of slots, or of those listed at `where`; return False if it raises.

    `there` is room for a list of slots. Its answer, if that is wanted, is described in `memory`.
    """
    if part[PUSH] == KERNEL:
        if where == 0:
            _list_run(there, first, count)
        return _call_kernel(part, rows, count, width, there if where == 0 else where)
    about = memory[HERE] + 8 * ANSWER_AT
    given = (rows, count, width, first, where, np.int64(1 if wants else 0), about)
    return bool(call(part[UPDATE], given) == 0)


@kernel()
def is_signed(words: Any) -> bool:
    """Return whether a header has the signature of a list of keys."""
    return bool(words[header.SIGNATURE] != 0 or words[header.SIGNATURE + 1] != 0)


@kernel()
def has_all(slots: Any) -> bool:
    """Return whether all keys of a list have slots."""
    for slot in slots:  # noqa: SIM110 (a kernel)
        if slot < 0:
            return False
    return True


@kernel()
def learn(memory: Any, words: Any, shard: int, namespace: int, first: int, count: int, where: int) -> None:
    """Let Python cache a list whose keys have come with its signature."""
    if is_signed(words) and count > 0:
        new = at(memory[HERE] + 8 * NEW_LIST, LIST_SLOTS + 1, _INT8)
        new[SIGNATURE_LOW], new[SIGNATURE_HIGH] = words[header.SIGNATURE], words[header.SIGNATURE + 1]
        new[LIST_SHARD], new[LIST_NAMESPACE], new[LIST_FIRST] = shard, namespace, first
        new[LIST_COUNT], new[LIST_SLOTS] = count, where


@kernel()
def bytes_of(kind: int) -> int:
    """Return the bytes of a number of a wire type."""
    return 4 if kind == 0 or kind == 2 else 8


@kernel()
def fits(part: Any, frame: Any, count: int) -> bool:
    """Return whether the rows of a push are as many as its keys, and of the type and width that the update takes."""
    width: Any = np.int64(frame.view(np.int32)[header.WIDTH])
    return bool(
        frame.view(np.int64)[header.ROWS] == count
        and frame[header.DTYPE] == part[PUSHED_TYPE]
        and 0 <= width <= MOST_WIDTH
        and (part[PUSHED_WIDTH] == 0 or width == part[PUSHED_WIDTH])
    )


@kernel()
def named_rows(memory: Any, part: Any, frame: Any, shard: int, namespace: int, least: int) -> Any:
    """Find the rows that a request names, without the slots of listed keys, which are at least `least`.

    Return whether Python need not do it; whether keys are listed; the row of a known list (-1: none); the number of
    rows; and the first slot of a run, or the address of their slots (0: a run).
    """
    words = frame.view(np.int64)
    signed = is_signed(words)
    if (frame[header.FLAGS] & LISTED) != 0:
        count = words[header.KEYS]
        known = (frame[header.FLAGS] & WIDE_KEYS) == 0 and (count == 0 or part[ROWS] > 0 or part[HEAD] != 0)
        return known and least <= count <= MOST_KEYS, True, -1, count, 0, 0
    if words[header.KEYS] != 0:
        return False, False, -1, 0, 0, 0
    if signed:
        lists = lists_of(memory)
        row = look_up(lists, words[header.SIGNATURE], words[header.SIGNATURE + 1], shard, namespace)
        if row < 0:
            return False, False, -1, 0, 0, 0
        lists[row, USED] = 1
        return True, False, row, lists[row, LIST_COUNT], lists[row, LIST_FIRST], lists[row, LIST_SLOTS]
    first = words[header.FIRST] - part[BEGIN]
    count = words[header.LAST] - words[header.FIRST] + 1
    return 0 <= first < part[ROWS] and 1 <= count <= part[ROWS] - first, False, -1, count, first, 0


@kernel()
def find_slots(part: Any, keys: Any, slots: Any, create: bool) -> Any:
    """Find the slots of listed keys: whether Python need not do it, the first slot of a run, and whether it is a run.

    With `create`, new keys get slots as long as there is room. Python does it if there is a key without a slot and its
    row is not 0.
    """
    count = len(keys)
    begin, last = np.uint64(part[BEGIN]), np.uint64(part[LAST])
    if part[ROWS] > 0:
        strays = 0
        for i in range(count):
            strays += keys[i] < begin or keys[i] > last
            slots[i] = np.int32(keys[i] - begin)
        return strays == 0, 0, False
    if keys[0] < begin or keys[count - 1] > last:
        return False, 0, False
    head = at(part[HEAD], FIRST + 1, _INT8)
    known = at(part[KNOWN], part[KNOWN_ROOM], _UINT8)
    arena = at(part[ARENA], part[ARENA_ROOM], _UINT8)
    top = at(part[TOP], part[TOP_ROOM], _UINT8)
    first = ROOM
    if create and part[INITIAL] == 0 and head[KEYS] + count <= part[CAPACITY]:
        first = insert(head, known, arena, top, keys, slots)
    if first == ROOM:
        # What was inserted so far stays: these keys are only found the next time.
        head[DONE], head[FIRST] = 0, UNSET
        first = find(head, known, arena, top, keys, slots)
        if (create or part[INITIAL] != 0) and first < 0 and not has_all(slots):
            return False, 0, False
    return True, max(first, 0), first >= 0


# --- sums ------------------------------------------------------------------------------------------------


@kernel()
def _add_two(total: Any, rows: Any, more: Any) -> None:
    for i in range(len(total)):
        total[i] = rows[i] + more[i]


@kernel()
def _sum_like(memory: Any, parts: Any, target: int, count: int, like: Any, size: int) -> None:
    """Sum the parts, of as many numbers each, to an address: that of the first part's, or another."""
    first, begin, total = parts[0, rounds.PUSHED], 1, at(target, count, like)
    if target != first:
        begin = 2
        if len(parts) == 1:
            call(memory[MEMCPY], (target, first, count * size))
        else:
            _add_two(total, at(first, count, like), at(parts[1, rounds.PUSHED], count, like))
    for worker in range(begin, len(parts)):
        _add(total, at(parts[worker, rounds.PUSHED], count, like))


@kernel()
def sum_parts(memory: Any, parts: Any, target: int, count: int, kind: int) -> None:
    """Sum the parts of a round, which have the same keys: `count` numbers of a wire type each."""
    if kind == 0:
        _sum_like(memory, parts, target, count, _FLOAT4, 4)
    elif kind == 1:
        _sum_like(memory, parts, target, count, _FLOAT8, 8)
    elif kind == 2:
        _sum_like(memory, parts, target, count, _INT4, 4)
    else:
        _sum_like(memory, parts, target, count, _INT8, 8)


@kernel()
def _unite_like(
    parts: Any, part: Any, sums: int, touched: int, places: int, total: int, width: int, like: Any
) -> int:
    """Sum parts with different keys; return the number of keys of their union."""
    base = at(part[STAMPS], 1 + part[CAPACITY], _INT8)
    base[0] += 1
    rows, slots, count, done = table(sums, total, width, like), at(touched, total, _INT4), 0, 0
    for worker in range(len(parts)):
        size, run = parts[worker, rounds.COUNT], parts[worker, rounds.RUN]
        # Its slots one by one, which are replaced by their places.
        mine = at(places + 4 * done, size, _INT4)
        done += size
        if parts[worker, rounds.SLOTS] != 0:
            listed = at(parts[worker, rounds.SLOTS], size, _INT4)
            for i in range(size):
                mine[i] = listed[i]
        else:
            for i in range(size):
                mine[i] = run + i
        given = table(parts[worker, rounds.PUSHED], size, width, like)
        count = sum_into(base[1:], base[0], count, mine, given, slots, rows, mine)
    return count


@kernel()
def unite_parts(parts: Any, part: Any, sums: int, touched: int, places: int, total: int, width: int) -> int:
    """Sum the parts of a round, with `total` rows in all; return the number of rows of the sum.

    These go to the address `sums`, their slots to `touched`, and the place among them of each row of each part to
    `places`, in order.
    """
    if part[PUSHED_TYPE] == 0:
        return _unite_like(parts, part, sums, touched, places, total, width, _FLOAT4)
    if part[PUSHED_TYPE] == 1:
        return _unite_like(parts, part, sums, touched, places, total, width, _FLOAT8)
    if part[PUSHED_TYPE] == 2:
        return _unite_like(parts, part, sums, touched, places, total, width, _INT4)
    return _unite_like(parts, part, sums, touched, places, total, width, _INT8)
