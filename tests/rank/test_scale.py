"""Messages by number of ranks: nothing is sent twice, and only the scheduler's work grows."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from simulated import simulate

from mpips.cluster.hash_ring import Ring
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec
from mpips.transport.in_memory import TwinVan
from mpips.transport.message import Message
from mpips.worker.worker import Context

ROUNDS = 4


class Summing:
    def __init__(self, context: Context) -> None:
        self.context, self.round = context, 0

    def go(self, rounds: int) -> None:
        """Push rounds that are summed over the workers, each after the one before."""
        vector = self.context.vectors["w"]
        keys = np.arange(4096, dtype=np.uint64)
        for _ in range(rounds):
            push = vector.push_pull(keys, np.ones((len(keys), 1), np.float64), round=self.round)
            rows, self.round = self.context.node.wait(push), self.round + 1
            assert len(rows) == len(keys)


def passes(
    servers: int, workers: int, replicas: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, dict[str, Counter[int]]]:
    """Run some passes; return the traffic, and by stage how many messages each rank sent: start, a pass, leaving."""
    counts: dict[str, Counter[int]] = {"start": Counter(), "pass": Counter(), "leave": Counter()}
    stage = ["start"]
    send = TwinVan.send

    def counted(van: TwinVan, dest: int, message: Message) -> None:
        counts[stage[0]][van.rank] += 1
        send(van, dest, message)

    monkeypatch.setattr(TwinVan, "send", counted)

    def schedule(cluster: Cluster) -> Any:
        cluster.create_vector(VectorSpec("w", extent=4096, aggregate=True))
        cluster.workers.call("go", {"rounds": 1})
        stage[0] = "pass"
        cluster.workers.call("go", {"rounds": ROUNDS})
        stage[0] = "traffic"
        counts["traffic"] = Counter()
        traffic = cluster.traffic()
        stage[0] = "leave"
        return traffic

    return simulate(schedule, Summing, servers=servers, workers=workers, replicas=replicas), counts


@pytest.mark.parametrize("replicas", [0, 1])
@pytest.mark.parametrize(("servers", "workers"), [(2, 4), (4, 16), (8, 48)])
def test_nothing_is_sent_twice_and_only_the_schedulers_messages_grow(
    servers: int, workers: int, replicas: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bounds are stated for each rank: one message a request and shard, one a server to wait for copies."""
    traffic, counts = passes(servers, workers, replicas, monkeypatch)
    assert traffic["sent_again"] == {}
    shards = Ring.of(range(servers)).shards
    first_worker, ranks = 1 + servers, 1 + servers + workers
    on_pass, leaving = counts["pass"], counts["leave"]
    # The scheduler: a call and an order to copy for each worker, and what its successors are to know of the answers.
    assert on_pass[0] <= (2 + replicas) * workers
    for worker in range(first_worker, ranks):
        assert on_pass[worker] <= ROUNDS * shards + servers * replicas + 1
    held = sum(on_pass[server] for server in range(1, first_worker))
    # Servers: an answer for each request, a change and its acknowledgement for each copy, and one message to each
    # worker for all acknowledgements.
    assert held <= shards * ROUNDS * (workers + 2 * replicas) + servers * workers * replicas + workers
    assert leaving[0] == 2 * (ranks - 1), "to stop, and that all have"
    assert max(leaving[rank] for rank in range(1, ranks)) <= 2
