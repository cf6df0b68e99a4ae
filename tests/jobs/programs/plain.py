"""Workers that push and pull on the fast path, many requests at once, while servers join, leave and are killed."""

from __future__ import annotations

import os
import signal
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpips import Cluster, Context, KeyRange, Task, VectorSpec, at_once, call
from mpips.bench.scaling._requesting import is_settled


@dataclass(frozen=True)
class Settings:
    keys: int = 50_000
    kill: bool = False


@call("plain.kill", reads=True)
def kill(segment: Any, args: dict[str, Any]) -> dict[str, Any]:
    if args["rank"] == int(os.environ.get("OMPI_COMM_WORLD_RANK", -1)):
        os.kill(os.getpid(), signal.SIGKILL)
    return {}


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    node, members, n = cluster.node, cluster.membership, settings.keys
    ranges = cluster.create_vector(VectorSpec("ranges", "int64", extent=n, dense=True))
    lists = cluster.create_vector(VectorSpec("lists", "int64", extent=10 * n))
    work = cluster.workers.start("work", {"keys": n})

    def rest(seconds: float) -> None:
        until = node.van.now() + seconds
        node.wait_until(lambda: node.van.now() >= until)

    rest(0.3)
    if settings.kill:
        cluster.servers.call("plain.kill", {"rank": 1}, vector=ranges)
    else:
        came = members.join_server()
        node.wait_until(lambda: came in node.view.ring.servers and is_settled(node.view, members.replicas))
        rest(0.2)
        went = node.view.ring.servers[0]
        members.leave_server(went)
        node.wait_until(
            lambda: went not in node.view.ring.servers and is_settled(node.view, members.replicas)
        )
    rest(0.3)
    cluster.workers.call("end")
    reported = [reply.meta for reply in node.wait(work)]
    pushed = sum(each["pushed"] for each in reported)
    wrong = 0
    for vector in (ranges, lists):
        sums = np.concatenate([rows[:, 0] for _, rows in cluster.export(vector)])
        wrong += int((sums != pushed).sum()) + abs(len(sums) - n)
    return {
        "pushed": pushed,
        "wrong": wrong,
        "stale": sum(each["stale"] for each in reported),
        "epoch": node.view.epoch,
    }


class Worker:
    def __init__(self, context: Context) -> None:
        self.context, self.node, self.go = context, context.node, True

    @at_once
    def end(self) -> None:
        self.go = False

    def work(self, keys: int) -> dict[str, int]:
        ranges, lists = self.context.vectors["ranges"], self.context.vectors["lists"]
        whole, ones = KeyRange(0, keys), np.ones(keys, np.int64)
        listed = lists.key_list(np.arange(0, 10 * keys, 10, dtype=np.uint64))
        out = np.zeros(keys, np.int64)
        waiting: deque[Task] = deque()
        pushed = stale = 0
        while self.go:
            waiting += [ranges.push(whole, ones), lists.push(listed, ones), ranges.pull(whole)]
            pushed += 1
            while len(waiting) > 20:
                waiting.popleft().result()
            if pushed % 10 == 0:
                self.context.wait_all(waiting)
                waiting.clear()
                fresh = ranges.pull(whole).result()
                lists.pull(listed, out=out).result()
                stale += int((fresh < pushed).any()) + int((out < pushed).any())
        self.context.wait_all(waiting)
        return {"pushed": pushed, "stale": stale}
