"""The scheduler's part in checkpoints: all ranks copy their state, continue, and write in the background.

    checkpoint(step):  wait for the previous one; make its folder
                       snapshot: every server and worker copies its state; the program continues
                       written:  each answers when its file is on disk
    when all have:     write the manifest; remove old checkpoints

A checkpoint that cannot be written, because the disk is full or a rank dies, is dropped with a warning; the previous
one stays. With [checkpoint] incremental, a checkpoint is a delta of the last one of this run that is complete, as the
disk shows it, so a successor goes on alike. After a delta that was dropped the next checkpoint is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from mpips.calls import BuiltInCall
from mpips.checkpoint import checkpoint
from mpips.checkpoint.lineage import Lineage, owner_of
from mpips.checkpoint.manifest import MANIFEST, complete_checkpoints, from_base, order_of
from mpips.cluster.node import Node
from mpips.cluster.registration import Registration
from mpips.config.job_file import Job
from mpips.errors import CheckpointError, MpipsError, WorkerLost
from mpips.scheduler.group import Group
from mpips.scheduler.time_limit import Durations
from mpips.tasks.task import Task

T = TypeVar("T")


class Checkpointed(Protocol):
    """The part of `Cluster` that a checkpoint needs."""

    node: Node
    job: Job
    workers: Group
    resume: Path | None
    durations: Durations

    @property
    def leads(self) -> bool:
        """Whether this rank is certain that it leads the run."""

    @property
    def lineage(self) -> Lineage:
        """The lineage of the checkpoints."""

    def decide(self, make: Callable[[], T]) -> T:
        """Return `make()`, or on a successor the value that it returned before."""

    def some(self, ranks: Sequence[int]) -> Group:
        """Return some ranks as a group."""

    def shards_by_host(self) -> list[tuple[int, list[int]]]:
        """Return the shards of which each server is the primary."""

    def worker_is_lost(self) -> bool:
        """Return whether one of the program's workers is lost."""

    def note(self, event: str, **facts: Any) -> None:
        """Append a line to the run's metrics."""


class _Pending(NamedTuple):
    """A checkpoint that is being written."""

    folder: Path
    about: dict[str, Any]
    tasks: list[Task]
    follows: dict[str, str] | None


class CheckpointCoordinator:
    """Writes the checkpoints of a cluster, one at a time; see the module."""

    def __init__(
        self,
        cluster: Checkpointed,
        warn: Callable[[str], None],
        provenance: Callable[[], dict[str, Any] | None] = lambda: None,
    ) -> None:
        """Create the coordinator; `provenance` returns the run's provenance, for the manifests."""
        self._cluster, self._warn, self._provenance = cluster, warn, provenance
        self._pending: _Pending | None = None
        self._began = 0.0
        self._unremoved = ""
        # Whether a delta was dropped, and none was written since: perhaps what it follows cannot be read.
        self._delta_failed = False
        self.problem = ""
        """Why the last one was dropped; empty if it was not."""
        self.given_up = 0
        """The number of dropped checkpoints."""
        cluster.node.register(Registration(ticks=(self._look,)))

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._pending is not None

    def begin(self, directory: Path, step: int, about: dict[str, Any]) -> str:
        """Have all ranks copy their state, and start to write it; return the folder, or "" if it cannot be made."""
        self.settle()
        self._began = self._cluster.node.van.now()
        former: Path | None = None
        for _ in range(5):
            folder = self._cluster.decide(partial(self._make, directory, step, former))
            if not folder or self._snapshot(Path(folder), about, self._follows(Path(folder))):
                return folder
            former = Path(folder)
            self._abandon(former)
        self._give_up(None, "servers died in each of 5 attempts")
        return ""

    def _make(self, directory: Path, step: int, abandoned: Path | None) -> str:
        try:
            return str(checkpoint.begin(directory, step, self._cluster.lineage, abandoned))
        except CheckpointError as error:
            self._give_up(None, str(error))
            return ""

    def _follows(self, folder: Path) -> dict[str, str] | None:
        """Return the checkpoint that a new one is a delta of; None if it is whole."""
        most = self._cluster.job.checkpoint.incremental
        if not most:
            return None

        def choose() -> dict[str, str] | None:
            run = self._cluster.lineage.run
            # A whole one needs none of those that cannot be read now.
            with suppress(CheckpointError, OSError):
                own = [each for each in complete_checkpoints(folder.parent) if owner_of(each[1]) == run]
                if not own or self._delta_failed:
                    return None
                last, manifest = own[-1]
                if order_of(last) <= order_of(folder) and len(from_base(last)) <= most:
                    return {"checkpoint": last.name, "sha256": manifest["sha256"]}
            return None

        return self._cluster.decide(choose)

    def _snapshot(self, folder: Path, about: dict[str, Any], follows: dict[str, str] | None) -> bool:
        """Return whether all have copied their state: a server may have died, or given shards away, meanwhile."""
        cluster = self._cluster
        held = cluster.decide(cluster.shards_by_host)
        hosts = cluster.some([rank for rank, _ in held])
        each = [{"shards": shards, "number": number} for number, (_, shards) in enumerate(held)]
        args: dict[str, Any] = {"folder": str(folder)}
        if cluster.job.checkpoint.incremental:
            args |= {"incremental": True, "follows": follows and follows["checkpoint"]}
        try:
            cluster.node.wait_all(
                [
                    hosts.start(BuiltInCall.SNAPSHOT, args, each=each),
                    cluster.workers.start(BuiltInCall.SNAPSHOT, {"folder": str(folder)}),
                ]
            )
        except WorkerLost:
            if cluster.decide(cluster.worker_is_lost):
                raise
            return False
        about = about | {"servers": len(held)}
        groups: list[Group] = [hosts, cluster.workers]
        writing = [group.start(BuiltInCall.WRITTEN) for group in groups]
        for task in writing:
            # `_look` handles its error.
            task.handled = True
        self._pending = _Pending(folder, about, writing, follows)
        self.problem = ""
        return True

    def settle(self) -> None:
        """Wait until the last checkpoint is complete, or dropped."""
        if self._pending is not None:
            for task in self._pending.tasks:
                self._cluster.node.wait_until(lambda task=task: task.settled, "a checkpoint's files")  # type: ignore[misc]
            self._cluster.node.wait_until(lambda: self._pending is None or self._cluster.leads)
            self._look()

    def _look(self) -> None:
        """Complete the checkpoint if all files are there."""
        pending = self._pending
        if pending is None or not all(task.settled for task in pending.tasks) or not self._cluster.leads:
            return
        self._pending = None
        # A replay writes no checkpoints.
        if self._cluster.node.policy.is_replay:
            return
        errors = [task.error for task in pending.tasks if task.error is not None]
        if errors:
            self._give_up(pending.folder, str(errors[0]), pending.follows is not None)
        # Otherwise another leader has committed it.
        elif pending.folder.is_dir() and not (pending.folder / MANIFEST).exists():
            self._commit(pending)

    def _commit(self, pending: _Pending) -> None:
        entries = [reply.meta for task in pending.tasks for reply in task.values if reply.meta]
        cluster = self._cluster
        try:
            checkpoint.commit(
                pending.folder,
                entries,
                pending.about,
                self._provenance(),
                cluster.lineage.run,
                pending.follows,
            )
        except (MpipsError, OSError) as error:
            self._give_up(pending.folder, str(error), pending.follows is not None)
            return
        self._delta_failed = False
        cluster.durations.saved(cluster.node.van.now() - self._began)
        delta = {"follows": pending.follows["checkpoint"]} if pending.follows else {}
        cluster.note("checkpoint", step=pending.about["step"], folder=str(pending.folder), **delta)
        # A recorded run can be replayed only from the checkpoint that it started from.
        spare = [
            pending.folder,
            *([cluster.resume] if cluster.resume and cluster.node.observers.need_start else []),
        ]
        try:
            checkpoint.prune(pending.folder.parent, cluster.job.checkpoint.keep, cluster.lineage, spare)
        except (MpipsError, OSError) as error:
            # The same one is tried again after each checkpoint.
            if str(error) != self._unremoved:
                self._unremoved = str(error)
                self._warn(f"warning: an old checkpoint was not removed ({error}); the run continues")

    def _abandon(self, folder: Path) -> None:
        if not self._cluster.node.policy.is_replay:
            checkpoint.abandon(folder)

    def _give_up(self, folder: Path | None, why: str, delta: bool = False) -> None:
        self.problem = why
        self._delta_failed |= delta
        self.given_up += 1
        if folder is not None:
            self._abandon(folder)
        self._cluster.note("no checkpoint", why=why)
        after = ", and the next checkpoint is a whole one" if delta else ""
        self._warn(f"warning: no checkpoint was written ({why}); the run continues{after}")
