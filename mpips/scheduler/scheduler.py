"""The scheduler: calls workers and servers, and records the progress of the run (paper, sections 3 and 3.4).

A program's `schedule(cluster, settings)` runs here. It addresses the workers, or the shards of the servers, as a
`Group`; a call is a task like any other, so several may be outstanding at once.

When this rank dies, another rank continues the program (`mpips.scheduler.journal`), by running it again from its start.
So a program must be deterministic given its inputs: it gets inputs other than replies, such as the time or a signal, by
`decide`; it writes and prints through the cluster, which suppresses repeated output.

Tasks that the program has started and not waited for, pushes and calls, are waited for when it has returned; an error
of one of them that no caller has seen fails the run.

When a worker dies, the present call raises `WorkerLost` once all other workers have ended theirs. A program that can
recover then calls `regroup`, gives the lost work to the present workers, and continues.

The module is long because it is one class, all that a program's scheduler sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, TextIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpips.calls import BuiltInCall
from mpips.checkpoint.lineage import Lineage, of_run
from mpips.checkpoint.manifest import manifest_if_complete
from mpips.cluster.node import Node
from mpips.config.job_file import Job
from mpips.config.program import VECTORS
from mpips.errors import CheckpointError, NoWorkerLeft, UsageError, WorkerLost
from mpips.files.json_values import check_names, json_data, keep
from mpips.keys import KeyArray
from mpips.membership.membership import Membership
from mpips.rundir.folder import RunFolder
from mpips.rundir.progress import Column, Table
from mpips.scheduler import resuming
from mpips.scheduler.accounts import Accounts, differences
from mpips.scheduler.checkpoint_coordinator import CheckpointCoordinator
from mpips.scheduler.export import digest, save
from mpips.scheduler.group import Group
from mpips.scheduler.journal import Journal
from mpips.scheduler.output import Output
from mpips.scheduler.pending_orders import PendingOrders
from mpips.scheduler.regrouping import Regrouped, new_workers, still_workers
from mpips.scheduler.time_limit import Durations
from mpips.storage.eviction import least_that_stays
from mpips.storage.updates import VectorSpec
from mpips.tasks.task import Task
from mpips.tracing.trace_file import What
from mpips.transport.message import Command
from mpips.worker.vector import Vector, Vectors

T = TypeVar("T")
SET_TAU = "set_tau"
"""The function of a program's workers that sets the maximal delay."""


class Cluster:
    """The argument of a program's `schedule`: the servers and workers, and the reports of progress.

    `servers` are the shards, on whichever server. `seconds` and `waiting` are measured by `phase`. `facts` must be
    equal in the run and in the checkpoint that it resumes from, by name.

    >>> from mpips import VectorSpec, simulate
    >>> def schedule(cluster: Cluster):
    ...     cluster.create_vector(VectorSpec("w"))
    ...     with cluster.phase("train"):
    ...         cluster.event("began", workers=len(cluster.workers))
    ...     return sorted(cluster.vectors), len(cluster.servers)
    >>> simulate(schedule, worker=lambda context: None, servers=2)
    (['w'], 2)
    """

    def __init__(
        self,
        node: Node,
        job: Job,
        folder: RunFolder,
        out: TextIO | None = None,
        journal: Journal | None = None,
        membership: Membership | None = None,
        orders: PendingOrders | None = None,
        checkpoints: Path = Path("checkpoints"),
        resume: Path | None = None,
        lineage: Lineage | None = None,
        provenance: Callable[[], dict[str, Any] | None] = lambda: None,
        resume_earlier: Callable[[Path], Lineage] | None = None,
    ) -> None:
        """Create the cluster; `resume_earlier`: used for a damaged checkpoint, an earlier one gives the lineage."""
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
        """The work of each rank that was present at the end of training: seconds and bytes; see `SPENT`."""
        self.orders = PendingOrders() if orders is None else orders
        """The present requests to the run; the program reads `stop`, `due` and `renewed`."""
        # The workers of the last regroup that succeeded.
        self._settled = self.workers.addresses
        # Those of them that have all vectors.
        self._informed = set(self._settled)
        self._output = Output(folder, out, self.journal)
        # The begin of the present phase of training, and the seconds of checkpoints before it; None outside of one.
        self._training: tuple[float, float] | None = None
        self._accounts = Accounts(node, lambda: self.hosts, self.workers)
        self.checkpoints, self.resume, self._lineage = checkpoints, resume, lineage
        self._resume_earlier = resume_earlier
        self.stopped_early = False
        self.after_training = False
        """Whether only the model is exported and evaluated: there is no further step for orders."""
        self.evaluation_cut_by: str | None = None
        """The source of the request to stop that has cut the evaluation of the model short, if one has."""
        self.untrained = False
        """Whether the program reads data or a checkpoint, and has trained nothing: a stop would lose nothing."""
        # Whether it has trained, so that a later load is part of a step.
        self._has_trained = False
        self.facts: dict[str, Any] = {}
        # Vectors that a checkpoint has filled, and that the program has not taken up.
        self._restored: set[str] = set()
        # Tasks issued earlier, to workers of before a change, are not waited for.
        self._since = 0
        self.metrics: dict[str, Any] = {}
        """Metrics of the program so far: `result.json` has them if a later step fails."""
        self._stop: str | None = None
        self._trained_before = 0.0
        self._last_checkpoint = node.van.now()
        self.durations = Durations()
        self.coordinator = CheckpointCoordinator(self, self.say, provenance)

    @property
    def hosts(self) -> Group:
        """Return the ranks that hold shards now."""
        return self.some(self.decide(lambda: [rank for rank, _ in self.shards_by_host()]))

    def some(self, ranks: Sequence[int]) -> Group:
        """Return some ranks as a group.

        Raises:
            UsageError: one is no rank of the run, or is named twice.
        """
        size = len(self.node.layout.places)
        wrong = [rank for rank in ranks if not 0 <= rank < size]
        if wrong or len(set(ranks)) < len(ranks):
            what = f"{wrong[0]} is no rank of this run, 0 to {size - 1}" if wrong else "a rank is named twice"
            raise UsageError(f"cluster.some({list(ranks)}): {what}")
        return Group(self.node, ranks, self.workers.workers_since)

    def group(self, name: str) -> Group:
        """Return one worker group of the job; `workers` is all of them. KeyError if no group has that name."""
        self.node.layout.group(name)
        return self.some(self.node.layout.members(self.workers.addresses)[name])

    def wait(self, task: Task) -> Any:
        """Wait until a task is finished; return its values. The same as `task.result()`."""
        return task.result()

    def wait_all(self, tasks: Iterable[Task]) -> list[Any]:
        """Wait for each of some tasks; return their results, in order. Raises as `Task.result`."""
        return self.node.wait_all(tasks)

    @property
    def groups(self) -> tuple[str, ...]:
        """The names of the job's worker groups, in the order of the job file."""
        return tuple(self.node.layout.groups())

    @property
    def holds_back(self) -> bool:
        """Whether filters may hold parts of pushes back, so that a program should end with `Vector.flush`."""
        return bool(self.dropping)

    @property
    def dropping(self) -> list[str]:
        """The names of the filters of pushes that may drop rows, or hold them back until `Vector.flush`."""
        return self.node.codec.pushes.dropping

    def decide(self, make: Callable[[], T]) -> T:
        """Return `make()`, JSON-able, or on a successor the value that it returned here before.

        Raises:
            UsageError: a table in the value has a key that is not a string, so a successor would have another value.
        """
        value = self.journal.decide(make)
        check_names(value, "the decided value")
        return value

    def settle(self) -> None:
        """Wait for all tasks of the program, and the last checkpoint.

        Raises:
            RemoteError, WorkerLost: a task has failed whose error no caller has seen.
        """
        self.coordinator.settle()
        self.node.settle(self._since)

    def save_vectors(self) -> None:
        """Write all vectors into the run's folder, for `Run.vector`; a warning is printed if that is not possible.

        Not where [checkpoint] at_end is off, where there are none, and where the run is to be resumed.
        """
        if self.vectors and self.job.checkpoint.at_end and not self.stopped_early:
            path = self.folder.path / VECTORS
            if problem := save(self.node, self.vectors.values(), path):
                self.say(f"warning: the vectors at the end are not in {path}: {problem}")

    def close(self) -> None:
        """Close the files; idempotent."""
        self._output.close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _losing_nothing(self) -> Iterator[None]:
        """End the run at once if it is asked to stop during the body, unless it has trained before."""
        self.untrained = not self._has_trained
        try:
            yield
        finally:
            self.untrained = False

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the body as `seconds[name]`; a checkpoint inside training counts as checkpoint only.

        A stop request during `load`, before any training, ends the run at once: there is nothing to save.
        """
        wall = self.node.van.wall
        before = self.accounts() if name == "train" else []
        start, inner = self.decide(wall), self.seconds["checkpoint"]
        if name == "train":
            self._training = start, inner
        whole = self._losing_nothing() if name == "load" else nullcontext()
        with self.node.observers.during(What.PHASE, name), whole:
            yield
        if name == "train":
            self._training = None
        self._has_trained |= name == "train"
        elapsed = self.decide(wall) - start
        if name == "train":
            elapsed -= self.seconds["checkpoint"] - inner
            self.spent = differences(before, self.accounts())
            shares = [each["waited"] / max(elapsed, 1e-9) for each in self.spent if each["role"] == "worker"]
            self.waiting = min(1.0, sum(shares) / max(len(shares), 1))
        self.seconds[name] += elapsed

    def accounts(self) -> list[dict[str, Any]]:
        """Return the traffic and time accounts of all ranks; see `Node.account`.

        Each also has its `rank` and `role`. Ranks that have died are left out; the program sees their loss in its next
        call.
        """
        return self._accounts.all()

    @property
    def trained(self) -> float:
        """Seconds in phases `train` so far, including those before the checkpoint that was resumed from."""
        here = self.seconds["train"]
        if self._training is not None:
            begin, saved = self._training
            here += self.node.van.wall() - begin - (self.seconds["checkpoint"] - saved)
        return self._trained_before + here

    def recent_usage(self, accounts: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        """Return the fraction of time that each worker has waited since the last call, and bytes sent.

        `unfiltered` are the bytes that they would have sent without filters.
        """
        return self._accounts.recent_usage(accounts)

    def notify(self, function: str, args: dict[str, Any]) -> None:
        """Call a function of the workers outside the program's order, without a reply.

        Such a call is not in the journal: users issue it, at any time.

        Raises:
            UsageError: a table in `args` has a key that is not a string.
        """
        check_names(args, f"the arguments of {function}")
        for rank in self.workers.addresses:
            self.node.control(rank, Command.NOTIFY, {"call": function, "args": args})

    # --- workers that come and go ----------------------------------------------------------------

    def renewed(self) -> bool:
        """Return whether workers wait to join or to leave: a program that supports it then calls `regroup`."""
        return self.decide(
            lambda: (
                not self.orders.leaving.isdisjoint(self.node.view.workers)
                or (self.orders.joining > 0 and bool(self.node.view.spares))
            )
        )

    def regroup(self) -> Regrouped:
        """Continue with the present workers: spares replace lost workers, and waiting ones join.

        All vectors are created on new workers. Tasks of the former workers are dropped. The returned change is relative
        to the last regroup that succeeded.

        Raises:
            NoWorkerLeft: there is no worker and no spare.
        """
        while True:
            now, workers_since, stayed, *by_orders = self.decide(
                lambda: new_workers(self.membership, self.workers.addresses, self.orders, self.journal.secure)
            )
            # Not in records of earlier versions.
            joined = sum(by_orders)
            # A successor, which repeats the decision, has the numbers of all orders, see `PendingOrders`.
            self.orders.joining, self.orders.joined = (
                self.orders.joining - joined,
                self.orders.joined + joined,
            )
            if not now:
                raise NoWorkerLeft("no worker is left, and no spare: resume with --resume latest")
            self.node.tasks.skip_times()
            self._since = self.node.tasks.time
            # A rank that was not a worker in between has lost its state.
            self._informed &= set(stayed)
            self.workers.addresses, self.workers.workers_since = tuple(now), workers_since
            newcomers = Group(self.node, [rank for rank in now if rank not in self._informed], workers_since)
            try:
                for vector in self.vectors.values() if len(newcomers) else ():
                    newcomers.call(BuiltInCall.CREATE_VECTOR, self._making(vector))
            except WorkerLost:
                # A new worker was lost, too.
                continue
            if self.orders.tau is not None:
                self.notify(SET_TAU, {"tau": self.orders.tau})
            changed = Regrouped(self._settled, tuple(now), newcomers.addresses)
            self._informed, self._settled = set(now), tuple(now)
            return changed

    # --- the restart point of a successor ----------------------------------------------------------

    def compact(self, state: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Pass the restart point of the program, so that a successor need not repeat all its steps.

        A program calls this at one place, in each turn of its main loop. `state()` is all that the rest of the program
        depends on and that the steps since the first turn have changed, JSON-able. It is called from time to time, at
        most once each turn, and must not call ranks. The loop creates no vectors.

        Returns:
            None; but once, on a successor that comes here for the first time, a state of a later turn: the program
            takes it, and continues with that turn.

        Raises:
            UsageError: `state()` is not JSON-able, or the program has come here by other steps than on the scheduler
                before.

        >>> from mpips import simulate
        >>> def schedule(cluster: Cluster):
        ...     at = {"steps": 0, "sum": 0}
        ...     while at["steps"] < 3:
        ...         at = cluster.compact(lambda: at) or at
        ...         (reply,) = cluster.workers.call("square", {"of": at["steps"]})
        ...         at = {"steps": at["steps"] + 1, "sum": at["sum"] + reply["is"]}
        ...     return at["sum"]
        >>> class Worker:
        ...     def __init__(self, context):
        ...         pass
        ...
        ...     def square(self, of):
        ...         return {"is": of * of}
        >>> simulate(schedule, Worker)
        5
        """
        if self.coordinator.is_writing:
            return None
        kept = self.journal.compact(
            lambda: json_data({**self._kept(), "state": state()}, keep, "compact"), self._since
        )
        if kept is None:
            return None
        self._output.continue_at(kept["events"])
        self.workers.addresses, self.workers.workers_since = tuple(kept["workers"]), kept["workers_since"]
        self._settled, self._informed = tuple(kept["settled"]), set(kept["informed"])
        # A successor has the numbers of all orders, see `PendingOrders`.
        joined = kept["joined"] - self.orders.joined
        self.orders.joining, self.orders.joined = self.orders.joining - joined, kept["joined"]
        self.coordinator.problem, self.coordinator.given_up = kept["dropped"]
        self.seconds, self._since, self._stop = dict(kept["seconds"]), kept["since"], kept["stop"]
        self._has_trained = True
        found: dict[str, Any] = kept["state"]
        return found

    def _kept(self) -> dict[str, Any]:
        """Return this object's part of the program's state."""
        return {
            "events": self._output.events,
            "workers": self.workers.addresses,
            "workers_since": self.workers.workers_since,
            "settled": self._settled,
            "informed": sorted(self._informed),
            "joined": self.orders.joined,
            "dropped": (self.coordinator.problem, self.coordinator.given_up),
            "seconds": self.seconds,
            "since": self._since,
            "stop": self._stop,
        }

    # --- checkpoints (checkpoints/README.md) ---------------------------------------------------

    @property
    def lineage(self) -> Lineage:
        """Return the lineage of this run's checkpoints."""
        if self._lineage is None:
            self._lineage = of_run(self.folder, None, self.resume)
        return self._lineage

    def last_checkpoint(self) -> Path | None:
        """Return the newest checkpoint that this run can resume from, as an absolute path; None if there is none.

        The one that it has resumed from may be gone: it is that of another run.
        """
        found = self.lineage.latest(self.checkpoints)
        if found is None and self.resume is not None and manifest_if_complete(self.resume) is not None:
            found = self.resume
        return None if found is None else found.absolute()

    @property
    def stop(self) -> str | None:
        """The source of the stop request, as the program sees it; None if there is none."""
        self._stop = self._stop or self.decide(lambda: self.orders.stop)
        return self._stop

    def due(self, step: int) -> bool:
        """Return whether a checkpoint is due after `step`: by the job file, on request, or before a stop."""
        self._has_trained = True
        self.durations.stepped(self.node.van.now())
        every = self.job.checkpoint.every
        asked = every > 0 and step % every == 0
        return self.stop is not None or asked or self.decide(self._is_late)

    def due_within_step(self) -> bool:
        """Return whether a checkpoint is due by time or on request, before a step that takes long has ended.

        Only with [checkpoint] incremental, so that it is small. Then `due` returns it, too.

        >>> from mpips import simulate
        >>> simulate(lambda cluster: cluster.due_within_step(), worker=lambda context: None)
        False
        """
        return self.job.checkpoint.incremental > 0 and self.decide(self._is_late)

    def _is_late(self) -> bool:
        seconds = self.job.checkpoint.every_seconds
        return self.orders.checkpoint or 0 < seconds <= self.node.van.now() - self._last_checkpoint

    def stopping(self) -> bool:
        """Return whether to stop now; the checkpoint is written then, and the run ends as stopped, to be resumed.

        Raises:
            CheckpointError: it could not be written, and there is no earlier one.
        """
        if self.stop is None:
            return False
        self.coordinator.settle()
        if self.coordinator.problem and self.last_checkpoint() is None:
            raise CheckpointError(f"the run cannot stop to be resumed: {self.coordinator.problem}")
        self.stopped_early = True
        return True

    def checkpoint(self, step: int, state: dict[str, Any]) -> Path | None:
        """Start a checkpoint of all vectors, of the workers' state and of `state` (JSON-able); return its folder.

        Keys of tables become strings, and numpy values Python values. It is written while the program continues; one
        that cannot be written is dropped with a warning.

        Raises:
            UsageError: `state` is no table that JSON can represent, or `step` is not an integer from 0 on.
        """
        if isinstance(step, bool) or not isinstance(step, (int, np.integer)) or step < 0:
            raise UsageError(f"checkpoint: step {step!r} is not an integer, at least 0")
        if not isinstance(state, dict):
            raise UsageError(f"checkpoint: state {state!r} is not a dict")
        step, state = int(step), json_data(state, keep, "state")
        about = {
            "step": step,
            "program": self.job.program,
            "workers": len(self.workers),
            "groups": self._group_sizes(),
            "job": self.job.tables(),
            "state": state,
            "facts": self.facts,
            "trained": self.trained,
            # Before the rows are copied: they are no older.
            "taken": self.node.van.wall(),
            "vectors": [[vector.spec.name, vector.number] for vector in self.vectors.values()],
        }
        # A successor that repeats an earlier checkpoint may have a later order.
        repeated = self.journal.replaying
        with self.phase("checkpoint"):
            folder = self.coordinator.begin(self.checkpoints, step, about)
        self._last_checkpoint = self.node.van.now()
        self.orders.checkpoint = self.orders.checkpoint and repeated
        return Path(folder) if folder else None

    def _group_sizes(self) -> dict[str, int]:
        """Return the number of workers of each group."""
        return {name: len(self.group(name)) for name in self.groups}

    def shards_by_host(self) -> list[tuple[int, list[int]]]:
        """Return the shards of which each server is the primary at this moment."""
        view = self.node.view
        return [(rank, view.primary_of(rank)) for rank in view.servers if view.primary_of(rank)]

    @property
    def leads(self) -> bool:
        """Whether this rank is certain that it leads the run; see `Membership.is_confirmed`."""
        return self.membership.is_confirmed

    def worker_is_lost(self) -> bool:
        """Return whether one of the program's workers is lost at this moment."""
        return len(still_workers(self.node.view, self.workers.addresses)) < len(self.workers)

    def restore(self, unfit: Callable[[dict[str, Any]], str] | None = None) -> dict[str, Any] | None:
        """Restore the checkpoint that the run resumes from, if any; return the state that was saved with it.

        Vectors are created and filled, and the program takes them up by `vector`; each server reads the ranges that are
        its own now. Workers restore their state if each group is as large as it was, else they rebuild it from the
        vectors (`rebuild`). `unfit` gets the manifest's description of the checkpoint, and returns why the program
        cannot continue from its state; "" if it can.

        Raises:
            CheckpointError: the checkpoint is damaged, of another program, has an unfit state, or was written under
                other `facts` or with other settings of a vector's update.
        """
        if self.resume is None:
            return None
        with self.phase("checkpoint"), self._losing_nothing():
            about, specs = self.decide(partial(self._read_checkpoint, self.resume))
            self._take_checkpoint(self.resume, about)
            resuming.check(self.resume, about, self.job, self.facts)
            changed = [*about.get("other files", []), *about.get("other reading", {}).values()]
            changed += about.get("other job", [])
            changed += resuming.changed_settings(self.resume, about, specs, self.job)
            if unfit is not None and (problem := unfit(about)):
                raise CheckpointError(f"checkpoint {self.resume} cannot be resumed: {problem}")
            self._trained_before = about["trained"]
            for name, _ in sorted(about["vectors"], key=lambda each: each[1]):
                self.create_vector(VectorSpec(**specs[name]))
            self._restored = set(self.vectors)
            self.servers.call(BuiltInCall.RESTORE, {"folder": str(self.resume)})
            # A checkpoint of an earlier version does not have the groups.
            groups = self._group_sizes()
            same = about["workers"] == len(self.workers) and about.get("groups", groups) == groups
            self.workers.call(
                BuiltInCall.RESTORE if same else BuiltInCall.REBUILD,
                {"folder": str(self.resume)} if same else {},
            )
            self.workers.call(
                BuiltInCall.RESTORE_FILTERS, {"folder": str(self.resume), "workers": about["workers"]}
            )
        wrote = about.get("run")
        self.say(f"resumed from {self.resume}" + (f", of run {wrote}" if wrote else ""))
        if changed:
            self.say(f"changed since then: {', '.join(changed)}")
        state: dict[str, Any] = about["state"] | {"same_workers": same}
        return state

    def _read_checkpoint(self, resume: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the checkpoint to resume from; if it is damaged and another may be used, one before it."""
        candidates = [resume]
        if self._resume_earlier is not None:
            own = self.lineage.checkpoints(resume.parent)
            places = [at for at, path in enumerate(own) if path.absolute() == resume.absolute()]
            candidates += own[: places[0]][::-1] if places else []
        return resuming.read(candidates, self.job, self.node.poll)

    def _take_checkpoint(self, resume: Path, about: dict[str, Any]) -> None:
        """Resume from the checkpoint that was read; say so if it is an earlier one."""
        # Records of earlier versions have no path.
        taken = Path(about.get("path", resume))
        if taken == resume:
            return
        for problem in about["passed over"]:
            self.say(f"warning: {problem}")
        self.resume = taken
        if self._resume_earlier is not None and not self.node.policy.is_replay:
            # The damaged one does not count among those that are kept.
            self._lineage = self._resume_earlier(taken)

    # --- output ------------------------------------------------------------------------------

    def event(self, event: str, **facts: Any) -> None:
        """Append a line to the run's `metrics.jsonl`."""
        self._output.event(event, **facts)

    def note(self, event: str, **facts: Any) -> None:
        """Append a line that is not the program's, at any time."""
        self._output.note(event, **facts)

    def table(self, columns: Sequence[Column]) -> Table:
        """Return the table that shows the run's progress."""
        return self._output.table(columns)

    def say(self, text: str) -> None:
        """Print a line to the user."""
        self._output.say(text)

    def traffic(self) -> dict[str, Any]:
        """Return bytes sent by role, with filters and as if without, and the effect of each filter."""
        return self._accounts.traffic()

    def create_vector(self, spec: VectorSpec, expect: int = 0) -> Vector:
        """Create a vector on all servers and workers; return a handle. `expect` is the expected number of keys."""
        if not isinstance(spec, VectorSpec):
            raise UsageError(f"create_vector takes a VectorSpec, as in VectorSpec('w'), not {spec!r}")
        if "." in spec.name:
            raise UsageError(f"vector {spec.name!r}: its name must not have a dot")
        if spec.name in self.vectors:
            raise UsageError(f"vector {spec.name!r} exists already")
        if not isinstance(expect, int) or not 0 <= expect < 2**64:
            raise UsageError(f"vector {spec.name!r}: expect {expect!r} is no number of keys")
        vector = self.vectors[spec.name] = Vector(self.node, spec, len(self.vectors) + 1)
        # Where keys are random, some servers get more than their share.
        share = expect // len(self.servers)
        making = self._making(vector) | {"expect": min(share + 4 * math.isqrt(share), expect)}
        tasks = [group.start(BuiltInCall.CREATE_VECTOR, making) for group in (self.servers, self.workers)]
        self.node.wait_all(tasks)
        return vector

    def vector(self, spec: VectorSpec, expect: int = 0) -> Vector:
        """Create a vector, or take it up as `restore` has filled it: a program need not tell the two apart.

        A restored vector keeps the settings of its update, and its initial values; where `spec` has others, a message
        says so. `cluster.servers.call("settings", {"rate": 0.05}, vector=w)` changes settings.

        Args:
            spec: its specification.
            expect: the expected number of keys, of a new one.

        Raises:
            CheckpointError: the restored vector has another type, width, range of keys or update.
            UsageError: as of `create_vector`; or the vector has been created by this run.

        >>> from mpips import VectorSpec, simulate
        >>> def schedule(cluster):
        ...     state = cluster.restore() or {"step": 0}
        ...     w = cluster.vector(VectorSpec("w", update="sgd", settings={"rate": 0.1}))
        ...     return state["step"], len(w.pull(np.arange(3, dtype=np.uint64)).result())
        >>> simulate(schedule, worker=lambda context: None)
        (0, 3)
        """
        if not isinstance(spec, VectorSpec) or spec.name not in self._restored:
            return self.create_vector(spec, expect)
        self._restored.discard(spec.name)
        vector = self.vectors[spec.name]
        for line in resuming.kept_fields(vector.spec, spec, str(self.resume)):
            self.say(line)
        return vector

    @staticmethod
    def _making(vector: Vector) -> dict[str, Any]:
        return {"spec": asdict(vector.spec), "number": vector.number, "expect": 0}

    def export(self, vector: Vector) -> Iterator[tuple[KeyArray, NDArray[Any]]]:
        """Yield a whole vector in key order, (keys, rows) in chunks of bounded size, without rows of initial values."""
        return vector.export()

    def evict(
        self, vector: Vector, most: int, *, usage: str, also: Sequence[Vector] = (), decay: float = 0.5
    ) -> int:
        """Drop the least used rows of a sparse vector if it has more than `most`; return how many.

        Nine tenths of `most` remain, the same ones on any layout. Dropped keys read as their initial values again, and
        a push makes a new row. All copies drop the same rows at the same place among the pushes, and checkpoints have
        those that remain. No requests for these vectors may be under way: those of a worker's call are over when it has
        returned.

        Args:
            vector: a sparse vector.
            most: the largest number of rows.
            usage: the state column, of its update, that says how much a row is used.
            also: sparse vectors whose rows are dropped for all keys that have no row of `vector` any more.
            decay: the factor by which the usage of the remaining rows is multiplied, from 0 to 1.

        Raises:
            UsageError: `most` or `decay` is out of range.
            RemoteError: the update has no such column, or a vector is dense, or pushes are under way.

        >>> from mpips import Column, VectorSpec, simulate, update
        >>> @update("example_counted", columns=lambda spec: {"pushes": Column("int64")})
        ... def counted(values, state, slots, rows, settings):
        ...     state["pushes"][slots] += 1
        ...     values[slots] += rows
        >>> def schedule(cluster):
        ...     w = cluster.create_vector(VectorSpec("w", update="example_counted"))
        ...     keys = np.arange(20, dtype=np.uint64)
        ...     for some in (keys, keys[5:]):
        ...         w.push(some, np.ones(len(some))).result()
        ...     dropped = cluster.evict(w, 16, usage="pushes")
        ...     return dropped, int(w.pull(keys[:5]).result().sum()), int(w.pull(keys[5:]).result().sum())
        >>> simulate(schedule, worker=lambda context: None)
        (5, 0, 30)
        """
        if most < 1 or not 0.0 <= decay <= 1.0:
            raise UsageError(f"evict: most is {most!r}, at least 1; decay {decay!r}, from 0 to 1")

        def histogram_of(prefix: int, shift: int) -> list[dict[str, Any]]:
            asked = {"usage": usage, "prefix": prefix, "shift": shift}
            return self.servers.call("standing_histogram", asked, vector=vector)

        least = least_that_stays(histogram_of, most)
        if least is None:
            return 0
        numbers = [each.number for each in also]
        args = {"number": vector.number, "least": least, "usage": usage, "decay": decay, "also": numbers}
        return sum(each["dropped"] for each in self.servers.call(BuiltInCall.EVICT, args))

    def digest(self, vector: Vector) -> str:
        """Return the SHA-256 of (key, row) records in key order: the same for any layout that holds the same values."""
        return digest(vector)
