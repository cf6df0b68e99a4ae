"""Export of a whole vector, read from the servers in key order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

from numpy.typing import NDArray

from mpips.cluster.node import Node
from mpips.keys import KeyArray
from mpips.storage.updates import VectorSpec
from mpips.tasks.task import Task
from mpips.transport.message import Command, Kind, Message

EXPORT_ROWS = 1 << 16
"""Rows per message."""
AHEAD = 4
"""Messages of rows that are asked for before they are used: servers answer while the earlier ones are written."""


def export(node: Node, spec: VectorSpec, number: int) -> Iterator[tuple[KeyArray, NDArray[Any]]]:
    """Yield a vector in key order: chunks of keys [n] and rows [n, width], without rows of initial values."""
    ring, extent = node.view.ring, spec.extent
    parts = [(shard, ring.range(shard, extent)) for shard in range(ring.shards)]
    ranges = iter([(shard, part.begin, part.end) for shard, part in parts if not part.empty])

    def ask(shard: int, begin: int, end: int) -> tuple[int, int, Task]:
        message = Message(Kind.REQUEST, Command.EXPORT, namespace=number)
        message.meta = {"begin": begin, "end": end, "limit": EXPORT_ROWS}
        task = node.tasks.submit([(~shard, message)], lambda _, reply: setattr(task, "values", reply))
        return shard, end, task

    asked = deque(ask(*each) for each in islice(ranges, AHEAD))
    while asked:
        shard, end, task = asked.popleft()
        reply: Message = node.wait(task)
        if (begin := reply.meta.get("next")) is not None:
            asked.appendleft(ask(shard, begin, end))
        elif (following := next(ranges, None)) is not None:
            asked.append(ask(*following))
        if reply.keys is not None and reply.values is not None:
            yield reply.keys, reply.values
