"""The scheduler: drives the workers and servers by calls, and knows how far the run is (paper, sections 3.2 and 4.3).

A program's `schedule(cluster, settings)` runs here. It addresses the workers, or the shards that the servers hold, as a
`Group`; a call is a task like any other, so several may be under way at once.

Another rank may go on with the program when this one dies (`mpips.scheduler.journal`), by running it again from its
start. So a program must do the same whenever it is told the same: what it learns by other ways than replies, such as
the time or a signal, it gets by `decide`; and what it writes and says, it does through the cluster, which does
nothing twice.

What the program has started and not waited for, pushes and calls, is waited for when it has returned; what of it has
failed, and nobody was told, fails the run.

When a worker dies, the call that was under way raises `WorkerLost` once all others have ended theirs. A program that
knows what to do then calls `regroup`, gives the lost work to those who are there now, and goes on.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpips.calls import Own
from mpips.checkpoint import checkpoint
from mpips.checkpoint.lineage import Lineage, of_run
from mpips.cluster.layout import Role
from mpips.cluster.membership import Membership
from mpips.cluster.node import Node
from mpips.errors import CheckpointError, NoWorkerLeft, UsageError, WorkerLost
from mpips.files.json_shape import ANY, NUMBER, Each, misfit
from mpips.files.json_shape import Table as Form
from mpips.files.json_values import keep, plain
from mpips.filters.chain import left_out, per_filter
from mpips.process.printable import printable
from mpips.rundir.folder import Lines, RunFolder
from mpips.rundir.progress import Column, Table
from mpips.scheduler.checkpoint_coordinator import Saver
from mpips.scheduler.group import Group
from mpips.scheduler.journal import Journal
from mpips.scheduler.time_limit import Pace
from mpips.storage.updates import VectorSpec
from mpips.tracing.recorder import What, during
from mpips.transport.message import Command, Kind, Message
from mpips.worker.vector import Vector, Vectors

T = TypeVar("T")
EXPORT_ROWS = 1 << 18  # rows per message when a whole vector is read


class Regrouped(NamedTuple):
    """How the workers have changed, in ranks: those before, those now, and of these `come`, who know nothing yet."""

    before: tuple[int, ...]
    now: tuple[int, ...]
    come: tuple[int, ...]

    @property
    def gone(self) -> list[int]:
        """Return those that are not workers any more."""
        return [rank for rank in self.before if rank not in self.now]


class _Live:
    """What the program says, said only where it has not been said before by another rank."""

    def __init__(self, out: TextIO, journal: Journal) -> None:
        self._out, self._journal = out, journal

    def write(self, text: str) -> int:
        """Write, unless the program is being taken over."""
        return len(text) if self._journal.replaying else self._out.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)


class Cluster:
    """What a program's scheduler is given: the servers and workers, and where to say how far the run is.

    `servers` are the shards, whoever holds them. `seconds` and `waiting` are what `phase` has measured. `facts`
    are what a run must have in common with the checkpoint that it resumes from, by name.
    """

    def __init__(
        self,
        node: Node,
        job: Any,
        folder: RunFolder,
        out: TextIO | None = None,
        journal: Journal | None = None,
        membership: Membership | None = None,
    ) -> None:
        self.node, self.job, self.folder = node, job, folder
        self.journal = Journal(node) if journal is None else journal
        self.membership = Membership(node) if membership is None else membership
        self.journal.lead()
        self.servers = Group(node, [~shard for shard in range(len(node.view.chains))])
        self.workers = Group(node, node.layout.workers)
        self.vectors = Vectors()
        self.seconds = {"total": 0.0, "load": 0.0, "train": 0.0, "checkpoint": 0.0}
        self.waiting = 0.0
        self.spent: list[dict[str, Any]] = []
        """What each rank that was there at the end of training has done in it: seconds and bytes; see `SPENT`."""
        self.asked: str | None = None
        """Who asked the run to stop, as of this moment; the program goes by `stop`."""
        self.joining, self.leaving = 0, set[int]()
        """How many workers are to join, and which are to leave, when the program comes to it."""
        self.checkpoint_asked = False
        self._settled = self.workers.addresses  # the workers of the last regroup that succeeded
        self._informed = set(self._settled)  # those of them who know all vectors
        self._out: Any = _Live(sys.stdout if out is None else out, self.journal)
        self._lines = Lines(folder.metrics)
        base = self.decide(lambda: self._count_lines())
        self._written = self._count_lines() - base  # lines of the program's that a rank before this one wrote
        self._training: float | None = None
        self._last: tuple[dict[int, float], float] = ({}, node.van.now())
        self.checkpoints = Path("checkpoints")
        self.resume: Path | None = None
        self._lineage: Lineage | None = None
        self.stopped_early = False
        self.facts: dict[str, Any] = {}
        self._since = 0  # what was issued before, to workers who have changed since, does not count
        self.metrics: dict[str, Any] = {}
        """What the program knows already of what it will give: `result.json` has it when something fails then."""
        self._stop: str | None = None
        self._trained_before = 0.0
        self._last_checkpoint = node.van.now()
        self.pace = Pace()
        self.saver = Saver(self, self.say)

    def _count_lines(self) -> int:
        """Count the lines that the program has written, whichever rank it ran on."""
        return sum(b'"noted": true' not in line for line in self.folder.metrics.read_bytes().splitlines())

    @property
    def hosts(self) -> Group:
        """Return the ranks that hold shards now."""
        return self.some(self.decide(lambda: [rank for rank, _ in self.shards_by_host()]))

    def some(self, ranks: Sequence[int]) -> Group:
        """Return some ranks as a group."""
        return Group(self.node, ranks, self.workers.crew)

    def group(self, name: str) -> Group:
        """Give one worker group of the job; `workers` is all of them. KeyError if there is none of that name."""
        self.node.layout.group(name)
        return self.some(self.node.layout.members(self.workers.addresses)[name])

    def decide(self, make: Callable[[], T]) -> T:
        """Give `make()`, JSON-able, or what it gave when the program came here before, on another rank."""
        return self.journal.decide(make)

    def settle(self) -> None:
        """Wait for all that the program has asked for, and the last checkpoint.

        Raises:
            RemoteError, WorkerLost: something has failed, and nobody was told.
        """
        self.saver.settle()
        self.node.settle(self._since)

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
        wall = self.node.van.wall
        before = self.accounts() if name == "train" else []
        start, inner = self.decide(wall), self.seconds["checkpoint"]
        if name == "train":
            self._training = start
        with during(self.node.trace, What.PHASE, name):
            yield
        elapsed = self.decide(wall) - start
        if name == "train":
            elapsed -= self.seconds["checkpoint"] - inner
            self.spent = _differences(before, self.accounts())
            shares = [each["waited"] / max(elapsed, 1e-9) for each in self.spent if each["role"] == "worker"]
            self.waiting = min(1.0, sum(shares) / max(len(shares), 1))
        self.seconds[name] += elapsed

    def accounts(self) -> list[dict[str, Any]]:
        """Ask everyone what they have sent and how they have spent their time; see `Node.account`.

        Each also has its `rank` and `role`. Who has died says nothing; the program hears of it when it counts on it.
        """
        own = [{**self.node.account(), "rank": self.node.rank, "role": "scheduler"}]
        groups = (("server", self.hosts), ("worker", self.workers))
        return own + [
            {**each, "rank": rank, "role": role}
            for role, group in groups
            for rank, each in self._accounts(group).items()
        ]

    def _accounts(self, group: Group) -> dict[int, dict[str, Any]]:
        task = group.start(Own.ACCOUNT)
        with suppress(WorkerLost):
            self.node.wait(task)
        replies = zip(group.addresses, task.result, strict=True)
        return {rank: reply.meta for rank, reply in replies if reply is not None}

    @property
    def trained(self) -> float:
        """Seconds of training so far, those before the checkpoint that was resumed from included."""
        if self._training is None:
            return self._trained_before
        here = self.node.van.wall() - self._training - self.seconds["checkpoint"]
        return self._trained_before + here

    def lately(self, accounts: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """Say how the workers fare: the share of time that each waited since this was last asked, and bytes sent.

        `unfiltered` is what they would have sent had there been no filters.
        """
        said = (
            self._accounts(self.workers)
            if accounts is None
            else dict(zip(self.workers.addresses, accounts, strict=True))
        )
        now = self.node.van.now()
        waited = {rank: each["waited"] for rank, each in said.items()}
        before, since = self._last
        self._last = (waited, now)
        elapsed = max(now - since, 1e-9)
        waiting = [min(max((b - before.get(rank, 0.0)) / elapsed, 0.0), 1.0) for rank, b in waited.items()]
        sent = sum(each["sent"] for each in said.values())
        saved = sum(left_out(each["filters"], "worker") for each in said.values())
        return {"waiting": waiting, "sent": sent, "unfiltered": sent + saved}

    def aside(self, function: str, args: dict[str, Any]) -> None:
        """Call a function of the workers beside what the program does; whether it is done, nobody is told.

        Such a call is in no journal: it comes from outside, whenever it comes.
        """
        for rank in self.workers.addresses:
            self.node.control(rank, Command.ASIDE, {"call": function, "args": args})

    # --- workers that come and go ----------------------------------------------------------------

    def renewed(self) -> bool:
        """Tell whether workers wait to join or to leave: a program that can, then calls `regroup`."""
        return self.decide(lambda: bool(self.leaving) or (self.joining > 0 and bool(self.node.view.spares)))

    def regroup(self) -> Regrouped:
        """Go on with the workers that are there now: spares take the places of lost ones, those who wait join.

        All vectors are made known to newcomers. What was issued to the workers before is forgotten. What has changed is
        told since the last time that this succeeded.

        Raises:
            NoWorkerLeft: there is nobody to go on with.
        """
        while True:
            now, crew, stayed = self.decide(self._new_crew)
            if not now:
                raise NoWorkerLeft("no worker is left, and no spare: go on with --resume latest")
            self.node.tasks.leap()
            self._since = self.node.tasks.time
            self._informed &= set(stayed)  # whoever was no worker in between has forgotten all
            self.workers.addresses, self.workers.crew = tuple(now), crew
            newcomers = Group(self.node, [rank for rank in now if rank not in self._informed], crew)
            try:
                for vector in self.vectors.values() if len(newcomers) else ():
                    newcomers.call(Own.CREATE_VECTOR, self._making(vector))
            except WorkerLost:  # a newcomer, in its turn
                continue
            changed = Regrouped(self._settled, tuple(now), newcomers.addresses)
            self._informed, self._settled = set(now), tuple(now)
            return changed

    def _new_crew(self) -> tuple[list[int], int, list[int]]:
        """Choose the workers; give them, the epoch since which they are, and those who have been all the time."""
        view = self.node.view
        were = [rank for rank in self.workers.addresses if view.roles[rank] is Role.WORKER]
        spares = list(self.node.view.spares)
        now: list[int] = []
        for rank in self.workers.addresses:
            here = view.roles[rank] is Role.WORKER
            if here and rank not in self.leaving:
                now.append(rank)
            elif not here and spares:
                now.append(spares.pop())
        while self.joining and spares:
            now.append(spares.pop())
            self.joining -= 1
        if not now:  # all others have died meanwhile
            now = [rank for rank in self.workers.addresses if view.roles[rank] is Role.WORKER]
        self.leaving.clear()
        self.membership.set_workers(now)
        view = self.node.view
        return list(view.workers), view.crew, [rank for rank in were if rank in view.workers]

    # --- checkpoints (checkpoints/README.md) ---------------------------------------------------

    @property
    def lineage(self) -> Lineage:
        """Return whose checkpoints this run's are; set from `run.json` where there is one."""
        if self._lineage is None:
            self._lineage = of_run(self.folder.path, None, self.resume)
        return self._lineage

    @lineage.setter
    def lineage(self, lineage: Lineage) -> None:
        self._lineage = lineage

    def last_checkpoint(self) -> Path | None:
        """Return the newest checkpoint that this run can be resumed from, as an absolute path."""
        found = self.lineage.latest(self.checkpoints) or self.resume
        return None if found is None else found.absolute()

    @property
    def stop(self) -> str | None:
        """Who asked the run to stop, as far as the program has been told; None if nobody has."""
        self._stop = self._stop or self.decide(lambda: self.asked)
        return self._stop

    def due(self, step: int) -> bool:
        """Tell whether a checkpoint is due after `step`: the job, or somebody, asks for one, or the run is to stop."""
        self.pace.stepped(self.node.van.now())
        every, seconds = self.job.checkpoint.every, self.job.checkpoint.every_seconds

        def late() -> bool:
            return self.checkpoint_asked or 0 < seconds <= self.node.van.now() - self._last_checkpoint

        asked = every > 0 and step % every == 0
        return self.stop is not None or asked or self.decide(late)

    def stopping(self) -> bool:
        """Tell whether to stop now, the checkpoint being written: then the run ends as stopped, to be resumed.

        Raises:
            CheckpointError: it could not be written, and there is no earlier one.
        """
        if self.stop is None:
            return False
        self.saver.settle()
        if self.saver.problem and self.last_checkpoint() is None:
            raise CheckpointError(f"the run cannot stop to be resumed: {self.saver.problem}")
        self.stopped_early = True
        return True

    def checkpoint(self, step: int, state: dict[str, Any]) -> Path | None:
        """Begin a checkpoint of all vectors, of the workers' state and of `state` (JSON-able); give its folder.

        It is written while the program goes on; one that cannot be written is given up with a warning.
        """
        about = {
            "step": step,
            "program": self.job.program,
            "workers": len(self.workers),
            "job": self.job.tables(),
            "state": state,
            "facts": self.facts,
            "trained": self.trained,
            "vectors": [[vector.spec.name, vector.number] for vector in self.vectors.values()],
        }
        with self.phase("checkpoint"):
            folder = self.saver.begin(self.checkpoints, step, about)
        self._last_checkpoint, self.checkpoint_asked = self.node.van.now(), False
        return Path(folder) if folder else None

    def shards_by_host(self) -> list[tuple[int, list[int]]]:
        """Return whose primary each server is at this moment."""
        view = self.node.view
        return [(rank, view.primary_of(rank)) for rank in view.servers if view.primary_of(rank)]

    def worker_is_lost(self) -> bool:
        """Tell whether a worker that the program counts on is gone, at this moment."""
        return any(self.node.view.roles[rank] is not Role.WORKER for rank in self.workers.addresses)

    def restore(self, unfit: Callable[[dict[str, Any]], str] | None = None) -> dict[str, Any] | None:
        """Bring back the checkpoint that the run resumes from, if any; give the state it was written with.

        Vectors are made and filled, each server reading the ranges that are its own now. Workers take their
        state back when there are as many as there were, else they build it anew from the vectors (`rebuild`).
        `unfit` is given what the manifest says about the checkpoint, and says what the program cannot go on from in its
        state; "" if there is nothing.

        Raises:
            CheckpointError: the checkpoint is damaged, of another program, has an unfit state, or was written under
                other `facts` or with other settings of a vector's update.
        """
        if self.resume is None:
            return None
        with self.phase("checkpoint"):
            about, specs = self.decide(partial(_read, self.resume))
            if about["program"] != self.job.program:
                raise CheckpointError(
                    f"checkpoint {self.resume} is of program {about['program']!r}, not {self.job.program!r}"
                )
            for fact, value in self.facts.items():
                if about["facts"].get(fact) != value:
                    raise CheckpointError(
                        f"checkpoint {self.resume} was written with {fact} = {about['facts'].get(fact)}, not {value}"
                    )
            changed = self._changed(about, specs)
            if unfit is not None and (problem := unfit(about)):
                raise CheckpointError(f"checkpoint {self.resume} cannot be resumed: {problem}")
            self._trained_before = about["trained"]
            for name, _ in sorted(about["vectors"], key=lambda each: each[1]):
                self.create_vector(VectorSpec(**specs[name]))
            self.servers.call(Own.RESTORE, {"folder": str(self.resume)})
            same = about["workers"] == len(self.workers)
            self.workers.call(
                Own.RESTORE if same else Own.REBUILD, {"folder": str(self.resume)} if same else {}
            )
            self.workers.call(Own.RESTORE_FILTERS, {"folder": str(self.resume), "workers": about["workers"]})
        wrote = about.get("run")
        self.say(f"resumed from {self.resume}" + (f", of run {wrote}" if wrote else ""))
        if changed:
            self.say(f"changed since then: {', '.join(changed)}")
        state: dict[str, Any] = about["state"] | {"same_workers": same}
        return state

    def _changed(self, about: dict[str, Any], specs: dict[str, Any]) -> list[str]:
        """List the program's settings that are others than when the checkpoint was written.

        A vector comes back with the settings of its update; one that the job file says otherwise would be ignored.
        """
        table, found = self.job.table, []
        before = about.get("job", {}).get(table, {})
        for key, value in self.job.tables()[table].items():
            was = before.get(key, value)
            if plain(was, keep) == plain(value, keep):
                continue
            if any(key in spec["settings"] and spec["settings"][key] == was for spec in specs.values()):
                raise CheckpointError(
                    f"checkpoint {self.resume} was written with [{table}] {key} = {was}, which its vectors keep, "
                    f"not {value}"
                )
            found.append(f"[{table}] {key} = {value}, was {was}")
        return found

    # --- what people and files are told --------------------------------------------------------

    def event(self, event: str, **facts: Any) -> None:
        """Append a line to the run's `metrics.jsonl`."""
        if self._written > 0:
            self._written -= 1
        else:
            self._lines.append({"event": event, **facts})

    def note(self, event: str, **facts: Any) -> None:
        """Append a line that is not the program's: it may come at any moment."""
        self._lines.append({"event": event, **facts, "noted": True})

    def table(self, columns: Sequence[Column]) -> Table:
        """Give the table on which the run's progress is shown."""
        return Table(columns, self._out)

    def say(self, text: str) -> None:
        """Show a line to whoever watches the run."""
        print(printable(text), file=self._out, flush=True)

    def traffic(self) -> dict[str, Any]:
        """Count bytes by role: on the wire, and had there been no filter; and what each filter has made of how many."""
        said = self.accounts()
        filters = per_filter([each["filters"] for each in said])
        sent = {
            role: sum(each["sent"] for each in said if each["role"] == role) for role in ("worker", "server")
        }
        return {
            **{f"{role}_sent": count for role, count in sent.items()},
            **{f"{role}_raw": count + left_out(filters, role) for role, count in sent.items()},
            "sent_again": dict(sum((Counter(each["sent_again"]) for each in said), Counter())),
            "per_filter": filters,
        }

    def create_vector(self, spec: VectorSpec, expect: int = 0) -> Vector:
        """Make a vector on all servers and workers, and give a handle on it; `expect` about so many keys in all."""
        if "." in spec.name:
            raise UsageError(f"vector {spec.name!r}: its name must not have a dot")
        if spec.name in self.vectors:
            raise UsageError(f"vector {spec.name!r} exists already")
        vector = self.vectors[spec.name] = Vector(self.node, spec, len(self.vectors) + 1)
        making = self._making(vector) | {"expect": expect // len(self.servers)}
        tasks = [group.start(Own.CREATE_VECTOR, making) for group in (self.servers, self.workers)]
        self.node.wait_all(tasks)
        return vector

    @staticmethod
    def _making(vector: Vector) -> dict[str, Any]:
        return {"spec": asdict(vector.spec), "number": vector.number, "expect": 0}

    def export(self, vector: Vector) -> Iterator[tuple[NDArray[np.uint64], NDArray[Any]]]:
        """Read a whole vector in key order: (keys, rows) pieces of bounded size, rows of zeros left out."""
        ring, extent = self.node.view.ring, vector.spec.extent
        for shard in range(ring.shards):
            part = ring.range(shard, extent)
            begin: int | None = None if part.empty else part.begin
            while begin is not None:
                message = Message(Kind.REQUEST, Command.EXPORT, namespace=vector.number)
                message.meta = {"begin": begin, "end": part.end, "limit": EXPORT_ROWS}
                reply = self._ask(~shard, message)
                begin = reply.meta.get("next")
                if reply.keys is not None and reply.values is not None:
                    yield reply.keys, reply.values

    def _ask(self, address: int, request: Message) -> Message:
        replies: list[Message] = []
        self.node.wait(self.node.tasks.submit([(address, request)], lambda _, reply: replies.append(reply)))
        return replies[0]

    def digest(self, vector: Vector) -> str:
        """Give the sha256 of (key, row) records in key order: the same for any layout that holds the same values."""
        sha = hashlib.sha256()
        for keys, rows in self.export(vector):
            record = np.empty(len(keys), [("key", "<u8"), ("row", rows.dtype, (rows.shape[1],))])
            record["key"], record["row"] = keys, rows
            sha.update(record.tobytes())
        return sha.hexdigest()


SPENT = ("worked", "waited", "cpu", "sent", "received", "messages")


def _differences(before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Say what each rank has done between two accounts; of one that has come in between, all that it has."""
    known = {each["rank"]: each for each in before}
    return [
        {name: late.get(name) for name in ("rank", "role", "memory", "pss", "private")}
        | {name: late[name] - known.get(late["rank"], {}).get(name, 0) for name in SPENT}
        for late in after
    ]


_RESUMED = {
    "program": str, "workers": int, "trained": NUMBER, "state": Form(ANY), "facts": Form(ANY),
    "vectors": Each(Each(ANY)),
}  # fmt: skip
"""What a checkpoint says of itself if a run can go on from it."""


def _read(resume: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read what a checkpoint says of itself, and of its vectors; CheckpointError if it is damaged."""
    problems = checkpoint.verify(resume)
    if problems:
        raise CheckpointError(f"checkpoint {resume} is damaged: {problems[0]}")
    specs = {name: asdict(spec) for name, spec in checkpoint.vectors(resume).items()}
    manifest = checkpoint.read_manifest(resume)
    problem = misfit(manifest["about"], _RESUMED)
    unknown = [] if problem else [name for name, _ in manifest["about"]["vectors"] if name not in specs]
    if problem or unknown:
        raise CheckpointError(
            f"checkpoint {resume} cannot be resumed: {problem or f'it has no vector {unknown[0]!r}'}"
        )
    return manifest["about"] | {"run": (manifest.get("provenance") or {}).get("folder", "")}, specs
