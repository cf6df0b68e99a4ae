"""A chain encodes in order and decodes in reverse, each message once, whatever becomes of it on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mpips.filters import Chain, Filter
from mpips.layout import Layout, LayoutSpec
from mpips.message import Command, Kind, Message
from mpips.node import Node
from mpips.twin import Network, calm, rough
from mpips.view import first_view

LAYOUT = Layout.of(3, LayoutSpec(servers=1, workers=1))
SERVER, WORKER = 1, 2
Log = list[tuple[str, str, int]]


def numbering(log: Log) -> Filter:
    """Add to all values the count of messages so far, and say it in the metadata: one state per peer."""

    def encode(count: int, message: Message) -> tuple[int, Message]:
        log.append(("numbering", "encode", count))
        assert message.values is not None
        meta = {**message.meta, "count": count}
        return count + 1, replace(message, values=message.values + count, meta=meta)

    def decode(count: int, message: Message) -> tuple[int, Message]:
        log.append(("numbering", "decode", count))
        assert message.values is not None
        return count + 1, replace(message, values=message.values - message.meta["count"])

    return Filter("numbering", lambda: 0, encode, decode)


def halving(log: Log) -> Filter:
    """Send the double of all values in half of the bytes; order matters between this and `numbering`."""

    def encode(count: int, message: Message) -> tuple[int, Message]:
        log.append(("halving", "encode", count))
        assert message.values is not None
        return count + 1, replace(message, values=(2 * message.values).astype(np.float32))

    def decode(count: int, message: Message) -> tuple[int, Message]:
        log.append(("halving", "decode", count))
        assert message.values is not None
        return count + 1, replace(message, values=message.values.astype(np.float64) / 2)

    return Filter("halving", lambda: 0, encode, decode)


def test_a_chain_undoes_in_reverse_what_it_did() -> None:
    log: Log = []
    sender, receiver = (Chain([numbering(log), halving(log)]) for _ in range(2))
    for count, peer in enumerate([4, 4, 5, 4]):
        rows = np.arange(3.0).reshape(3, 1)
        sent = sender.encode(peer, Message(Kind.REQUEST, Command.PUSH, values=rows))
        number = [0, 1, 0, 2][count]  # of this peer's messages
        assert sent.values is not None and sent.values.dtype == np.float32
        assert sent.values[:, 0].tolist() == [2.0 * (x + number) for x in range(3)]
        got = receiver.decode(peer, sent)
        assert got.values is not None and np.array_equal(got.values, rows)
    assert [name for name, _, _ in log[:4]] == ["numbering", "halving", "halving", "numbering"]


def test_no_filters_no_change() -> None:
    message = Message(Kind.REQUEST, Command.CALL)
    assert Chain().encode(1, message) is message and Chain().decode(1, message) is message


@pytest.mark.parametrize("lossy", [False, True])
@pytest.mark.parametrize("window", [1, 8])
def test_each_message_passes_each_filter_once(lossy: bool, window: int) -> None:
    log: dict[int, Log] = {SERVER: [], WORKER: []}
    copies: list[int] = []
    fate = rough(5, delay=0.05, drop=0.3, duplicate=0.3) if lossy else calm

    def counted(source: int, dest: int, message: Message) -> Sequence[float]:
        copies.append(len(fate(source, dest, message)))
        return [0.01] * copies[-1]

    network, count, rows = Network(3, counted, seed=2), 12, 10

    def node(rank: int) -> Node:
        def chain() -> Chain:
            return Chain([numbering(log[rank]), halving(log[rank])])

        return Node(
            network.vans[rank], LAYOUT, first_view(LAYOUT), window=window, resend=0.05,
            outgoing=chain(), incoming=chain(),
        )  # fmt: skip

    server, worker = node(SERVER), node(WORKER)
    seen: dict[int, list[float]] = {}
    answers: dict[int, list[float]] = {}

    def serve(request: Message) -> None:
        assert request.values is not None
        seen[request.time] = request.values[:, 0].tolist()
        server.reply(request, request.values * 10)

    def deliver(_: int, reply: Message) -> None:
        assert reply.values is not None
        answers[reply.time] = reply.values[:, 0].tolist()

    server.handlers[Command.PUSH] = serve
    for number in range(count):
        push = Message(Kind.REQUEST, Command.PUSH, values=np.full((rows, 1), float(number)))
        worker.tasks.submit([(SERVER, push)], deliver)
    while worker.tasks.unfinished:
        while server.poll() + worker.poll():
            pass
        network.time += 0.01
        assert network.time < 60
    assert seen == {number: [float(number)] * rows for number in range(count)}
    assert answers == {number: [10.0 * number] * rows for number in range(count)}
    for rank in (SERVER, WORKER):
        for name in ("numbering", "halving"):
            for direction in ("encode", "decode"):
                states = [s for n, d, s in log[rank] if (n, d) == (name, direction)]
                assert states == list(range(count)), (rank, name, direction)
    for each in (server, worker):
        account: dict[str, Any] = each.account()
        assert account["raw"] - account["sent"] == each.saved_bytes == count * rows * 4, "f8 went as f4"
    if lossy:
        assert len(copies) > 2 * count and {0, 2} <= set(copies), "some lost, some repeated, some sent again"
    else:
        assert copies == [1] * 2 * count
