"""The scheduler: drives the workers and servers by calls, and knows how far the run is (paper, sections 3.2 and 4.3).

A program's `schedule(cluster, settings)` runs here. It addresses the ranks of a role as a `Group`; a call is a task
like any other, so several may be under way at once.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from mpips import checkpoint
from mpips.errors import CheckpointError, InputError
from mpips.folder import Lines, RunFolder
from mpips.message import Command, Kind, Message
from mpips.node import Node
from mpips.progress import Column, Table
from mpips.ranges import KeyRange
from mpips.task import Task
from mpips.update import VectorSpec
from mpips.vector import Vector

Arrays = tuple[NDArray[np.uint64], NDArray[Any]]
EXPORT_ROWS = 1 << 18  # rows per message when a whole vector is read


class Group:
    """The ranks of one role, in the order of their index."""

    def __init__(self, node: Node, ranks: Sequence[int]) -> None:
        self.node, self.ranks = node, tuple(ranks)

    def __len__(self) -> int:
        return len(self.ranks)

    def start(
        self,
        function: str,
        args: dict[str, Any] | None = None,
        *,
        each: Sequence[dict[str, Any]] | None = None,
        only: Sequence[int] | None = None,
        vector: Vector | None = None,
        keys: NDArray[np.uint64] | None = None,
        values: NDArray[Any] | None = None,
        after: Iterable[Task] = (),
    ) -> Task:
        """Call a function on every rank of the group, or on those at the indices `only`.

        `args` go to all, `each[i]` to the i-th of them besides; `keys` and `values` travel as arrays. On servers
        the function concerns one `vector`. The call starts nowhere before every task of `after` is finished
        everywhere. The task's result is the list of replies (`Message`), in rank order.
        """
        ranks = self.ranks if only is None else tuple(self.ranks[i] for i in only)
        replies: list[Message | None] = [None] * len(ranks)
        parts = []
        for position, rank in enumerate(ranks):
            own = dict(args or {})
            if each is not None:
                own.update(each[position])
            message = Message(Kind.REQUEST, Command.CALL, keys=keys, values=values)
            message.namespace = vector.number if vector is not None else 0
            message.meta = {"call": function, "args": own}
            message.epoch = self.node.view.epoch
            parts.append((rank, message))
        task = self.node.tasks.submit(parts, replies.__setitem__, after, whole=True)
        task.result = replies
        return task

    def call(self, function: str, args: dict[str, Any] | None = None, **options: Any) -> list[dict[str, Any]]:
        """Call and wait; give what each rank returned."""
        return [reply.meta for reply in self.node.wait(self.start(function, args, **options))]

    def gather(self, function: str, args: dict[str, Any] | None = None, **options: Any) -> list[Arrays]:
        """Call and wait; give the (keys, rows) that each rank returned."""
        replies = self.node.wait(self.start(function, args, **options))
        return [(reply.keys, reply.values) for reply in replies]

    def total(self, task: Task) -> NDArray[Any]:
        """Wait for a call; give the sum of the rows that the ranks returned, added in their order."""
        rows = [reply.values for reply in self.node.wait(task)]
        result: NDArray[Any] = rows[0].copy()
        for more in rows[1:]:
            result += more
        return result


class Cluster:
    """What a program's scheduler is given: the servers and workers, and where to say how far the run is.

    `seconds` and `waiting` are what `phase` has measured, `stop` tells whether the run was asked to stop. `facts`
    are what a run must have in common with the checkpoint that it resumes from, by name.
    """

    def __init__(self, node: Node, job: Any, folder: RunFolder, out: TextIO | None = None) -> None:
        self.node, self.job, self.folder = node, job, folder
        self.servers = Group(node, node.layout.servers)
        self.workers = Group(node, node.layout.workers)
        self.vectors: dict[str, Vector] = {}
        self.seconds = {"total": 0.0, "load": 0.0, "train": 0.0, "checkpoint": 0.0}
        self.waiting = 0.0
        self.stop: str | None = None
        self._out = sys.stdout if out is None else out
        self._lines = Lines(folder.metrics)
        self._training: float | None = None
        self._last = ([0.0] * len(self.workers), node.van.now())
        self.checkpoints = Path("checkpoints")
        self.resume: Path | None = None
        self.stopped_early = False
        self.facts: dict[str, Any] = {}
        self._trained_before = 0.0

    def group(self, name: str) -> Group:
        """Give one worker group of the job; `workers` is all of them. KeyError if there is none of that name."""
        return Group(self.node, self.node.layout.group(name))

    def close(self) -> None:
        """Close what it writes to; idempotent."""
        self._lines.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure what happens inside as `seconds[name]`; a checkpoint inside training counts as checkpoint only."""
        before = self._accounts() if name == "train" else []
        start, inner = self.node.van.now(), self.seconds["checkpoint"]
        if name == "train":
            self._training = start
        yield
        elapsed = self.node.van.now() - start
        if name == "train":
            elapsed -= self.seconds["checkpoint"] - inner
            shares = [
                (late["waited"] - early["waited"]) / max(elapsed, 1e-9)
                for early, late in zip(before, self._accounts(), strict=True)
            ]
            self.waiting = min(1.0, sum(shares) / len(shares))
        self.seconds[name] += elapsed

    def _accounts(self) -> list[dict[str, Any]]:
        return self.workers.call("account")

    @property
    def trained(self) -> float:
        """Seconds of training so far, those before the checkpoint that was resumed from included."""
        if self._training is None:
            return self._trained_before
        here = self.node.van.now() - self._training - self.seconds["checkpoint"]
        return self._trained_before + here

    def lately(self, accounts: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """Say how the workers fare: the share of time that each waited since this was last asked, and bytes sent."""
        accounts, now = accounts or self._accounts(), self.node.van.now()
        waited = [each["waited"] for each in accounts]
        before, since = self._last
        self._last = (waited, now)
        elapsed = max(now - since, 1e-9)
        waiting = [min(max((b - a) / elapsed, 0.0), 1.0) for a, b in zip(before, waited, strict=True)]
        return {"waiting": waiting, "sent": sum(each["sent"] for each in accounts)}

    # --- checkpoints (checkpoints/README.md) ---------------------------------------------------

    def due(self, step: int) -> bool:
        """Tell whether a checkpoint is due after `step`: the job asks for one, or the run is to stop."""
        every = self.job.checkpoint.every
        return self.stop is not None or (every > 0 and step % every == 0)

    def stopping(self) -> bool:
        """Tell whether to stop now, the checkpoint being written: then the run ends as stopped, to be resumed."""
        self.stopped_early = self.stop is not None
        return self.stopped_early

    def checkpoint(self, step: int, state: dict[str, Any]) -> Path:
        """Write a checkpoint of all vectors, of the workers' state and of `state` (JSON-able); give its folder."""
        with self.phase("checkpoint"):
            folder = checkpoint.begin(self.checkpoints, step)
            shards = self.servers.start("checkpoint", {"folder": str(folder)})
            states = self.workers.start("checkpoint", {"folder": str(folder)})
            entries = [
                reply.meta for task in (shards, states) for reply in self.node.wait(task) if reply.meta
            ]
            about = {
                "step": step,
                "program": self.job.program,
                "workers": len(self.workers),
                "servers": len(self.servers),
                "job": self.job.tables(),
                "state": state,
                "facts": self.facts,
                "trained": self.trained,
                "vectors": [[vector.spec.name, vector.number] for vector in self.vectors.values()],
            }
            checkpoint.commit(folder, entries, about)
            checkpoint.prune(self.checkpoints, self.job.checkpoint.keep)
        self.event("checkpoint", step=step, folder=str(folder))
        return folder

    def restore(self) -> dict[str, Any] | None:
        """Bring back the checkpoint that the run resumes from, if any; give the state it was written with.

        Vectors are made and filled, each server reading the ranges that are its own now. Workers take their
        state back when there are as many as there were, else they build it anew from the vectors (`rebuild`).

        Raises:
            CheckpointError: the checkpoint is damaged, of another program, or written under other `facts`.
        """
        if self.resume is None:
            return None
        with self.phase("checkpoint"):
            problems = checkpoint.verify(self.resume)
            if problems:
                raise CheckpointError(f"checkpoint {self.resume} is damaged: {problems[0]}")
            about = checkpoint.read_manifest(self.resume)["about"]
            if about["program"] != self.job.program:
                raise CheckpointError(
                    f"checkpoint {self.resume} is of program {about['program']!r}, not {self.job.program!r}"
                )
            for fact, value in self.facts.items():
                if about["facts"].get(fact) != value:
                    raise CheckpointError(
                        f"checkpoint {self.resume} was written with {fact} = {about['facts'].get(fact)}, not {value}"
                    )
            self._trained_before = about["trained"]
            specs = checkpoint.vectors(self.resume)
            for name, _ in sorted(about["vectors"], key=lambda each: each[1]):
                self.create_vector(specs[name])
            self.servers.call("restore", {"folder": str(self.resume)})
            same = about["workers"] == len(self.workers)
            self.workers.call("restore" if same else "rebuild", {"folder": str(self.resume)} if same else {})
        self.say(f"resumed from {self.resume}")
        state: dict[str, Any] = about["state"] | {"same_workers": same}
        return state

    # --- what people and files are told --------------------------------------------------------

    def event(self, event: str, **facts: Any) -> None:
        """Append a line to the run's `metrics.jsonl`."""
        self._lines.append({"event": event, **facts})

    def table(self, columns: Sequence[Column]) -> Table:
        """Give the table on which the run's progress is shown."""
        return Table(columns, self._out)

    def say(self, text: str) -> None:
        """Show a line to whoever watches the run."""
        print(text, file=self._out, flush=True)

    def traffic(self) -> dict[str, Any]:
        """Count bytes by role: on the wire, and had there been no filter."""
        workers, servers = self._accounts(), self.servers.call("account")
        return {
            "worker_sent": sum(each["sent"] for each in workers),
            "server_sent": sum(each["sent"] for each in servers),
            "worker_raw": sum(each["raw"] for each in workers),
            "server_raw": sum(each["raw"] for each in servers),
            "per_filter": {},
        }

    def create_vector(self, spec: VectorSpec, expect: int = 0) -> Vector:
        """Make a vector on all servers and workers, and give a handle on it; `expect` about so many keys in all."""
        if "." in spec.name:
            raise InputError(f"vector {spec.name!r}: its name must not have a dot")
        if spec.name in self.vectors:
            raise InputError(f"vector {spec.name!r} exists already")
        number = len(self.vectors) + 1
        args = {"spec": asdict(spec), "number": number, "expect": expect // len(self.servers)}
        everyone = Group(self.node, (*self.servers.ranks, *self.workers.ranks))
        everyone.call("create_vector", args)
        vector = self.vectors[spec.name] = Vector(self.node, spec, number)
        return vector

    def export(self, vector: Vector) -> Iterator[tuple[NDArray[np.uint64], NDArray[Any]]]:
        """Read a whole vector in key order: (keys, rows) pieces of bounded size, rows of zeros left out."""
        servers = self.servers.ranks
        whole = KeyRange(0, vector.spec.extent)
        for part, server in self.node.view.ring.owners(whole, vector.spec.extent):
            begin: int | None = part.begin
            while begin is not None:
                task = self.servers.start(
                    "export",
                    {"begin": begin, "end": part.end, "limit": EXPORT_ROWS},
                    only=[servers.index(server)],
                    vector=vector,
                )
                (reply,) = self.node.wait(task)
                begin = reply.meta.get("next")
                if reply.keys is not None and reply.values is not None:
                    yield reply.keys, reply.values

    def digest(self, vector: Vector) -> str:
        """Give the sha256 of (key, row) records in key order: the same for any layout that holds the same values."""
        sha = hashlib.sha256()
        for keys, rows in self.export(vector):
            record = np.empty(len(keys), [("key", "<u8"), ("row", rows.dtype, (rows.shape[1],))])
            record["key"], record["row"] = keys, rows
            sha.update(record.tobytes())
        return sha.hexdigest()
