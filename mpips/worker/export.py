"""Export of a whole vector, read from the servers in key order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from mpips.cluster.node import Node
from mpips.keys import KeyArray
from mpips.storage.updates import VectorSpec
from mpips.transport.message import Command, Kind, Message

EXPORT_ROWS = 1 << 18
"""Rows per message."""


def export(node: Node, spec: VectorSpec, number: int) -> Iterator[tuple[KeyArray, NDArray[Any]]]:
    """Yield a vector in key order: chunks of keys [n] and rows [n, width], without rows of initial values."""
    ring, extent = node.view.ring, spec.extent
    for shard in range(ring.shards):
        part = ring.range(shard, extent)
        begin: int | None = None if part.empty else part.begin
        while begin is not None:
            message = Message(Kind.REQUEST, Command.EXPORT, namespace=number)
            message.meta = {"begin": begin, "end": part.end, "limit": EXPORT_ROWS}
            reply = _ask(node, ~shard, message)
            begin = reply.meta.get("next")
            if reply.keys is not None and reply.values is not None:
                yield reply.keys, reply.values


def _ask(node: Node, address: int, request: Message) -> Message:
    replies: list[Message] = []
    node.wait(node.tasks.submit([(address, request)], lambda _, reply: replies.append(reply)))
    return replies[0]
