"""Migration: the rate limit of copies, and their chunks, in a window, in any order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mpips.server import migration
from mpips.server.migration import IncomingCopy, OutgoingCopy, RateLimit
from mpips.storage.disk.buffer import Buffer
from mpips.transport.message import Command, Message


class Listed:
    """A shard without vectors."""

    number, changes = 3, 7


def test_chunks_are_sent_within_the_window_and_make_the_copy_in_any_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packed = np.arange(80, dtype=np.uint8)
    monkeypatch.setattr(migration, "CHUNK", 24)
    monkeypatch.setattr(migration, "WINDOW", 2)
    monkeypatch.setattr(migration, "pack", lambda shard: Buffer.of(packed))
    sent: list[tuple[int, Message]] = []
    shard: Any = Listed()
    copy, free = OutgoingCopy(shard), RateLimit(0.0, lambda: 0.0)
    for acknowledged, chunks in enumerate((2, 3, 4, 4)):
        copy.send_chunks(5, lambda dest, chunk: sent.append((dest, chunk)), free)
        assert len(sent) == chunks, acknowledged
        copy.acknowledged()
    assert {(dest, each.command, each.shard, each.time) for dest, each in sent} == {
        (5, Command.COPY_CHUNK, 3, 7)
    }
    received = IncomingCopy()
    *others, last = [sent[at][1] for at in (2, 0, 3, 1)]
    assert not received and all(received.add(each) is None for each in others) and received
    assert received.add(others[0]) is None, "a repeated chunk counts once"
    whole = received.add(last)
    assert whole is not None and np.array_equal(whole.read(0, len(whole)), packed)


def test_the_rate_limit_bounds_all_copies_together() -> None:
    now = [0.0]
    rate_limit = RateLimit(100.0, lambda: now[0])
    assert rate_limit.may()
    rate_limit.sent(50)
    rate_limit.sent(50)
    for at, may in ((0.0, False), (0.99, False), (1.0, True)):
        now[0] = at
        assert rate_limit.may() is may
    rate_limit.sent(10)
    assert not rate_limit.may()
    free = RateLimit(0.0, lambda: now[0])
    free.sent(10**9)
    assert free.may()
