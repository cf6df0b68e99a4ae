"""The conformance tests of vans: the same programs run on the in-memory twin and on MPI.

A program is a function of one rank's van. It ends when that rank has what it expects, so a van that loses or mixes up
messages hangs it or fails an assertion.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np
import pytest

from mpips.errors import ClosedError
from mpips.keys import from_pairs
from mpips.ranges import KeyRange
from mpips.transport.message import INLINE, Command, Kind, Message
from mpips.transport.van import Van

SIZES = (0, 1, 7, 1000, INLINE // 8, INLINE // 8 + 1, 100_000)


def payload(source: int, dest: int, number: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Return keys and rows that only this message can have."""
    rng = np.random.default_rng(zlib.crc32(f"{source}/{dest}/{number}".encode()))
    n = SIZES[number % len(SIZES)]
    # Every other one has keys of 128 bits.
    keys = np.sort(from_pairs(rng.integers(0, 2**63, (n, 2) if (number + source) % 2 else n, np.uint64)))
    return keys, rng.standard_normal((n, 2))


def all_to_all(van: Van) -> None:
    """Every rank sends messages of every size to every rank, also itself, while it receives."""
    todo = [(dest, number) for number in range(len(SIZES)) for dest in range(van.size)]
    missing = {(source, number) for number in range(len(SIZES)) for source in range(van.size)}
    while todo or missing or van.pending():
        if todo:
            dest, number = todo.pop()
            keys, rows = payload(van.rank, dest, number)
            message = Message(Kind.REQUEST, Command.PUSH, van.rank, time=number, keys=keys, values=rows)
            message.range, message.meta = KeyRange(number, 2**64), {"from": van.rank}
            van.send(dest, message)
        got = van.receive()
        if got is None:
            van.idle()
            continue
        missing.remove((got.sender, got.time))
        keys, rows = payload(got.sender, van.rank, got.time)
        assert got.keys is not None and np.array_equal(got.keys, keys)
        assert got.values is not None and np.array_equal(got.values, rows)
        assert got.range == KeyRange(got.time, 2**64) and got.meta == {"from": got.sender}


def ping_pong(van: Van) -> None:
    """Ranks 0 and 1 bounce a counter."""
    if van.rank > 1:
        return
    other, count = 1 - van.rank, 0
    if van.rank == 0:
        van.send(1, Message(Kind.REQUEST, Command.CALL, 0, time=1))
    while count < 50 - van.rank:
        got = van.receive()
        if got is None:
            van.idle()
            continue
        count = got.time
        if count < 50:
            van.send(other, Message(Kind.REPLY, Command.CALL, van.rank, time=count + 1))


def counts_bytes(van: Van) -> None:
    """Bytes sent and received by a rank talking to itself are the same, and at least the payload."""
    keys, rows = payload(0, 0, len(SIZES) - 1)
    van.send(van.rank, Message(Kind.REQUEST, Command.PUSH, van.rank, keys=keys, values=rows))
    while van.receive() is None:
        van.idle()
    assert van.sent_bytes == van.received_bytes >= keys.nbytes + rows.nbytes
    assert van.sent_messages == 1


def no_deaths(van: Van) -> None:
    """Without deaths a van reports none; it has a clock."""
    before = van.wall()
    van.send(van.rank, Message(Kind.REQUEST, Command.CALL, van.rank))
    while van.receive() is None:
        assert van.failed() == []
        van.idle()
    assert van.failed() == []
    assert van.wall() >= before
    assert isinstance(van.survives, bool)


def excluded_rank_is_ignored(van: Van) -> None:
    """Rank 1 excludes rank 0: no message passes between them, not even one in flight; all others do."""
    note = Message(Kind.REQUEST, Command.CALL, van.rank, time=1)
    if van.rank == 1:
        van.exclude(0)
        van.exclude(0)
        before = van.sent_bytes
        van.send(0, Message(Kind.REQUEST, Command.PUSH, 1, values=np.ones((100_000, 1))))
        assert van.sent_bytes == before
        assert van.pending() == 0
    heard, quiet = 0, 0
    for dest in range(van.size):
        van.send(dest, note)
    expected = van.size - (van.size > 1 and van.rank < 2)
    while heard < expected or quiet < 50 or van.pending():
        got = van.receive()
        if got is None:
            quiet += heard >= expected
            van.idle()
            continue
        assert {got.sender, van.rank} != {0, 1}
        heard += 1
    assert heard == expected
    assert van.failed() == []


def closed_raises(van: Van) -> None:
    """A closed van raises ClosedError."""
    van.close()
    van.close()
    with pytest.raises(ClosedError):
        van.send(0, Message(Kind.REQUEST, Command.CALL))
    with pytest.raises(ClosedError):
        van.receive()


PROGRAMS: tuple[Callable[[Van], None], ...] = (
    all_to_all,
    ping_pong,
    counts_bytes,
    no_deaths,
    excluded_rank_is_ignored,
    closed_raises,
)
FOR_TWO = ("ping_pong",)
"""Names of the programs that take two ranks or more."""
