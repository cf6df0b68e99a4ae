"""The first rank to fail, from the logs of a run that failed.

A rank writes an error into its log before it reports it to others. A rank that ends without a message (SIGKILL, a crash
in a library, out of memory) is detected by others, depending on their MPI:

    ranks survive others' deaths     the leader detects it; it was one death too many
    ranks do not                     the launcher ends all: ranks that get its signal check which processes of
                                     their host are gone, and `mpips run` reads the launcher's messages

The earliest failure counts; consequences of another rank's death count only if there is nothing else. Of ranks that
ended without a message on several hosts, the first is known only if the launcher names one; else its error says so.
"""

from __future__ import annotations

import os
import re
import select
import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from mpips.cluster.layout import Cause
from mpips.errors import InputError
from mpips.files.json_lines import read_lines
from mpips.files.json_schema import is_number
from mpips.process.host import host_name, is_gone
from mpips.rundir.folder import RunFolder

DOUBT = "perhaps not the first: on several hosts the launcher does not say which rank ended first"
CHECK_INTERVAL = 0.25
"""Seconds between two checks whether ranks have started, or the run is over."""


class Failure(NamedTuple):
    """A rank that failed: its role, host, the time of detection (wall, s), and the error.

    `at` is the program's line, if it failed in a program; `cause` how it was lost, if it did not report an error.
    """

    rank: int
    role: str
    host: str
    wall: float
    error: str
    at: str = ""
    cause: Cause | None = None

    @property
    def text(self) -> str:
        """Return rank, role, host and error."""
        return f"rank {self.rank} ({self.role} on {self.host}): {self.error}"

    def facts(self, folder: RunFolder) -> dict[str, Any]:
        """Return it as JSON-able data, with the path of its log if it exists."""
        return {**self._asdict(), "log": log_of(folder, self.rank)}


def sentence(facts: Mapping[str, Any], known: str = "") -> str:
    """Return a line with the rank, the time, the error unless it is in `known`, and the log."""
    when = datetime.fromtimestamp(float(facts["wall"]), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    error = "" if str(facts["error"]) in known else f": {facts['error']}"
    at = f" at {facts['at']}" if facts.get("at") and str(facts["at"]) not in known + error else ""
    log = f"; its log: {facts['log']}" if facts.get("log") else ""
    return f"rank {facts['rank']} ({facts['role']} on {facts['host']}), {when}{at}{error}{log}"


def log_of(folder: RunFolder, rank: int) -> str | None:
    """Return the path of a rank's log, if it exists."""
    path = folder.log(rank)
    return str(path) if path.exists() else None


# --- from the logs --------------------------------------------------------------------------------


def first(folder: RunFolder, output: str = "", first_ended: Sequence[int] = ()) -> Failure | None:
    """Return the first failure of a run; None if none is known.

    Args:
        folder: the run's folder, whose logs are read.
        output: the last output of the launcher.
        first_ended: the ranks that had ended when the first end was detected, see `FirstExitWatch`.
    """
    try:
        run = folder.read_run() or {}
        since = datetime.fromisoformat(run["started"]).timestamp()
        ranks = {each["rank"]: each for each in run["ranks"]}
    except (InputError, ValueError, KeyError):
        return None
    found = [each for each in _failures(_lines(folder, since)) if each.rank in ranks]
    signals = {
        rank: ending for rank, ending in ranks_ended_by_signal(output, first_ended).items() if rank in ranks
    }
    causes, doubt = [each for each in found if not each.follows], ""
    if causes:
        evidence = min(causes, key=_wall)
    elif signals:
        # MPICH may crash in a send to a dead rank, and launchers report the ends of processes in any order.
        seen = [each for each in first_ended if each in signals]
        one_host = len({each["host"] for each in ranks.values()}) == 1
        rank = seen[0] if one_host and len(first_ended) == len(seen) == 1 else next(iter(signals))
        if not one_host and len(ranks_ended_by_signal(output)) != 1:
            # Several are named in any order, or none: then it is the first one to end on the launcher's host.
            doubt = f" ({DOUBT})"
        wall = min((each.wall for each in found if each.rank == rank), default=None) or _last_write(folder)
        evidence = _Evidence(False, rank, wall, cause=Cause.DIED)
    elif found:
        evidence = min(found, key=_wall)
    else:
        return None
    rank, error = evidence.rank, evidence.error or Cause.DIED.text
    if rank in signals and (not evidence.error or evidence.cause is Cause.DIED):
        error = signals[rank]
    each = ranks[rank]
    role = f"{each['role']} {each['index']}"
    return Failure(rank, role, str(each["host"]), evidence.wall, error + doubt, evidence.at, evidence.cause)


class _Evidence(NamedTuple):
    """A log's entry about a failure; `follows`: it is only a consequence of another rank's."""

    follows: bool
    rank: int
    wall: float
    error: str = ""
    at: str = ""
    cause: Cause | None = None


def _wall(evidence: _Evidence) -> float:
    return evidence.wall


def _lines(folder: RunFolder, since: float) -> Iterable[dict[str, Any]]:
    """Yield the lines of all logs since then."""
    for path in sorted(folder.logs.glob("rank-*.jsonl")):
        with suppress(OSError):
            for line in read_lines(path).objects:
                if is_number(line.get("wall")) and line["wall"] >= since:
                    yield line


def _failures(lines: Iterable[Mapping[str, Any]]) -> list[_Evidence]:
    """Return the failures in the lines of logs."""
    found = []
    for line in lines:
        event, error, wall = line.get("event"), str(line.get("error")), float(line["wall"])
        if event == "failed" and isinstance(line.get("rank"), int):
            found.append(
                _Evidence(bool(line.get("follows")), line["rank"], wall, error, str(line.get("at", "")))
            )
        elif event == "lost" and line.get("fatal") and isinstance(line.get("lost"), int):
            cause = next((each for each in Cause if each == line.get("cause")), None)
            found.append(_Evidence(False, line["lost"], wall, error, cause=cause))
    return found


def _last_write(folder: RunFolder) -> float:
    """Return the time of the last write to the run folder (wall, s)."""
    paths = [folder.metrics, folder.run, folder.result]
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)


# --- ranks that end without a message -------------------------------------------------------------


_SIGNAL_MESSAGES = (
    re.compile(r"process rank (?P<rank>\d+) with PID \d+ on node \S+\s+exited on\s+signal (?P<signal>\d+)"),
    re.compile(
        r"srun: error: \S+: tasks? (?P<rank>\d+)[-,\d]*: (?P<words>(?!Exited with|Terminated)[A-Z].*)"
    ),
)
"""Messages of mpirun (Open MPI) and srun about processes ended by a signal."""
_CANCELLED = re.compile(r"CANCELLED AT \S+ DUE TO ")
"""Slurm's message when it ends all processes at a time limit or with a node."""
_MPICH_MESSAGE = re.compile(r"YOUR APPLICATION TERMINATED WITH THE EXIT STRING: .*\(signal (?P<signal>\d+)\)")
"""mpiexec's (MPICH) message: it kills all other ranks at once, and may name any of them."""


def ranks_ended_by_signal(text: str, first_ended: Sequence[int] = ()) -> dict[int, str]:
    """Return the ranks that a launcher reports as ended by a signal, in the order of its messages.

    Where it does not name the rank, it is that of `first_ended`, if that is one rank.
    """
    found: dict[int, tuple[int, str]] = {}
    if _CANCELLED.search(text):
        return {}
    for pattern in _SIGNAL_MESSAGES:
        for match in pattern.finditer(text):
            groups = match.groupdict()
            ending = groups.get("words") or signal_name(int(groups["signal"]))
            found.setdefault(int(match["rank"]), (match.start(), f"ended by {ending.strip()}"))
    mpich = _MPICH_MESSAGE.search(text)
    if mpich and not found and len(first_ended) == 1:
        return {first_ended[0]: f"ended by {signal_name(int(mpich['signal']))}"}
    return {rank: ending for rank, (_, ending) in sorted(found.items(), key=lambda item: item[1][0])}


def signal_name(number: int) -> str:
    """Return the name of a signal."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class FirstExitWatch(threading.Thread):
    """Watches the ranks of this host from `mpips run`, and records which one ends first."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(daemon=True)
        self.first_ended: tuple[int, ...] = ()
        """The ranks that had ended when the first end was detected; of several it is unknown which was first."""
        self.watching = False
        self._folder, self._over = folder, threading.Event()

    def run(self) -> None:
        """Wait until there are ranks, and then for the first end."""
        began = time.time()
        while not self._over.wait(CHECK_INTERVAL):
            with suppress(OSError, InputError, KeyError):
                if self._folder.run.stat().st_mtime >= began - 1:
                    ranks = (self._folder.read_run() or {})["ranks"]
                    host = host_name()
                    self._wait({r["rank"]: r["pid"] for r in ranks if r["host"] == host})
                    return

    def _wait(self, pids: Mapping[int, int]) -> None:
        ranks, poll = {}, select.poll()
        try:
            for rank, pid in pids.items():
                # Only Linux has pidfd_open.
                with suppress(OSError, AttributeError):
                    handle = os.pidfd_open(pid)
                    ranks[handle] = rank
                    poll.register(handle, select.POLLIN)
            self.watching = True
            while ranks and not self._over.is_set() and not self.first_ended:
                self.first_ended = tuple(ranks[handle] for handle, _ in poll.poll(1000 * CHECK_INTERVAL))
        finally:
            for handle in ranks:
                os.close(handle)

    def __enter__(self) -> FirstExitWatch:
        """Begin."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._over.set()
        self.join(4 * CHECK_INTERVAL)


class LocalRanks:
    """The processes of the ranks of this host, to detect those that end without a message.

    `processes` are (pid, host) by rank.
    """

    def __init__(self, rank: int, processes: Sequence[tuple[int, str]]) -> None:
        host = processes[rank][1]
        self.pids = {
            each: pid for each, (pid, where) in enumerate(processes) if where == host and each != rank
        }
        self.rank, self._kills = rank, oom_kills()

    def missing(self) -> list[int]:
        """List the ranks of this host whose processes are gone."""
        return [rank for rank, pid in self.pids.items() if is_gone(pid)]

    def reports(self, missing: Iterable[int]) -> bool:
        """Return whether this rank is the lowest one of its host that still exists, which reports for all."""
        return not {rank for rank in self.pids if rank < self.rank} - set(missing)

    def cause(self) -> str:
        """Return the cause of a process's end on this host, as far as it is known."""
        now = oom_kills()
        if now is not None and self._kills is not None and now > self._kills:
            return f"{Cause.DIED.text}; the kernel's OOM killer has killed a process here"
        return Cause.DIED.text


def oom_kills(root: Path = Path("/")) -> int | None:
    """Return the number of OOM kills in this control group (cgroup); None if unknown."""
    with suppress(OSError, ValueError, StopIteration):
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        path = next(line.split(":", 2)[2] for line in groups if line.startswith("0::"))
        # In a Slurm job: the control group of the whole job on this node.
        path = re.sub(r"(/job_\d+)/.*", r"\1", path)
        events = (root / f"sys/fs/cgroup{path}/memory.events").read_text().split()
        return int(events[events.index("oom_kill") + 1])
    return None
