"""The recorder of a rank's history holds no more the longer it records."""

from __future__ import annotations

import numpy as np

from mpips.history.events import Event, Issued
from mpips.history.recorder import HistoryRecorder
from mpips.rank.simulation import simulate
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec


def test_only_tasks_that_the_program_has_are_remembered() -> None:
    recorders: dict[int, HistoryRecorder] = {}
    events: list[Event] = []

    def schedule(cluster: Cluster) -> list[int]:
        w, keys = cluster.create_vector(VectorSpec("w", "int64")), np.arange(4, dtype=np.uint64)
        recorder, held = recorders[cluster.node.rank], []
        first = w.push(keys, np.ones(4, np.int64))
        for _ in range(5):
            for _ in range(10):
                w.push(keys, np.ones(4, np.int64)).result()
            held.append(len(recorder._numbers) + len(recorder._unfinished))
        w.pull(keys, after=[first]).result()
        return held

    held = simulate(
        schedule,
        lambda context: None,
        servers=2,
        attach=lambda node: recorders.setdefault(node.rank, HistoryRecorder(node, events.append)),
    )
    assert max(held) <= 2, held
    issued = [each for each in events if isinstance(each, Issued) and each.keys]
    assert len(issued) == 52 and issued[-1].after == (issued[0].number,)
