"""The accounts of all ranks: bytes sent, time and memory; see `Node.account`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from mpips.calls import BuiltInCall
from mpips.cluster.node import Node
from mpips.errors import WorkerLost
from mpips.filters.chain import per_filter, saved_bytes
from mpips.scheduler.group import Group
from mpips.storage.disk.store import COUNTS

SPENT = ("worked", "waited", "cpu", "sent", "received", "messages")
"""Fields that are cumulative since a rank's start, so that the work between two times is a difference."""


class Accounts:
    """Collects the accounts of the scheduler, of the servers in `hosts()` and of the workers."""

    def __init__(self, node: Node, hosts: Callable[[], Group], workers: Group) -> None:
        self._node, self._hosts, self._workers = node, hosts, workers
        # The seconds that each worker had waited at the last call of `recent_usage`, and the time of that.
        self._last: tuple[dict[int, float], float] = ({}, node.van.now())

    def all(self) -> list[dict[str, Any]]:
        """Return the account of each rank, with its `rank` and `role`. Ranks that have died are left out."""
        own = [{**self._node.account(), "rank": self._node.rank, "role": "scheduler"}]
        groups = (("server", self._hosts()), ("worker", self._workers))
        return own + [
            {**each, "rank": rank, "role": role}
            for role, group in groups
            for rank, each in self._of(group).items()
        ]

    def _of(self, group: Group) -> dict[int, dict[str, Any]]:
        task = group.start(BuiltInCall.ACCOUNT)
        with suppress(WorkerLost):
            self._node.wait(task)
        replies = zip(group.addresses, task.values, strict=True)
        return {rank: reply.meta for rank, reply in replies if reply is not None}

    def recent_usage(self, accounts: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """Return the fraction of time that each worker has waited since the last call, and bytes sent.

        `accounts` are those of the workers, if they are known. `unfiltered` are the bytes that they would have sent
        without filters.
        """
        workers = self._workers
        said = self._of(workers) if accounts is None else dict(zip(workers.addresses, accounts, strict=True))
        now = self._node.van.now()
        waited = {rank: each["waited"] for rank, each in said.items()}
        before, since = self._last
        self._last = (waited, now)
        elapsed = max(now - since, 1e-9)
        waiting = [min(max((b - before.get(rank, 0.0)) / elapsed, 0.0), 1.0) for rank, b in waited.items()]
        sent = sum(each["sent"] for each in said.values())
        saved = sum(saved_bytes(each["filters"], "worker") for each in said.values())
        return {"waiting": waiting, "sent": sent, "unfiltered": sent + saved}

    def traffic(self) -> dict[str, Any]:
        """Return bytes sent by role, with filters and as if without, and the effect of each filter."""
        said = self.all()
        filters = per_filter([each["filters"] for each in said])
        sent = {
            role: sum(each["sent"] for each in said if each["role"] == role) for role in ("worker", "server")
        }
        return {
            **{f"{role}_sent": count for role, count in sent.items()},
            **{f"{role}_raw": count + saved_bytes(filters, role) for role, count in sent.items()},
            "sent_again": dict(sum((Counter(each["sent_again"]) for each in said), Counter())),
            "per_filter": filters,
        }


def differences(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the work of each rank between two accounts; of a rank that is new in `after`, all of it."""
    known = {each["rank"]: each for each in before}
    return [
        {name: late.get(name) for name in ("rank", "role", "memory", "pss", "private")}
        | ({"store": _work_of(late, known)} if "store" in late else {})
        | {name: late[name] - known.get(late["rank"], {}).get(name, 0) for name in SPENT}
        for late in after
    ]


def _work_of(late: dict[str, Any], known: dict[int, dict[str, Any]]) -> dict[str, int]:
    """Return what a server's store holds, and what it has done since."""
    before = known.get(late["rank"], {}).get("store", {})
    return {
        name: value - before.get(name, 0) if name in COUNTS else value
        for name, value in late["store"].items()
    }
