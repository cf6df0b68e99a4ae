"""Finds keys and rows that a program overwrites while they are sent: `[debug] check_buffers`.

A push is sent without a copy, so its arrays must not be written before it is finished; rows that are not contiguous are
copied, and their copy is checked. Of each push a checksum is taken
when it is issued, and again when it is finished. Costs a pass over all that is pushed, twice.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.cluster.node import Node
from mpips.cluster.observer import Operation
from mpips.errors import UsageError
from mpips.process.program_line import describe
from mpips.tasks.task import Task


class BufferCheck:
    """Checks the pushes of one node, as an observer of it.

    A push whose arrays have changed fails with a `UsageError`, which names its line of the program.
    """

    def __init__(self, node: Node) -> None:
        self._issued: Operation | None = None
        self._before: tuple[int, int] = 0, 0
        node.observers.issuing += (self._issuing,)
        node.observers.issued += (self._sent,)

    def _issuing(self, op: Operation) -> None:
        self._issued, self._before = op, (_checksum(op.keys), _checksum(op.rows))

    def _sent(self, task: Task) -> None:
        op, before, self._issued = self._issued, self._before, None
        if op is None:
            return

        def ended(task: Task) -> None:
            after = _checksum(op.keys), _checksum(op.rows)
            if task.error is None and after != before:
                what = "keys" if after[0] != before[0] else "rows"
                line = describe(task.location)
                raise UsageError(
                    f"{line}: {task.what}: its {what} were overwritten before it was finished; wait for the task "
                    "first, or push a copy"
                )

        task.then(ended)


def _checksum(array: NDArray[Any] | None) -> int:
    return 0 if array is None else zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
