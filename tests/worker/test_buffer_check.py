"""[debug] check_buffers: keys and rows that are overwritten before their push is finished are an error."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from simulated import simulate

from mpips.errors import UsageError
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec
from mpips.worker.buffer_check import BufferCheck
from mpips.worker.vector import Vector

KEYS, ROWS = np.arange(4, dtype=np.uint64), np.ones(4)


def pushed(push: Callable[[Vector], None]) -> None:
    def schedule(cluster: Cluster) -> None:
        push(cluster.create_vector(VectorSpec("w")))
        cluster.settle()

    simulate(schedule, lambda context: None, servers=2, attach=BufferCheck)


@pytest.mark.parametrize("what", ["keys", "rows"])
def test_arrays_that_are_overwritten_are_an_error_with_the_push_line(what: str) -> None:
    def push(w: Vector) -> None:
        arrays = {"keys": KEYS.copy(), "rows": ROWS.copy()}
        w.push(arrays["keys"], arrays["rows"])
        arrays[what][-1] = 7

    with pytest.raises(UsageError, match=rf"{__file__}:\d+: push of vector w: its {what} were overwritten"):
        pushed(push)


def test_arrays_may_be_written_after_the_push() -> None:
    def push(w: Vector) -> None:
        rows = ROWS.copy()
        w.push(KEYS, rows).result()
        rows[:] = 0
        w.push(KEYS, rows[::2].repeat(2))
        # These are sent from a copy.
        strided = np.ones(8)[::2]
        w.push(KEYS, strided)
        strided[:] = 7
        assert w.pull(KEYS).result().tolist() == [2.0] * 4
        w.pull(KEYS)

    pushed(push)
