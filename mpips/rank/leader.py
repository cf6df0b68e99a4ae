"""The leader: the rank that runs the program's schedule, handles signals and orders, and writes the result.

run the schedule, or continue it where another rank died
write the result, before any rank exits
send all ranks the stop message
"""

from __future__ import annotations

import signal
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from logging import ERROR, WARNING
from pathlib import Path
from types import FrameType
from typing import Any

from mpips.checkpoint.lineage import Lineage, of_run
from mpips.cluster.departure import Fenced
from mpips.cluster.layout import Role
from mpips.cluster.node import Node
from mpips.cluster.registration import Registration
from mpips.config.job_file import Job
from mpips.config.program import comes_with_mpips
from mpips.errors import (
    InputError,
    JournalLost,
    NoWorkerLeft,
    RemoteError,
    ShardLost,
    StopOverdue,
    WorkerLost,
    exit_code,
    is_environment,
)
from mpips.exit_codes import ExitCode
from mpips.files.json_lines import read_lines
from mpips.files.json_schema import is_number
from mpips.files.json_values import Nulls, json_data
from mpips.filters.chain import traffic_lines
from mpips.forked import program_code
from mpips.membership.membership import Membership
from mpips.process.stop_signals import STOP_SIGNALS
from mpips.provenance import run_json
from mpips.provenance.first_failure import Failure, first, log_of
from mpips.provenance.input_hashes import Inputs
from mpips.rank.leader_orders import LeaderOrders
from mpips.rank.long_waits import LongWaits
from mpips.rank.prepare import Prepared, advice, checkpoints
from mpips.rank.retransmission_counts import RetransmissionCounts
from mpips.rank.stacks import Stacks
from mpips.rank.status import Status
from mpips.rundir import stop_request
from mpips.rundir.folder import RunFolder, write_json
from mpips.rundir.log import note
from mpips.rundir.progress import line_width
from mpips.scheduler.journal import Journal
from mpips.scheduler.pending_orders import PendingOrders
from mpips.scheduler.scheduler import Cluster
from mpips.scheduler.stopping import NothingTrained, enforce, leave_untrained, watch
from mpips.scheduler.time_limit import end_of
from mpips.transport.message import Command

LONGEST_METRIC = 80
"""Characters of a metric that is printed at the end of a run."""
HASHES = 2.0
"""Seconds that the end of a run waits for the hashes of its inputs, except with hash_inputs = "full"."""


class Leader:
    """The leader of a run; `started` is the start of the run's first process (wall, s).

    `find_missing` finds the rank that ended without a message, when the launcher ends all ranks because of it.
    """

    def __init__(
        self,
        node: Node,
        prepared: Prepared,
        folder: RunFolder,
        journal: Journal,
        membership: Membership,
        waits: LongWaits,
        repeats: RetransmissionCounts,
        stacks: Stacks,
        orders: PendingOrders,
        started: float,
        find_missing: Callable[[], Failure | None] = lambda: None,
    ) -> None:
        self.node, self.prepared, self.folder, self.started = node, prepared, folder, started
        self._journal, self._membership, self._find_missing = journal, membership, find_missing
        self._status, self._stacks = Status(node, membership, waits, repeats), stacks
        self._orders = orders
        self._ordered: LeaderOrders | None = None
        self._inputs, self._hashed = Inputs.of(prepared.job), False
        self.error = ""
        # The program's return value, and the reasons for nulls in it.
        self._returned: dict[str, Any] = {}
        # The end of its time (wall, s).
        self._ends: float | None = None

    def run(self, stop_signals: list[int]) -> dict[str, Any]:
        """Run the program's schedule; return the result, also after an error."""
        node, prepared = self.node, self.prepared
        try:
            with Cluster(
                node,
                prepared.job,
                self.folder,
                journal=self._journal,
                membership=self._membership,
                orders=self._orders,
                checkpoints=checkpoints(prepared.job),
                resume=prepared.resume,
                lineage=of_run(self.folder, run_json.read_run(self.folder), prepared.resume),
                provenance=self._provenance,
                resume_earlier=self._resume_earlier if prepared.options.resume == "latest" else None,
            ) as cluster:
                started = cluster.decide(lambda: self.started)
                end = cluster.decide(lambda: end_of(prepared.job, started, prepared.ends))
                self._ends = end
                if not node.policy.is_replay:
                    self.started = started
                    self._handle_signals(stop_signals)
                    self._status.note = cluster.note
                    self._ordered = LeaderOrders(
                        cluster,
                        self.folder,
                        self._membership,
                        self._status,
                        self._stacks,
                        prepared.program,
                    )
                    node.register(Registration(ticks=(self._ordered.look,)))
                    watch(cluster, self.started, end)
                    enforce(cluster, prepared.ends)
                try:
                    if not node.policy.is_replay:
                        leave_untrained(cluster)
                    return self._run_program(cluster)
                except NothingTrained:
                    return self._nothing_trained(cluster)
        except Fenced:
            raise
        except BaseException as error:
            run_json.amend(self.folder, inputs=self._inputs.facts())
            return self._failure(error)

    def _run_program(self, cluster: Cluster) -> dict[str, Any]:
        self._hash_inputs()
        try:
            with program_code("schedule"):
                metrics = self.prepared.program.schedule(cluster, self.prepared.job.settings)
        except BaseException:
            if cluster.metrics:
                self._keep(cluster, cluster.metrics)
            raise
        self._keep(cluster, metrics)
        cluster.settle()
        # The programs that come with mpips print their own summaries, and write their models.
        if not comes_with_mpips(self.prepared.job.program):
            cluster.save_vectors()
            if line := metrics_line(self._returned["metrics"]):
                cluster.say(line)
        if self._ordered is not None:
            self._ordered.answer()
        result = self._success(cluster)
        self._end_hashing(cluster)
        return result

    def stop_all(self, code: int) -> None:
        """Send all ranks the stop message with an exit code."""
        for rank in self.node.view.alive:
            if rank != self.node.rank:
                self.node.control(rank, Command.STOP, {"code": code})

    # --- signals and orders -------------------------------------------------------------------------

    def _handle_signals(self, stop_signals: list[int]) -> None:
        """Ask the program to stop when this process gets a stop signal, or has got one."""

        def ask(number: int, frame: FrameType | None = None) -> None:
            if self._orders.stop is None:
                self._orders.stop = stop_request.name_of(
                    number, self.folder.path, self.prepared.options.claim
                )
                note("asked", signal=self._orders.stop)
            if number == signal.SIGTERM:
                # An error would be raised wherever the signal has interrupted the program.
                with suppress(OSError, InputError):
                    self._write_provisional_result()

        for kind in STOP_SIGNALS:
            signal.signal(kind, ask)
        if stop_signals:
            ask(stop_signals[0])

    def _write_provisional_result(self) -> None:
        """Write a provisional result, since the launcher may kill this rank next; `run` replaces it after a stop."""
        text = "ended by SIGTERM before it could stop"
        if not self.node.van.survives:
            text = "ended by SIGTERM (which a launcher also sends when a rank has died) before it could stop"
        missed = self._find_missing()
        said = {} if missed is None else {"first_failure": missed.facts(self.folder)}
        text = (text if missed is None else missed.text) + advice(self.prepared.job, self.folder)
        write_json(
            self.folder.result,
            {"status": "failed", "exit_code": ExitCode.FAILED, "error": text, "provisional": True, **said},
        )

    def _hash_inputs(self) -> None:
        """Hash the inputs in the background; run.json, and so each checkpoint, gets the known hashes."""
        self._inputs.start()

        def tick() -> None:
            if self._inputs.done and not self._hashed:
                self._hashed = True
                run_json.amend(self.folder, inputs=self._inputs.facts())

        self.node.register(Registration(ticks=(tick,)))

    def _provenance(self) -> dict[str, Any] | None:
        """Return the provenance for a checkpoint's manifest."""
        known = run_json.read_run(self.folder)
        return None if known is None else known | {"inputs": self._inputs.facts()}

    def _resume_earlier(self, checkpoint: Path) -> Lineage:
        """Note that the run resumes from an earlier checkpoint than it was to; return its lineage."""
        self.prepared.resume = checkpoint
        ancestry = run_json.ancestry(checkpoint)
        run_json.amend(self.folder, ancestry=ancestry)
        facts = run_json.read_run(self.folder)
        return of_run(self.folder, None if facts is None else facts | {"ancestry": ancestry}, checkpoint)

    def _end_hashing(self, cluster: Cluster) -> None:
        if self._inputs.how == "full" and not cluster.stopped_early:
            if not self._inputs.done:
                cluster.say("hashing the remaining inputs ([provenance] hash_inputs)")
            # A signal or the end of the run's time ends this, too.
            while not self._inputs.done and self._orders.stop is None:
                if (
                    self._ends is not None
                    and self.node.van.wall() > self._ends - self.prepared.job.checkpoint.before_end
                ):
                    break
                time.sleep(0.05)
        run_json.amend(self.folder, inputs=self._inputs.finish(HASHES))

    # --- the result ----------------------------------------------------------------------------------

    def _keep(self, cluster: Cluster, metrics: object) -> None:
        """Keep the program's return value: it is in the result, also if a later step fails."""
        nulls = Nulls()
        found = json_data(metrics, nulls, "metrics")
        self._returned = {
            "metrics": found if found is None or isinstance(found, dict) else {"returned": found}
        }
        if nulls:
            self._returned["nulls"] = dict(nulls)
            note("nulls", WARNING, **nulls)
            cluster.say(f"warning: null in result.json: {nulls}")

    def _success(self, cluster: Cluster) -> dict[str, Any]:
        code = ExitCode.STOPPED if cluster.stopped_early else ExitCode.COMPLETED
        result: dict[str, Any] = {
            **about(self.prepared.job, code, cluster.seconds),
            **self._returned,
            "waiting": cluster.waiting,
            "traffic": cluster.traffic(),
            "ranks": cluster.spent,
            "parameters_sha256": cluster.digest(next(iter(cluster.vectors.values())))
            if cluster.vectors
            else "",
            "recoveries": self.recoveries(),
            **({"evaluation_cut_by": cluster.evaluation_cut_by} if cluster.evaluation_cut_by else {}),
            **(
                {"stopped_by": cluster.stop, "checkpoint": cluster.last_checkpoint()}
                if code == ExitCode.STOPPED
                else {}
            ),
            **{key: value for result in self.node.observers.results for key, value in result().items()},
            **(
                {"checkpoints_given_up": cluster.coordinator.given_up} if cluster.coordinator.given_up else {}
            ),
        }
        for line in traffic_lines(result["traffic"]):
            cluster.say(textwrap.fill(line, line_width(), subsequent_indent="    "))
        cluster.seconds["total"] = self.node.van.wall() - self.started
        return result

    def _nothing_trained(self, cluster: Cluster) -> dict[str, Any]:
        """Return the result of a run that was stopped before it trained."""
        run_json.amend(self.folder, inputs=self._inputs.facts())
        seconds = cluster.seconds | {"total": self.node.van.wall() - self.started}
        by, checkpoint = str(self._orders.stop), cluster.last_checkpoint()
        return untrained(self.prepared.job, by, checkpoint, seconds) | {"recoveries": self.recoveries()}

    def recoveries(self) -> list[dict[str, Any]]:
        """List the lost ranks.

        `at` is the time of detection, in seconds after the run's start. `seconds` are from the injected fault, where it
        is known, else from detection, until all servers had a view without that rank.
        """
        faulted = fault_times(self.folder)
        found = []
        for loss in self.node.view.losses:
            done = self._membership.recovered.get(loss.rank, loss.noticed)
            since = faulted.get(loss.rank, loss.noticed)
            found.append(
                {
                    "rank": loss.rank,
                    "role": loss.role,
                    "cause": loss.cause,
                    "at": loss.noticed - self.started,
                    "seconds": max(0.0, done - since),
                    "noticed_after": max(0.0, loss.noticed - since) if loss.rank in faulted else None,
                }
            )
        return found

    def _failure(self, error: BaseException) -> dict[str, Any]:
        facts = self.node.describe(error)
        where = f"rank {facts['rank']} ({facts['role']} on {facts['host']})"
        remote = RemoteError.from_meta(facts, self.node.rank)
        usage = facts.get("is_usage", False)
        if not self.node.policy.is_replay and (usage or not facts["is_input"]):
            self.error = facts["trace"].rstrip()
        if facts["is_input"]:
            log = log_of(self.folder, facts["rank"]) if usage else None
            text = f"{remote}" + (f"; its log: {log}" if log else "") if usage else remote.text
            # The error may be in the checkpoint rather than in the program.
            if usage and self.prepared.resume is not None:
                text += f"; the run resumes from {self.prepared.resume}"
            return {
                "status": "failed",
                "exit_code": ExitCode.BAD_INPUT,
                "error": text,
                "failed_rank": where,
                **self._returned,
            }
        first = self._first(facts)
        text = str(remote)
        # The first failure caused this one, or both ranks have the same error.
        if first.rank != facts["rank"]:
            where = f"rank {first.rank} ({first.role} on {first.host})"
            text = f"{first.text}; then {text}"
        again = not would_fail_again(error)
        # The recorded run did not fail here.
        if self.node.policy.is_replay and not facts.get("lost"):
            text += "; the record may be damaged, or of another program: see the log"
        return {
            "status": "failed",
            "exit_code": exit_code(error),
            "error": text + (advice(self.prepared.job, self.folder) if again else ""),
            "failed_rank": where,
            "first_failure": first.facts(self.folder),
            "recoveries": self.recoveries(),
            **self._returned,
            **({} if again else {"fault": "program"}),
        }

    def _first(self, facts: dict[str, Any]) -> Failure:
        """Return the first failure, of which the error in `facts` may be a consequence."""
        if facts.get("lost"):
            for loss in [each for each in self.node.view.losses if each.role == Role.WORKER][-1:]:
                about = {"cause": loss.cause, "error": loss.cause.text}
                note("lost", ERROR, lost=loss.rank, **about, fatal=True, wall=loss.noticed)
        at, wall = facts.get("at", ""), self.node.van.wall()
        seen = Failure(facts["rank"], str(facts["role"]), str(facts["host"]), wall, facts["text"], at)
        return first(self.folder) or seen


def about(job: Job, code: ExitCode, seconds: dict[str, float]) -> dict[str, Any]:
    """Return the fields that are in the result of every run that has not failed."""
    layout = job.layout
    return {
        "status": "completed" if code == ExitCode.COMPLETED else "stopped",
        "exit_code": code,
        "program": job.program,
        "layout": {
            "ranks": layout.size(),
            "schedulers": layout.schedulers,
            "servers": layout.servers,
            "workers": layout.workers,
            "spares": layout.spares,
        },
        "seconds": seconds,
    }


def untrained(job: Job, by: str, checkpoint: Path | None, seconds: dict[str, float]) -> dict[str, Any]:
    """Return the result of a run that was stopped before it trained: its checkpoint is what it resumed from."""
    return {
        **about(job, ExitCode.STOPPED, seconds),
        "stopped_by": by,
        "checkpoint": checkpoint,
        "before_training": True,
        "recoveries": [],
    }


def metrics_line(metrics: dict[str, Any] | None) -> str:
    """Return a line with the numbers and short texts among a program's metrics; "" without any.

    >>> metrics_line({"loss": 0.123456789, "passes": 3, "weights": [1, 2], "gap": None})
    'loss 0.123457, passes 3'
    """
    shown = {name: each for name, each in (metrics or {}).items() if isinstance(each, (int, float, str))}
    texts = [
        f"{name} {each:.6g}" if isinstance(each, float) else f"{name} {each}" for name, each in shown.items()
    ]
    return ", ".join(text for text in texts if len(text) <= LONGEST_METRIC)


def would_fail_again(error: BaseException) -> bool:
    """Return whether another start would end the same way: no rank, file or MPI has failed."""
    lost = (WorkerLost, NoWorkerLeft, ShardLost, JournalLost, StopOverdue)
    return not (isinstance(error, lost) or is_environment(error))


def fault_times(folder: RunFolder) -> dict[int, float]:
    """Return the times of injected faults by rank (wall, s): each is written to a file first."""
    try:
        lines = read_lines(folder.fault_times).objects
    except OSError:
        return {}
    return {
        each["rank"]: float(each["wall"])
        for each in lines
        if isinstance(each.get("rank"), int) and is_number(each.get("wall"))
    }
