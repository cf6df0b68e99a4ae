"""The first rank to fail, from the logs of a run that failed.

A rank writes an error into its log before it reports it to others. A rank that ends without a message (SIGKILL, a crash
in a library, out of memory) is detected by others, depending on their MPI:

    ranks survive others' deaths     the leader detects it; it was one death too many
    ranks do not                     the launcher ends all: ranks that get its signal check which processes of
                                     their host are gone, and `mpips run` reads the launcher's messages

The earliest failure counts; consequences of another rank's death count only if there is nothing else.
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
from mpips.files.json_shape import is_number
from mpips.process.host import host_name, is_gone
from mpips.rundir.folder import RunFolder

LOOK = 0.25
"""Seconds between two checks whether ranks have started, or the run is over."""


class Failure(NamedTuple):
    """A rank that failed: its role, host, the time of detection (wall, s), and the error.

    `at` is the program's line, if it failed in a program; `cause` how it was lost, if it could not say why itself.
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


def first(folder: RunFolder, said: str = "", seen: Sequence[int] = ()) -> Failure | None:
    """Return the first failure of a run; None if none is known.

    It uses the logs, the last output of the launcher (`said`), and the ranks that were `seen` to end before all others.
    """
    try:
        run = folder.read_run() or {}
        since = datetime.fromisoformat(run["started"]).timestamp()
        ranks = {each["rank"]: each for each in run["ranks"]}
    except (InputError, ValueError, KeyError):
        return None
    found = [each for each in _failures(_lines(folder, since)) if each.rank in ranks]
    signals = {rank: words for rank, words in launcher_said(said, seen).items() if rank in ranks}
    causes = [each for each in found if not each.follows]
    if causes:
        sign = min(causes, key=_wall)
    elif signals:
        rank = next(iter(signals))
        wall = min((each.wall for each in found if each.rank == rank), default=None) or _last_sign(folder)
        sign = _Sign(False, rank, wall, cause=Cause.DIED)
    elif found:
        sign = min(found, key=_wall)
    else:
        return None
    rank, error = sign.rank, sign.error or Cause.DIED.text
    if rank in signals and (not sign.error or sign.cause is Cause.DIED):
        error = signals[rank]
    each = ranks[rank]
    role = f"{each['role']} {each['index']}"
    return Failure(rank, role, str(each["host"]), sign.wall, error, sign.at, sign.cause)


class _Sign(NamedTuple):
    """What a log says of a failure; `follows` tells whether it only follows from another rank's."""

    follows: bool
    rank: int
    wall: float
    error: str = ""
    at: str = ""
    cause: Cause | None = None


def _wall(sign: _Sign) -> float:
    return sign.wall


def _lines(folder: RunFolder, since: float) -> Iterable[dict[str, Any]]:
    """Yield the lines of all logs since then."""
    for path in sorted(folder.logs.glob("rank-*.jsonl")):
        with suppress(OSError):
            for line in read_lines(path).objects:
                if is_number(line.get("wall")) and line["wall"] >= since:
                    yield line


def _failures(lines: Iterable[Mapping[str, Any]]) -> list[_Sign]:
    """Return the failures in the lines of logs."""
    found = []
    for line in lines:
        event, error, wall = line.get("event"), str(line.get("error")), float(line["wall"])
        if event == "failed" and isinstance(line.get("rank"), int):
            found.append(_Sign(bool(line.get("follows")), line["rank"], wall, error, str(line.get("at", ""))))
        elif event == "lost" and line.get("fatal") and isinstance(line.get("lost"), int):
            cause = next((each for each in Cause if each == line.get("cause")), None)
            found.append(_Sign(False, line["lost"], wall, error, cause=cause))
    return found


def _last_sign(folder: RunFolder) -> float:
    """Return the time of the last write to the run folder (wall, s)."""
    paths = [folder.metrics, folder.run, folder.result]
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)


# --- ranks that end without a message -------------------------------------------------------------


_SAID = (
    re.compile(r"process rank (?P<rank>\d+) with PID \d+ on node \S+\s+exited on\s+signal (?P<signal>\d+)"),
    re.compile(
        r"srun: error: \S+: tasks? (?P<rank>\d+)[-,\d]*: (?P<words>(?!Exited with|Terminated)[A-Z].*)"
    ),
)
"""Messages of mpirun (Open MPI) and srun about processes ended by a signal."""
_NOBODYS_FAULT = re.compile(r"CANCELLED AT \S+ DUE TO ")
"""Slurm's message when it ends all processes at a time limit or with a node."""
_SAID_OF_SOME = re.compile(r"YOUR APPLICATION TERMINATED WITH THE EXIT STRING: .*\(signal (?P<signal>\d+)\)")
"""mpiexec's (MPICH) message: it kills all other ranks at once, and may name any of them."""


def launcher_said(text: str, seen: Sequence[int] = ()) -> dict[int, str]:
    """Return the ranks that a launcher reports as ended by a signal, in the order of its messages.

    Where it does not name the rank, it is the one that was `seen` to end before all others.
    """
    found: dict[int, tuple[int, str]] = {}
    if _NOBODYS_FAULT.search(text):
        return {}
    for pattern in _SAID:
        for match in pattern.finditer(text):
            groups = match.groupdict()
            words = groups.get("words") or signal_name(int(groups["signal"]))
            found.setdefault(int(match["rank"]), (match.start(), f"ended by {words.strip()}"))
    some = _SAID_OF_SOME.search(text)
    if some and not found and len(seen) == 1:
        return {seen[0]: f"ended by {signal_name(int(some['signal']))}"}
    return {rank: words for rank, (_, words) in sorted(found.items(), key=lambda item: item[1][0])}


def signal_name(number: int) -> str:
    """Return the name of a signal."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Watch(threading.Thread):
    """Watches the ranks of this host from `mpips run`, and records which one ends first."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(daemon=True)
        self.seen: tuple[int, ...] = ()
        """The ranks that had ended when the first end was detected; of several it is unknown which was first."""
        self.watching = False
        self._folder, self._over = folder, threading.Event()

    def run(self) -> None:
        """Wait until there are ranks, and then for the first end."""
        began = time.time()
        while not self._over.wait(LOOK):
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
            while ranks and not self._over.is_set() and not self.seen:
                self.seen = tuple(ranks[handle] for handle, _ in poll.poll(1000 * LOOK))
        finally:
            for handle in ranks:
                os.close(handle)

    def __enter__(self) -> Watch:
        """Begin."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._over.set()
        self.join(4 * LOOK)


class Peers:
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

    def why(self) -> str:
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
