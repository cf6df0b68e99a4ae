"""The main program of a rank: from the command line to the exit code.

    read the job file; start MPI; agree with all ranks that the run can start
    scheduler: run the program's schedule, write the result, send all ranks the stop message
    others: serve until the stop message, or a change of role; the leader's successor continues the schedule
    exit together

Any error ends the run on every rank: bad input with exit code 2 and one line from rank 0, anything else with exit code
1 and the name of the failed rank. A rank that fails reports to the scheduler, which writes the result and stops all
ranks. If that is impossible MPI_Abort ends all ranks; a rank that does not end in time is ended by an alarm signal,
which needs neither Python nor MPI.

Where ranks survive the deaths of others (ULFM), MPI is not finalized: that would wait for the dead. Only a killed rank
counts as dead there; one that exits with an exit code of its own is not detected.

A rank that fails before MPI has started still starts it: otherwise the others would wait for it. A rank whose launcher
has ended exits at once, at any time: no other process would end it (`mpips.rank.parent_daemon`).
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from mpips.checkpoint.background_writer import Writer
from mpips.cluster.crowding import crowding
from mpips.cluster.faults import Faults
from mpips.cluster.heartbeat import Address, Heartbeat
from mpips.cluster.layout import Cause, Layout, Place, check_singleton, split
from mpips.cluster.membership import Membership
from mpips.cluster.node import Fenced, Node, Stopped
from mpips.cluster.registration import Registration
from mpips.cluster.view import View, first_view
from mpips.errors import InputError, ShardLost, in_a_line
from mpips.exit_codes import ExitCode
from mpips.filters.named import Entry, chain_of, fingerprint, parsed
from mpips.process.first_rank import seems_first
from mpips.process.host import LOOPBACK, host_address, host_name, machine
from mpips.process.printable import brief, printable
from mpips.process.stop_signals import ASKS
from mpips.process.ucx import away
from mpips.provenance import first_failure, provenance
from mpips.rank import parent_daemon
from mpips.rank.leader import Leader
from mpips.rank.long_waits import LongWaits
from mpips.rank.prepare import Prepared, advice, checkpoints, parser, prepare
from mpips.rank.retransmission_counts import RetransmissionCounts
from mpips.rank.roles import Roles
from mpips.replay.player import Player
from mpips.replay.recorder import Recorder, write_about
from mpips.rundir import claim, log
from mpips.rundir.folder import Lines, RunFolder, write_json, write_text
from mpips.scheduler.journal import Journal
from mpips.server.server import Server
from mpips.server.snapshot_file import SnapshotFile
from mpips.tracing.recorder import trace_node
from mpips.tracing.trace_file import What
from mpips.transport import process_memory
from mpips.transport.backoff import Backoff
from mpips.transport.message import Command
from mpips.transport.wakeup import connect
from mpips.worker.worker import CallExecutor

if TYPE_CHECKING:
    from mpi4py import MPI

PATIENCE = 3.0
"""Seconds for the scheduler to answer a failed rank (it writes the result first), and for all ranks to exit."""
START = 120.0
"""Seconds for all ranks to start; then this one prints its stacks and exits."""
LAST = 4.0
"""Seconds for MPI and Python to end; a launcher needs over one of them to act on an abort."""
LONGER = 30.0
"""The same after success, when a slow end is better than a forced one."""
_INTRODUCTION = 256
"""Bytes that ranks exchange at the start: process id, filters, and host name."""
JUDGED = "MPIPS_JUDGED"
"""Set by `mpips run`, which uses the result file: ranks that end in order exit with 0, so that no launcher
complains."""


def main(argv: Sequence[str] | None = None, asked: list[int] | None = None) -> int:
    """Run one rank; return its exit code. `asked` has the signals that came, and gets those that come."""
    started = time.perf_counter()
    argv = sys.argv[1:] if argv is None else argv
    options, prepared = None, None
    error: BaseException | None = None
    try:
        options = parser().parse_args(argv)
    except InputError as raised:
        error = raised
    asked = [] if asked is None else asked
    warm_up = options.warm_up if options is not None else "--warm-up" in argv
    try:
        if options is not None:
            prepared = prepare(options)
        if options is not None:
            _load_van()
    except BaseException as raised:
        if warm_up and not isinstance(raised, InputError):
            raise
        error = raised
    if warm_up:
        if error is not None:
            _say(f"mpips: error: {error}")
        return ExitCode.BAD_INPUT if error is not None else ExitCode.COMPLETED

    runs: list[_RankRun] = []
    parent_daemon.watch(lambda who: _orphaned(who, runs[0] if runs else None))
    # Other ranks wait in MPI_Init for a rank that ends before, without limit with ULFM.
    faulthandler.dump_traceback_later(START, exit=True)
    threading.excepthook = _thread_failed
    import mpi4py

    # `_load_van` may have failed before this.
    mpi4py.rc.initialize = False

    with away():
        from mpi4py import MPI

        # The program may have initialized MPI.
        if not MPI.Is_initialized():
            MPI.Init_thread(MPI.THREAD_SERIALIZED)
    run = _RankRun(MPI, options, prepared, asked, started)
    runs.append(run)
    try:
        code = run.live(error)
    except BaseException as raised:
        run.abort(raised)
    sys.stdout.flush()
    _alarm(LAST if code else LONGER)
    if not run.survives:
        MPI.Finalize()
    # All files are written. Threads that never end, and libraries that take seconds to unload, are not waited for.
    os._exit(code)


def _load_van() -> None:
    """Load the transport: its kernels are compiled before MPI starts, and so before any timing."""
    import mpi4py

    mpi4py.rc.initialize = False
    with away():
        import mpips.transport.van  # noqa: F401


def _say(text: str) -> None:
    try:
        print(brief(printable(text)), file=sys.stderr, flush=True)
    except RuntimeError:
        # Called from a signal handler during another print.
        os.write(sys.stderr.fileno(), f"\n{brief(printable(text))}\n".encode())


def _thread_failed(problem: threading.ExceptHookArgs) -> None:
    """End this rank, and so the run: the work of a failed thread of the program is lost."""
    text = "".join(traceback.format_exception(problem.exc_type, problem.exc_value, problem.exc_traceback))
    log.note("failed", logging.ERROR, error=f"a thread failed: {problem.exc_value}", trace=text)
    _say(f"{text}mpips: error: a thread failed on {host_name()}: {problem.exc_value}")
    os.kill(os.getpid(), signal.SIGKILL)


def _orphaned(daemon: str, run: _RankRun | None) -> None:
    """End this rank at once: its launcher has ended, and no other process would end it."""
    error = f"its launcher has ended ({daemon})"
    log.note("failed", logging.ERROR, error=error, follows=True)
    if run is not None:
        run.write_failure(error)
    _say(f"mpips: error: {error}")
    os.kill(os.getpid(), signal.SIGKILL)


def _alarm(seconds: float) -> None:
    """End this process after `seconds`: MPI, a thread or an exit function may never return."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)


class _RankRun:
    """One rank of a run; see the module."""

    def __init__(
        self,
        mpi: Any,
        options: argparse.Namespace | None,
        prepared: Prepared | None,
        asked: list[int],
        started: float,
    ) -> None:
        self.mpi, self.options, self.prepared, self.asked, self.started = (
            mpi,
            options,
            prepared,
            asked,
            started,
        )
        self.world: MPI.Intracomm = mpi.COMM_WORLD
        self.world.Set_errhandler(mpi.ERRORS_RETURN)
        self.rank = self.world.Get_rank()
        self.speaks = self.rank == 0 and (self.world.Get_size() > 1 or seems_first())
        self.folder: RunFolder | None = None
        # Whether run.json exists and is this run's.
        self.recorded = False
        self.judged = bool(os.environ.get(JUDGED))
        self.survives, self.crowded, self.replicas = False, False, 0
        # The largest number of ranks on one host.
        self.fullest = 1
        self.wall = time.time() - (time.perf_counter() - started)
        self.heart: Heartbeat | None = None
        self.membership: Membership | None = None
        self.problem: InputError | None = None
        self.log = log.begin(self.rank)
        self.peers: first_failure.Peers | None = None

    def live(self, error: BaseException | None) -> int:
        """Start, run the loop of the role, exit."""
        layout: Layout | None = None
        processes = self._processes()
        self.fullest = max(Counter(host for _, host in processes).values())
        try:
            check_singleton(self.world.Get_size(), os.environ)
            if self.problem is not None:
                raise self.problem
            if error is None and self.prepared is not None:
                layout = Layout.of(self.world.Get_size(), self.prepared.job.layout)
        except InputError as raised:
            error = error or raised
        try:
            if self.speaks:
                self._make_folder(layout, processes)
        except InputError as raised:
            error = error or raised
        code = self._agree(error)
        if code is not None or layout is None or self.prepared is None:
            return code or ExitCode.FAILED
        self._share_folder()
        self._begin_log(layout.places[self.rank], processes)
        self.communicators = split(self.world, layout)
        node, van = self._node(layout, self.prepared, [host for _, host in processes])
        # From here on the heartbeats of other ranks detect a hang.
        faulthandler.cancel_dump_traceback_later()
        assert self.folder is not None
        self._follow(node, self.prepared, self.folder)
        trace_node(node, self.prepared.job.trace, self.folder.trace_of(self.rank), self.started, _say)
        try:
            code = self._serve(node, self.prepared)
            log.note("end", code=code)
            with node.observers.during(What.LEAVE):
                left = node.leave(PATIENCE)
            if self.membership is not None and self.membership.gave_up:
                # The launcher ends hung ranks on all hosts.
                self._quit(code or ExitCode.FAILED)
            elif self.survives:
                self._end_hung(node, processes)
            elif not left:
                self._quit(code or ExitCode.FAILED)
            return code
        finally:
            for close in node.observers.close:
                close()
            van.close()

    # --- the start ---------------------------------------------------------------------------

    def _processes(self) -> list[tuple[int, str]]:
        """Gather process ids and hosts, by rank: collective."""
        filters = (
            "" if self.prepared is None else "-".join(fingerprint(each).hex() for each in self._filters())
        )
        text = f"{os.getpid()} {filters} {host_name()}".encode()
        everyone = self._everyone(text.ljust(_INTRODUCTION, b"\0"))
        said = [raw.rstrip(b"\0").decode().split(" ", 2) for raw in everyone]
        for rank, (_, theirs, where) in enumerate(said):
            if self.prepared is not None and theirs not in ("", said[0][1]):
                chains = [entry for chain in self._filters() for entry in chain]
                named = ", ".join(found.name for found, _ in map(parsed, chains))
                self.problem = InputError(
                    f"rank {rank} on {where} has other filters than rank 0 on {said[0][2]}: "
                    f"{named} must be the same everywhere"
                )
        return [(int(pid), where) for pid, _, where in said]

    def _filters(self) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
        assert self.prepared is not None
        return self.prepared.job.filters.push, self.prepared.job.filters.pull

    def _make_folder(self, layout: Layout | None, processes: list[tuple[int, str]]) -> None:
        """Make the run's folder, on rank 0; a run that cannot start uses only an existing one."""
        prepared, named = self.prepared, self.options.run_dir if self.options is not None else ""
        if layout is None or prepared is None:
            if self.options is not None and named and Path(named).is_dir():
                self.folder = RunFolder.claim(named, bool(self.options.resume), self.options.claim)
            return
        if named:
            self.folder = RunFolder.claim(named, prepared.resume is not None, prepared.options.claim)
        else:
            self.folder = RunFolder.create(prepared.job.name)
        ranks = provenance.placed(layout, processes, first_view(layout, prepared.job.ring.virtual_servers))
        before = provenance.ancestry(prepared.resume) if prepared.resume is not None else []
        facts = prepared.facts or provenance.collect(prepared.job, children=False)
        library = self.mpi.Get_library_version().split("\n")[0].strip("\0 ")
        try:
            write_text(self.folder.job, prepared.job.to_toml())
            provenance.write_run(self.folder, facts, ranks, mpi=library, ancestry=before)
            self.recorded = True
            if prepared.job.record.on:
                write_about(self.folder.record, prepared.job, prepared.resume)
        except OSError as error:
            raise InputError(
                f"{self.folder.path}: the run folder cannot be written: {error.strerror}"
            ) from error

    def _share_folder(self) -> None:
        """Broadcast the run's folder and checkpoint: any rank may have to lead, or write the result.

        Other runs write checkpoints meanwhile, so ranks may have found different latest ones.
        """
        assert self.prepared is not None
        letter = np.zeros(2 * 4096, np.uint8)
        if self.folder is not None:
            raw = os.fsencode(self.folder.path) + b"\0" + os.fsencode(self.prepared.resume or "")
            letter[: len(raw)] = np.frombuffer(raw, np.uint8)
        self.world.Bcast(letter, 0)
        if self.folder is None:
            folder, resume = map(os.fsdecode, letter.tobytes().split(b"\0")[:2])
            self.folder, self.prepared.resume = RunFolder(folder), Path(resume) if resume else None
        self.recorded = True

    def _begin_log(self, place: Place, processes: list[tuple[int, str]]) -> None:
        assert self.folder is not None
        (pid, host), ranks = processes[self.rank], len(processes)
        log.note("start", role=str(place), group=place.group, host=host, pid=pid, ranks=ranks)
        self.log.place(self.folder.log(self.rank), ranks)
        self.peers = first_failure.Peers(self.rank, processes)

    def _agree(self, error: BaseException | None) -> int | None:
        """Agree that every rank can start: None, or the exit code.

        Rank 0 prints the error of the first rank that cannot.
        """
        world, none = self.world, 2 * self.world.Get_size()
        mine = np.array(
            [none if error is None else 2 * self.rank + (not isinstance(error, InputError))], np.int64
        )
        first = np.empty(1, np.int64)
        world.Allreduce(mine, first, self.mpi.MIN)
        if first[0] == none:
            return None
        rank, code = int(first[0]) // 2, ExitCode.FAILED if first[0] % 2 else ExitCode.BAD_INPUT
        letter = np.zeros(8192, np.uint8)
        if error is not None:
            text = in_a_line(error)
            if code == ExitCode.FAILED:
                text = f"rank {rank} on {host_name()}: {text}"
                _say("".join(traceback.format_exception(error)).rstrip())
            raw = np.frombuffer(printable(text).encode()[: letter.size], np.uint8)
            letter[: raw.size] = raw
        world.Bcast(letter, rank)
        text = letter.tobytes().rstrip(b"\0").decode(errors="replace")
        if self.speaks:
            return self._end({"status": "failed", "exit_code": code, "error": text})
        return code

    def _node(self, layout: Layout, prepared: Prepared, hosts: list[str]) -> tuple[Node, Any]:
        from mpips.transport.van import MPIVan

        job = prepared.job
        place = layout.places[self.rank]
        wakeup, self.crowded = connect(self.world)
        van = MPIVan(self.world.Dup(), Backoff(crowded=self.crowded, wakeup=wakeup), wakeup)
        van.process_memory = process_memory.discover(self.world)
        self.survives = van.survives
        if van.survives:
            self.replicas = job.ring.replicas
        self._start_heart(job.heartbeat.period)
        spec = job.faults
        faults = None
        if spec != type(spec)():
            faults = Faults(spec, place.role.value, place.index, now=van.now, strike=self._strike)
        lossy = spec.drop is not None
        view = first_view(layout, job.ring.virtual_servers, self.replicas, hosts)
        pushes, pulls = (chain_of(each, job.seed) for each in (job.filters.push, job.filters.pull))
        return Node(
            van, layout, view, faults=faults, resend=0.25 if lossy else None,
            pushes=pushes, pulls=pulls, signs=job.ring.key_cache > 0,
        ), van  # fmt: skip

    def _follow(self, node: Node, prepared: Prepared, folder: RunFolder) -> None:
        """Record the order of effects, or replay a recorded run."""
        if prepared.options.replay:
            node.follow(Player(node, Path(prepared.options.replay)))
            # Stop requests come from the record.
            for kind in ASKS:
                signal.signal(kind, signal.SIG_DFL)
        elif prepared.job.record.on:
            Recorder(node, folder.record)

    def _start_heart(self, period: float) -> None:
        alone = len(set(self._everyone(machine()))) == 1
        self.heart = Heartbeat(self.rank, period, LOOPBACK if alone else host_address())
        self.heart.start([Address.from_bytes(raw) for raw in self._everyone(self.heart.address.to_bytes())])

    def _everyone(self, mine: bytes) -> list[bytes]:
        """Gather the bytes `mine` of each rank, by rank: collective."""
        everyone = np.empty((self.world.Get_size(), len(mine)), np.uint8)
        self.world.Allgather(np.frombuffer(mine, np.uint8), everyone)
        return [raw.tobytes() for raw in everyone]

    def _strike(self, kind: signal.Signals) -> None:
        """Send an injected fault's signal to this process, and record its time, to measure recoveries."""
        assert self.folder is not None
        line = {"rank": self.rank, "signal": kind.name, "wall": time.time()}
        log.note("struck", logging.WARNING, signal=kind.name)
        with Lines(self.folder.path / "strikes.jsonl") as lines:
            lines.append(line)
        os.kill(os.getpid(), kind)

    # --- the roles ---------------------------------------------------------------------------

    def _serve(self, node: Node, prepared: Prepared) -> int:
        """Run the role that the view gives this rank, until the stop message; return the exit code.

        An error is reported to the leader.
        """
        try:
            try:
                return self._roles(node, prepared)
            except (Stopped, Fenced):
                raise
            except BaseException as error:
                self._report(node, error)
        except Stopped as stopped:
            return stopped.code
        except Fenced:
            log.note("fenced", logging.WARNING)
            _say(f"mpips: rank {self.rank} was declared dead by the others, and exits")
            os._exit(ExitCode.COMPLETED)

    def _roles(self, node: Node, prepared: Prepared) -> int:
        job = prepared.job
        beat = job.heartbeat
        membership = Membership(
            node, self.replicas, self.heart, beat.patience, beat.give_up, lambda text: _say(f"mpips: {text}"),
            crowding(self.fullest),
        )  # fmt: skip
        self.membership = membership
        waits, repeats = LongWaits(node, lambda text: _say(f"mpips: {text}")), RetransmissionCounts(node)
        journal = Journal(node, self.replicas + 1)
        node.register(Registration(views=(self._log_view,)))
        file = SnapshotFile(node, Writer())
        group = self.communicators.group if self.communicators.group else None
        roles = Roles(
            node,
            membership,
            partial(
                Server, node, job.ring.repair_bandwidth, file, job.ring.key_cache, ahead=not self.crowded
            ),
            partial(CallExecutor, node, prepared.program.worker, job, group, file),
            partial(self._lead, node, prepared, journal, membership, waits, repeats),
            lambda role: log.note("role", role=role and role.value),
        )
        waits.rounds = roles.unfinished_rounds
        if not membership.leading and not node.policy.again:
            # The leader gets them too, and decides.
            for kind in ASKS:
                signal.signal(kind, self._asked_to_stop)
        return roles.run()

    def _lead(
        self,
        node: Node,
        prepared: Prepared,
        journal: Journal,
        membership: Membership,
        waits: LongWaits,
        repeats: RetransmissionCounts,
    ) -> int:
        assert self.folder is not None
        self.folder.held = self.folder.held or claim.succeed(self.folder.path)
        leader = Leader(
            node, prepared, self.folder, journal, membership, waits, repeats, self.wall, self._miss
        )
        with node.observers.during(What.PROGRAM):
            result = leader.run(self.asked)
        for kind in ASKS:
            signal.signal(kind, signal.SIG_IGN)
        if leader.error:
            _say(leader.error)
        code = self._end(result)
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

    def _asked_to_stop(self, number: int, _: object = None) -> None:
        """Record a stop signal."""
        if not self.asked:
            log.note("asked", signal=signal.Signals(number).name)
        self.asked.append(number)
        if number == signal.SIGTERM:
            self._miss()

    def _miss(self) -> first_failure.Failure | None:
        """Find ranks that ended without a message, when a launcher ends all; the lowest rank left on a host reports."""
        if self.peers is None or self.folder is None or self.survives:
            return None
        missing = self.peers.missing()
        for rank in missing:
            log.note("lost", logging.ERROR, lost=rank, cause=Cause.DIED, error=self.peers.why(), fatal=True)
        first = first_failure.first(self.folder) if missing and self.peers.speaks(missing) else None
        if first is None:
            return None
        facts = first.facts(self.folder)
        # Rank 0 is lost, and cannot write it.
        if 0 in missing and not self.folder.result.exists():
            result = {
                "status": "failed",
                "exit_code": ExitCode.FAILED,
                "error": first.text,
                "first_failure": facts,
            }
            self._write(result)
        if not self.judged:
            _say(f"mpips: first to fail: {first_failure.sentence(facts)}")
        return first

    def _report(self, node: Node, error: BaseException) -> NoReturn:
        """Report this rank's error to the scheduler, and wait for its stop message (`Stopped`)."""
        facts = node.describe(error)
        if not isinstance(error, self.mpi.Exception):
            node.control(node.view.leader, Command.FAILED, facts)
            # The leader is lost, too.
            if isinstance(error, ShardLost):
                self._write({"status": "failed", "exit_code": ExitCode.FAILED, "error": facts["text"]})
            deadline = node.van.now() + PATIENCE
            while node.van.now() < deadline:
                # The run fails already; a second error adds nothing.
                with suppress(Exception):
                    node.wait_until(lambda: node.van.now() > deadline)
        self._quit(
            ExitCode.FAILED,
            f"rank {node.rank} ({facts['role']} on {node.host}): {facts['text']}",
            facts["trace"],
        )

    # --- the end -----------------------------------------------------------------------------

    def _end_hung(self, node: Node, processes: list[tuple[int, str]]) -> None:
        """Kill hung ranks on this host: the launcher would wait for them."""
        for loss in node.view.losses:
            pid, host = processes[loss.rank]
            if loss.cause is Cause.HUNG and host == host_name() and _is_stopped(pid):
                os.kill(pid, signal.SIGKILL)

    def _end(self, result: dict[str, Any]) -> int:
        """Write the result and print the error; return the exit code of every rank."""
        code, written = int(result["exit_code"]), self._write(result)
        if written and self.judged:
            return ExitCode.COMPLETED
        if "error" in result:
            _say(f"mpips: error: {result['error']}")
        if "first_failure" in result:
            known = str(result.get("error", ""))
            _say(f"mpips: first to fail: {first_failure.sentence(result['first_failure'], known)}")
        return code if written or "error" in result else ExitCode.FAILED

    def _write(self, result: dict[str, Any]) -> bool:
        """Write the result, after run.json's end if there is time for it; return whether it was written."""
        if self.folder is None:
            return False
        failed = "error" in result
        if self.recorded and not failed:
            self._conclude(result)
        try:
            write_json(self.folder.result, result)
        except (OSError, TypeError, ValueError) as error:
            if not failed:
                _say(f"mpips: error: {self.folder.result}: cannot be written: {in_a_line(error)}")
            return False
        if self.recorded and failed:
            self._conclude(result)
        return True

    def write_failure(self, error: str) -> None:
        """Write a failed result if there is none and this rank leads."""
        leads = self.membership.leading if self.membership is not None else self.rank == 0
        if leads and self.folder is not None and not self.folder.result.exists():
            text = f"rank {self.rank} on {host_name()}: {error}"
            if self.prepared is not None:
                text += advice(self.prepared.job, self.folder)
            self._write({"status": "failed", "exit_code": ExitCode.FAILED, "error": text})

    def _conclude(self, result: dict[str, Any]) -> None:
        assert self.folder is not None
        # Provenance that cannot be written does not fail a run.
        with suppress(Exception):
            where = None if self.prepared is None else checkpoints(self.prepared.job)
            provenance.conclude(self.folder, result, where)

    def abort(self, error: BaseException) -> NoReturn:
        """End every rank after an error outside the role loop."""
        text = f"rank {self.rank} on {host_name()}: {in_a_line(error)}"
        trace = "".join(traceback.format_exception(error))
        follows = isinstance(error, self.mpi.Exception)
        log.note("failed", logging.ERROR, error=in_a_line(error), trace=trace, follows=follows)
        self._write({"status": "failed", "exit_code": ExitCode.FAILED, "error": text})
        self._quit(ExitCode.FAILED, text, trace)

    def _quit(self, code: int, why: str = "", trace: str = "") -> NoReturn:
        """End every rank now; this one by a signal if MPI itself does not return."""
        _alarm(LAST)
        if why:
            _say(f"{trace}mpips: error: {why}")
        sys.stdout.flush()
        self.world.Abort(code)
        os._exit(code)


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False
