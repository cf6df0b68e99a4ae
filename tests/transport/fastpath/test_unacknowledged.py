"""Unacknowledged changes of the fast path: Python takes over what was sent, in order, once."""

from __future__ import annotations

import numpy as np

from mpips.transport.fastpath.table import FastPathTable
from mpips.transport.fastpath.unacknowledged import (
    CALLER,
    IN_PYTHON,
    LARGE,
    LAST_CHANGE,
    LATEST,
    MOST_ROOM,
    NUMBER,
    ROOM,
    ROOM_BYTES,
    SENDS,
    SHARD,
)
from mpips.transport.header import HEADER_BYTES
from mpips.transport.key_cache import KeyCache
from mpips.transport.message import Command, Kind, Message, bodies, encode
from mpips.transport.mpi.kernels import HELD

CALLING = 3


def table() -> FastPathTable:
    return FastPathTable(2, 4, KeyCache(0))


def put(table: FastPathTable, row: int, shard: int, number: int, keys: int) -> Message:
    """Write a change of a caller into a row, as kernels do; return its message."""
    chain = table.unacknowledged
    change = Message(Kind.CHAIN, Command.PUSH, 0, -1, shard, time=number)
    change.after = ((CALLING, number), (0, int(Command.PUSH)))
    change.keys, change.values = np.arange(keys, dtype=np.uint64), np.full((keys, 1), number, np.int64)
    frame, apart = encode(change)
    chain.frames[row, : len(frame)] = frame
    size = sum(map(len, apart))
    if size:
        assert row < LARGE
        while not chain.changes[row, ROOM_BYTES]:
            assert chain.provide(size)
        room = chain._rooms[row]
        assert room is not None and room.ctypes.data == chain.changes[row, ROOM]
        room[:size] = np.concatenate([np.asarray(each) for each in apart])
    sizes = [len(each) for each in apart] or [0, 0]
    chain.changes[row, [SHARD, NUMBER, CALLER]] = shard + 1, number, CALLING
    chain.changes[row, 2:5] = len(frame), *sizes
    answer, _ = encode(Message(Kind.REPLY, Command.PUSH, 0, CALLING, shard, time=number))
    chain.answers[row] = answer
    chain.links[shard, LAST_CHANGE] = max(number, chain.links[shard, LAST_CHANGE])
    return change


def wait(table: FastPathTable, slot: int, shard: int, number: int) -> None:
    """Let an answer to a pull wait for a change."""
    answer = Message(Kind.REPLY, Command.PULL, 0, CALLING, shard, time=100 + number)
    answer.values = np.full((2, 1), number, np.int64)
    frame, _ = encode(answer)
    table.frames[slot, : len(frame)] = frame
    table.slots[slot, 0] = HELD
    held = table.unacknowledged.held
    held[0, 0] += 1
    held[held[0, 0]] = shard, number, slot, len(frame), -1, 0, CALLING


def test_python_takes_over_changes_and_answers_in_order_up_to_a_number() -> None:
    made = table()
    changes = {
        number: put(made, row, 1, number, size)
        for row, number, size in ((17, 3, 4), (0, 2, 9000), (20, 5, 1))
    }
    put(made, 30, 0, 2, 1)
    for slot, (shard, number) in enumerate(((1, 3), (0, 2), (1, 5))):
        wait(made, slot, shard, number)
    taken = made.take_over(1, 4)
    assert [(each.number, each.change is not None) for each in taken] == [(2, True), (3, True), (3, False)]
    for each in taken[:2]:
        change = each.change
        assert change is not None
        assert encode(change)[0] == encode(changes[each.number])[0]
        for body, like in zip(bodies(change), bodies(changes[each.number]), strict=True):
            assert bytes(body) == bytes(like)
        assert (each.answers[0].kind, each.answers[0].command, each.answers[0].time) == (
            Kind.REPLY,
            Command.PUSH,
            each.number,
        )
    assert taken[2].answers[0].values is not None and taken[2].answers[0].values.tolist() == [[3], [3]]
    assert made.slots[:3, 0].tolist() == [0, HELD, HELD]
    assert [each.number for each in made.take_over(1, LATEST)] == [5, 5]
    assert [each.number for each in made.take_over(0, LATEST)] == [2, 2]
    assert made.take_over(1, LATEST) == [] and not made.slots[:3].any() and not made.unacknowledged.held[0, 0]


def test_the_last_unacknowledged_change_is_that_of_the_fast_path_once_python_has_none() -> None:
    made = table()
    chain = made.unacknowledged
    chain.set_unacknowledged(1, 7)
    assert chain.links[1, [LAST_CHANGE, IN_PYTHON]].tolist() == [7, 1]
    put(made, 16, 1, 8, 1)
    put(made, 17, 1, 9, 1)
    put(made, 18, 0, 20, 1)
    chain.set_unacknowledged(1, 0)
    assert chain.links[1, [LAST_CHANGE, IN_PYTHON]].tolist() == [9, 0]
    made.take_over(1, LATEST)
    chain.set_unacknowledged(1, 0)
    assert chain.links[1, [LAST_CHANGE, IN_PYTHON]].tolist() == [0, 0]


def test_memory_is_made_for_free_rows_only_and_so_much_at_most() -> None:
    chain = table().unacknowledged
    chain.changes[0, SHARD] = 1
    chain.sends[SENDS * 1, 0] = 1
    assert chain.provide(5000)
    assert chain.changes[:3, ROOM_BYTES].tolist() == [0, 0, 8192]
    room = chain.give_up(2)
    assert len(room) == 8192 and not chain.changes[2, ROOM:].any()
    assert chain.provide(MOST_ROOM) and not chain.provide(1)
    assert HEADER_BYTES % 8 == 0
