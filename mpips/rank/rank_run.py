"""One rank's part in a run under MPI: start with all others, run the roles, end with all others."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import signal
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from mpips.checkpoint.background_writer import BackgroundWriter
from mpips.cluster.departure import Fenced, Stopped
from mpips.cluster.faults import Faults
from mpips.cluster.layout import Cause, Layout, Place, Role, check_singleton, split
from mpips.cluster.node import Node
from mpips.cluster.registration import Registration
from mpips.cluster.view import View, first_view
from mpips.errors import InputError, ShardLost, exit_code, in_a_line, needs_no_traceback
from mpips.exit_codes import ExitCode
from mpips.files.listing import refresh
from mpips.filters.named import chain_of
from mpips.history.file import record_history
from mpips.launch.oversubscription import oversubscription
from mpips.membership.heartbeat import Heartbeat
from mpips.membership.membership import Membership
from mpips.process.first_rank import seems_first
from mpips.process.host import host_name
from mpips.process.stop_signals import STOP_SIGNALS
from mpips.provenance import first_failure
from mpips.rank.detachment import Detachment, of_this_launch
from mpips.rank.ending import LAST, ResultFile, alarm, end_hung, say
from mpips.rank.leader import Leader, untrained
from mpips.rank.long_waits import LongWaits
from mpips.rank.prepare import Prepared
from mpips.rank.retransmission_counts import RetransmissionCounts
from mpips.rank.roles import Roles
from mpips.rank.stacks import Stacks, processes_of
from mpips.rank.start_up import (
    Process,
    exchange_processes,
    first_asked,
    first_error,
    make_folder,
    share_folder,
    start_heartbeat,
    write_run,
)
from mpips.replay.player import Player
from mpips.replay.recorder import Recorder
from mpips.rundir import claim, log, stop_request, unpacked
from mpips.rundir.folder import JsonLinesWriter, RunFolder
from mpips.rundir.lease import Leases, LeasesInTime
from mpips.scheduler.journal import Journal
from mpips.scheduler.pending_orders import PendingOrders, keep_for_successors
from mpips.scheduler.stopping import pass_on
from mpips.server.server import Server
from mpips.server.snapshot_file import SnapshotFile
from mpips.storage.disk.failure import StoreFailed
from mpips.storage.disk.store import Store
from mpips.tracing.recorder import trace_node
from mpips.tracing.trace_file import What
from mpips.transport.backoff import Backoff
from mpips.transport.message import Command
from mpips.transport.mpi import process_memory
from mpips.transport.wakeup import connect
from mpips.worker.buffer_check import BufferCheck
from mpips.worker.worker import CallExecutor

if TYPE_CHECKING:
    from mpi4py import MPI

    from mpips.transport.mpi.van import MPIVan

PATIENCE = 3.0
"""Seconds for the scheduler to answer a failed rank (it writes the result first), and for all ranks to exit.

More on a host whose cores are oversubscribed.
"""
UNTRAINED_PATIENCE = 1 / 3
"""The fraction of it that the other ranks have if nothing was trained."""
LOGGED = 64
"""The largest number of ranks of a run whose views are logged as a whole."""


class RankRun:
    """One rank of a run; see the module. `mpi` is `mpi4py.MPI`, and `started` is on the clock of `perf_counter`."""

    def __init__(
        self,
        mpi: Any,
        options: argparse.Namespace | None,
        prepared: Prepared | None,
        stop_signals: list[int],
        started: float,
    ) -> None:
        self.mpi, self.options, self.prepared = mpi, options, prepared
        self.stop_signals, self.started = stop_signals, started
        self.world: MPI.Intracomm = mpi.COMM_WORLD
        self.world.Set_errhandler(mpi.ERRORS_RETURN)
        self.rank = self.world.Get_rank()
        self.prints = self.rank == 0 and (self.world.Get_size() > 1 or seems_first())
        self.result = ResultFile(prepared)
        self.survives, self.oversubscribed, self.replicas = False, False, 0
        # The largest number of ranks on one host, and the number of those on this one that may read data.
        self.most_per_host, self.readers_here = 1, 1
        # At the leader: whether nothing was trained, so that no rank has anything to end in order.
        self.untrained = False
        self.wall = time.time() - (time.perf_counter() - started)
        self.heartbeat: Heartbeat | None = None
        self.membership: Membership | None = None
        self.log = log.begin(self.rank)
        self.peers: first_failure.LocalRanks | None = None
        self.detachment = Detachment(None if options is None else options.detached)

    @property
    def folder(self) -> RunFolder:
        """The run's folder, from the agreement of all ranks on."""
        assert self.result.folder is not None
        return self.result.folder

    def live(self, error: BaseException | None) -> int:
        """Start, run the loop of the role, exit; return the exit code. `error`: why this rank cannot start."""
        layout: Layout | None = None
        prepared = self.prepared
        processes, differ = exchange_processes(self.world, prepared)
        self.most_per_host = max(Counter(host for _, host in processes).values())
        try:
            check_singleton(self.world.Get_size(), os.environ)
            if differ is not None:
                raise differ
            if error is None and prepared is not None:
                layout = Layout.of(self.world.Get_size(), prepared.job.layout)
        except InputError as raised:
            error = error or raised
        try:
            if self.prints:
                self._make_folder(layout, processes)
        except (InputError, OSError) as raised:
            error = error or raised
        failed = first_error(self.world, error)
        if failed is not None:
            why, text = failed
            if not self.prints:
                return why
            return self.result.end({"status": "failed", "exit_code": why, "error": text})
        if layout is None or prepared is None:
            return ExitCode.FAILED
        here = [rank for rank, each in enumerate(processes) if each.host == processes[self.rank].host]
        self.readers_here = sum(layout.role(rank) in (Role.WORKER, Role.SPARE) for rank in here)
        folder, prepared.resume = share_folder(self.world, self.result.folder, prepared.resume)
        self.result = ResultFile(prepared, folder, recorded=True)
        if asked := first_asked(self.world, self.stop_signals):
            return self._end_at_once(prepared, self._signal_name(asked))
        self._begin_log(layout.places[self.rank], processes)
        # Else a client of NFS may show the result of the start before, which was renamed.
        if self.peers is not None and self.peers.reports(()):
            refresh(folder.path)
        self.communicators = split(self.world, layout)
        node, van = self._node(layout, prepared, [host for _, host in processes])
        # From here on the heartbeats of other ranks detect a hang.
        faulthandler.cancel_dump_traceback_later()
        self._record_or_replay(node, prepared)
        trace_node(node, prepared.job.trace, folder.trace_of(self.rank), self.started, say)
        if prepared.job.debug.check_buffers:
            BufferCheck(node)
        if prepared.job.trace.history:
            record_history(node, folder.trace)
        if self.detachment.wanted and self.survives:
            self._leave_launcher(van)
        try:
            code = self._serve(node, prepared)
            self._tell_unreached(node)
            log.note("end", code=code)
            van.watch({})
            with node.observers.during(What.LEAVE):
                left = node.departure.leave(
                    self._patience() * (UNTRAINED_PATIENCE if self.untrained else 1.0)
                )
            if self.membership is not None and self.membership.gave_up:
                # The launcher ends hung ranks on all hosts.
                self._quit(code or ExitCode.FAILED)
            elif self.survives and (left or not self.untrained):
                end_hung(node.view, processes)
            elif not left:
                self._quit(code or ExitCode.FAILED)
            return code
        finally:
            for close in node.observers.close:
                close()
            van.close()

    # --- the start ---------------------------------------------------------------------------

    def _make_folder(self, layout: Layout | None, processes: list[Process]) -> None:
        """Make the run's folder, on rank 0; a run that cannot start uses only an existing one."""
        prepared, options = self.prepared, self.options
        if layout is None or prepared is None:
            if options is not None and options.run_dir and Path(options.run_dir).is_dir():
                found = RunFolder.claim(options.run_dir, bool(options.resume), options.claim)
                self.result = ResultFile(prepared, found)
            return
        folder = make_folder(prepared)
        self.result = ResultFile(prepared, folder)
        library = self.mpi.Get_library_version().split("\n")[0].strip("\0 ")
        write_run(folder, prepared, layout, processes, library)
        self.result = ResultFile(prepared, folder, recorded=True)

    def _end_at_once(self, prepared: Prepared, by: str) -> int:
        """End with all others before the transport is set up: ranks that compile kernels have left them out."""
        if not self.prints:
            return ExitCode.COMPLETED if self.result.reported_by_launcher else ExitCode.STOPPED
        seconds = {"total": time.time() - self.wall, "load": 0.0, "train": 0.0, "checkpoint": 0.0}
        checkpoint = None if prepared.resume is None else prepared.resume.absolute()
        return self.result.end(untrained(prepared.job, by, checkpoint, seconds))

    def _begin_log(self, place: Place, processes: list[Process]) -> None:
        (pid, host), ranks = processes[self.rank], len(processes)
        log.note("start", role=str(place), group=place.group, host=host, pid=pid, ranks=ranks)
        self.log.place(self.folder.log(self.rank), ranks)
        self.peers = first_failure.LocalRanks(self.rank, processes)

    def _node(self, layout: Layout, prepared: Prepared, hosts: list[str]) -> tuple[Node, MPIVan]:
        from mpips.transport.mpi.van import MPIVan

        job = prepared.job
        place = layout.places[self.rank]
        wakeup, self.oversubscribed = connect(self.world)
        backoff = Backoff(oversubscribed=self.oversubscribed, wakeup=wakeup)
        van = MPIVan(self.world.Dup(), backoff, wakeup, process_memory.discover(self.world))
        self.survives = van.survives
        if van.survives:
            self.replicas = job.ring.replicas
        self.heartbeat = start_heartbeat(self.world, job.heartbeat.period)
        spec = job.faults
        faults = None
        if spec != type(spec)():
            faults = Faults(
                spec, place.role.value, place.index,
                now=van.now, send_signal=self._send_signal, rank=self.rank, hosts=hosts,
            )  # fmt: skip
            if self.heartbeat is not None:
                self.heartbeat.keeps = faults.splits.keeps
        lossy = spec.drop is not None
        view = first_view(layout, job.ring.virtual_servers, self.replicas, hosts)
        pushes, pulls = (chain_of(each, job.seed) for each in (job.filters.push, job.filters.pull))
        return Node(
            van, layout, view, faults=faults, resend=0.25 if lossy else None,
            pushes=pushes, pulls=pulls, signs=job.ring.key_cache > 0,
        ), van  # fmt: skip

    def _leave_launcher(self, van: MPIVan) -> None:
        """Leave the launcher, which reports the deaths on this host as long as ranks depend on it."""
        assert self.peers is not None
        self.detachment.leave(self.result, min({self.rank, *self.peers.pids}))
        van.watch(of_this_launch(self.peers.pids))

    def _record_or_replay(self, node: Node, prepared: Prepared) -> None:
        """Record the order of effects, or replay a recorded run."""
        if prepared.options.replay:
            node.follow(Player(node, Path(prepared.options.replay)))
            # Stop requests come from the record.
            for kind in STOP_SIGNALS:
                signal.signal(kind, signal.SIG_DFL)
        elif prepared.job.record.on:
            Recorder(node, self.folder.record)

    def _send_signal(self, kind: signal.Signals) -> None:
        """Send an injected fault's signal to this process, and record its time, to measure recoveries."""
        line = {"rank": self.rank, "signal": kind.name, "wall": time.time()}
        log.note("struck", logging.WARNING, signal=kind.name)
        with JsonLinesWriter(self.folder.fault_times) as lines:
            lines.append(line)
        os.kill(os.getpid(), kind)

    def _tell_unreached(self, node: Node) -> None:
        """Warn of injected faults that did not happen: the run has not tested what it was to test."""
        for name in [] if node.faults is None else node.faults.not_reached():
            log.note("unreached", logging.WARNING, fault=name)
            say(f"mpips: warning: {name} was not reached: rank {self.rank} ended before it was due")

    # --- the roles ---------------------------------------------------------------------------

    def _serve(self, node: Node, prepared: Prepared) -> int:
        """Run the role that the view assigns to this rank, until the stop message; return the exit code.

        An error is reported to the leader.
        """
        most = prepared.job.data.keep_unpacked if self.readers_here > 1 else 0.0
        try:
            try:
                with unpacked.sharing(self.folder.start, most):
                    return self._roles(node, prepared)
            except (Stopped, Fenced):
                raise
            except StoreFailed as error:
                self._end_as_dead(node, error)
            except BaseException as error:
                self._report(node, error)
        except Stopped as stopped:
            return stopped.code
        except Fenced:
            log.note("fenced", logging.WARNING)
            say(f"mpips: rank {self.rank} was declared dead by the others, and exits")
            os._exit(ExitCode.COMPLETED)

    def _roles(self, node: Node, prepared: Prepared) -> int:
        job = prepared.job
        node.announces = job.store.memory > 0
        beat = job.heartbeat
        membership = Membership(
            node, self.replicas, self.heartbeat, beat.patience, beat.give_up, lambda text: say(f"mpips: {text}"),
            oversubscription(self.most_per_host), LeasesInTime(Leases(self.folder.path, self.folder.start)),
        )  # fmt: skip
        self.membership = membership
        membership.on_publish = self._log_published
        if membership.leading:
            self._log_published(node.view)
        waits = LongWaits(
            node,
            lambda text: say(f"mpips: {text}"),
            lambda: roles.unfinished_rounds(),
            early=membership.leading and not node.policy.is_replay,
        )
        repeats, stacks = RetransmissionCounts(node), Stacks(node, lambda: processes_of(self.folder))
        journal, orders = Journal(node, self.replicas + 1), PendingOrders()
        if not node.policy.is_replay:
            keep_for_successors(node, orders)
            pass_on(node, orders, self.stop_signals, self._signal_name)
        node.register(Registration(views=(self._log_view,)))
        file = SnapshotFile(node, BackgroundWriter())
        group = self.communicators.group if self.communicators.group else None
        roles = Roles(
            node,
            membership,
            partial(
                Server,
                node,
                job.ring.repair_bandwidth,
                file,
                job.ring.key_cache,
                ahead=not self.oversubscribed,
                store=Store.of(job.store),
            ),
            partial(CallExecutor, node, prepared.program.worker, job, group, file, self._shared(node)),
            partial(self._lead, node, prepared, journal, membership, waits, repeats, stacks, orders),
            lambda role: log.note("role", role=role and role.value),
        )
        if not membership.leading and not node.policy.is_replay:
            # The leader decides.
            for kind in STOP_SIGNALS:
                signal.signal(kind, self._asked_to_stop)
        return roles.run()

    def _shared(self, node: Node) -> Path | None:
        """Return the folder of the files that a worker keeps for its successor, if it may have one."""
        succeeded = self.survives and node.layout.spares and not node.policy.is_replay
        return self.folder.shared if succeeded else None

    def _lead(
        self,
        node: Node,
        prepared: Prepared,
        journal: Journal,
        membership: Membership,
        waits: LongWaits,
        repeats: RetransmissionCounts,
        stacks: Stacks,
        orders: PendingOrders,
    ) -> int:
        self.folder.held = self.folder.held or claim.succeed(self.folder.path)
        if self._shared(node) is not None:
            self.folder.make_shared()
        leader = Leader(
            node, prepared, self.folder, journal, membership, waits, repeats, stacks, orders, self.wall,
            self._find_missing,
        )  # fmt: skip
        with node.observers.during(What.PROGRAM):
            result = leader.run(self.stop_signals)
        for kind in STOP_SIGNALS:
            signal.signal(kind, signal.SIG_IGN)
        if leader.error:
            say(leader.error)
        self.untrained = bool(result.get("before_training"))
        membership.confirm()
        self.folder.remove_shared()
        code = self.result.end(result)
        leader.stop_all(code)
        return code

    def _log_view(self, before: View, view: View) -> None:
        """Log the roles, if they have changed."""
        if before.roles != view.roles or before.leader != view.leader:
            changed = {
                rank: role and role.value
                for rank, (was, role) in enumerate(zip(before.roles, view.roles, strict=True))
                if was != role
            }
            lost = [loss._asdict() for loss in view.losses[len(before.losses) :]]
            log.note("view", epoch=view.epoch, leader=view.leader, roles=changed, lost=lost)

    def _log_published(self, view: View) -> None:
        """Log a view that this rank publishes, for `mpips.membership.specification`; those of many ranks are large."""
        if len(view.roles) <= LOGGED:
            about = {"epoch": view.epoch, "leader": view.leader, "replicas": self.replicas}
            log.note("published", **about, meta=view.to_meta())

    def _signal_name(self, number: int) -> str:
        """Return the name of the signal that has reached this rank as `number`."""
        return stop_request.name_of(
            number, self.folder.path, "" if self.options is None else self.options.claim
        )

    def _asked_to_stop(self, number: int, _: object = None) -> None:
        """Record a stop signal."""
        if not self.stop_signals:
            log.note("asked", signal=signal.Signals(number).name)
        self.stop_signals.append(number)
        if number == signal.SIGTERM:
            self._find_missing()

    def _find_missing(self) -> first_failure.Failure | None:
        """Find ranks that ended without a message, when a launcher ends all; the lowest rank left on a host reports."""
        if self.peers is None or self.survives:
            return None
        missing = self.peers.missing()
        for rank in missing:
            log.note("lost", logging.ERROR, lost=rank, cause=Cause.DIED, error=self.peers.cause(), fatal=True)
        first = first_failure.first(self.folder) if missing and self.peers.reports(missing) else None
        if first is None:
            return None
        facts = first.facts(self.folder)
        # Rank 0 is lost, and cannot write it.
        if 0 in missing and not self.folder.result.exists():
            self.result.fail(first.text, first_failure=facts)
        if not self.result.reported_by_launcher:
            say(f"mpips: first to fail: {first_failure.sentence(facts)}")
        return first

    def _end_as_dead(self, node: Node, error: StoreFailed) -> NoReturn:
        """End this rank alone, if copies of its shards can take over."""
        if self.survives and self.replicas:
            log.note("failed", logging.ERROR, error=str(error))
            facts = node.describe(error)
            say(f"mpips: error: rank {facts['rank']} ({facts['role']} on {facts['host']}) ends: {error}")
            os.kill(os.getpid(), signal.SIGKILL)
        self._report(node, error)

    def _report(self, node: Node, error: BaseException) -> NoReturn:
        """Report this rank's error to the scheduler, and wait for its stop message (`Stopped`)."""
        facts = node.describe(error)
        if not isinstance(error, self.mpi.Exception):
            node.control(node.view.leader, Command.FAILED, facts)
            # The leader is lost, too.
            if isinstance(error, ShardLost):
                self.result.fail(facts["text"])
            deadline = node.van.now() + self._patience()
            while node.van.now() < deadline:
                # The run fails already; a second error adds nothing.
                with suppress(Exception):
                    node.wait_until(lambda: node.van.now() > deadline)
        by_input = facts["is_input"] and not facts.get("is_usage", False)
        self._quit(
            exit_code(error),
            f"rank {facts['rank']} ({facts['role']} on {facts['host']}): {facts['text']}",
            "" if by_input else facts["trace"],
        )

    @property
    def _is_cut_off(self) -> bool:
        return self.membership is not None and self.membership.node.frozen

    def _patience(self) -> float:
        """Return how many seconds another rank may take to answer on this host."""
        return PATIENCE * oversubscription(self.most_per_host)()

    # --- the end -----------------------------------------------------------------------------

    def write_failure(self, error: str) -> None:
        """Write a failed result if there is none and this rank leads."""
        leads = self.rank == 0 if self.membership is None else self.membership.leading
        if leads and not self._is_cut_off:
            self.result.fail_if_absent(f"rank {self.rank} on {host_name()}: {error}")

    def abort(self, error: BaseException) -> NoReturn:
        """End every rank after an error outside the role loop."""
        text = f"rank {self.rank} on {host_name()}: {in_a_line(error)}"
        trace = "".join(traceback.format_exception(error))
        follows = isinstance(error, self.mpi.Exception)
        log.note("failed", logging.ERROR, error=in_a_line(error), trace=trace, follows=follows)
        if not self._is_cut_off:
            self.result.fail(text)
        self._quit(exit_code(error), text, "" if needs_no_traceback(error) else trace)

    def release(self) -> None:
        """Release the claim of the run's folder, unless the launcher still needs it to report the result."""
        folder = self.result.folder
        if folder is not None and folder.held is not None and not (self.options and self.options.claim):
            with suppress(OSError):
                claim.release(folder.path)

    def _quit(self, code: int, why: str = "", trace: str = "") -> NoReturn:
        """End every rank now; this one by a signal if MPI itself does not return.

        A rank that may be cut off from the others ends alone, and one that has left its launcher: the result ends the
        others.
        """
        alarm(LAST)
        if why:
            say(f"{trace}mpips: error: {why}")
        if self._is_cut_off:
            os._exit(code)
        self.release()
        sys.stdout.flush()
        if not self.detachment.left:
            self.world.Abort(code)
        os._exit(code)
