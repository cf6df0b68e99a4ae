"""Which rank was the first to fail: what the last lines of a run that failed say.

An error is written into its rank's log before anyone is told of it. Who ends without a word (SIGKILL, a crash in a
library, no memory) is missed by others, by what their MPI lets them see:

    ranks live on when others die    the leader notices it, and it was one death too many
    others                           the launcher ends all; who is told so looks which processes of its host are gone,
                                     and the launcher says what it has seen, which `mpips run` reads

Of all that is found the earliest counts; what only follows from another's death does not if there is anything else.
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
"""Seconds between two looks whether ranks have started, or the run is over."""


class Failure(NamedTuple):
    """A rank that failed: what it was, where, when that was noticed (wall, s), and what is known of why.

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
        """Return who it is, and the error."""
        return f"rank {self.rank} ({self.role} on {self.host}): {self.error}"

    def facts(self, folder: RunFolder) -> dict[str, Any]:
        """Return it as JSON-able data, with the path of its log if there is one."""
        return {**self._asdict(), "log": log_of(folder, self.rank)}


def sentence(facts: Mapping[str, Any], known: str = "") -> str:
    """Say in a line who failed first, when, why unless that is `known`, and where its log is."""
    when = datetime.fromtimestamp(float(facts["wall"]), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    error = "" if str(facts["error"]) in known else f": {facts['error']}"
    at = f" at {facts['at']}" if facts.get("at") and str(facts["at"]) not in known + error else ""
    log = f"; its log: {facts['log']}" if facts.get("log") else ""
    return f"rank {facts['rank']} ({facts['role']} on {facts['host']}), {when}{at}{error}{log}"


def log_of(folder: RunFolder, rank: int) -> str | None:
    """Return the path of a rank's log, if it has one."""
    path = folder.log(rank)
    return str(path) if path.exists() else None


# --- finding it in the logs -----------------------------------------------------------------------


def first(folder: RunFolder, said: str = "", seen: Sequence[int] = ()) -> Failure | None:
    """Return the first failure of a run; None if none is known.

    Goes by its logs, by what its launcher `said` last, and by the ranks that were `seen` to end before all others.
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
    """Give the lines of all logs since then."""
    for path in sorted(folder.logs.glob("rank-*.jsonl")):
        with suppress(OSError):
            for line in read_lines(path).objects:
                if is_number(line.get("wall")) and line["wall"] >= since:
                    yield line


def _failures(lines: Iterable[Mapping[str, Any]]) -> list[_Sign]:
    """Pick the failures among the lines of logs."""
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
    """Return when the run folder was last written to (wall, s)."""
    paths = [folder.metrics, folder.run, folder.result]
    return max((path.stat().st_mtime for path in paths if path.exists()), default=0.0)


# --- those who end without a word -----------------------------------------------------------------


_SAID = (
    re.compile(r"process rank (?P<rank>\d+) with PID \d+ on node \S+\s+exited on\s+signal (?P<signal>\d+)"),
    re.compile(
        r"srun: error: \S+: tasks? (?P<rank>\d+)[-,\d]*: (?P<words>(?!Exited with|Terminated)[A-Z].*)"
    ),
)
"""How mpirun (Open MPI) and srun speak of processes that a signal has ended."""
_NOBODYS_FAULT = re.compile(r"CANCELLED AT \S+ DUE TO ")
"""How Slurm speaks of all processes that it ends at a time limit or with a node."""
_SAID_OF_SOME = re.compile(r"YOUR APPLICATION TERMINATED WITH THE EXIT STRING: .*\(signal (?P<signal>\d+)\)")
"""How mpiexec (MPICH) does: it kills all others at once, and the process that it names is any of them."""


def launcher_said(text: str, seen: Sequence[int] = ()) -> dict[int, str]:
    """Read which ranks a launcher has seen ended by a signal, in the order in which it says so.

    Where it does not know which one it was, it is the one that was `seen` to end before all others.
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
    """Name a signal."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Watch(threading.Thread):
    """Watches the ranks of this host from outside, as `mpips run` does, and sees which one ends before all others."""

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(daemon=True)
        self.seen: tuple[int, ...] = ()
        """The ranks that had ended when the first end was noticed: of several nobody knows which was the first."""
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
                with suppress(OSError, AttributeError):  # only Linux has it
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
    """The processes of the ranks of this host, of which those that end without a word are missed.

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

    def speaks(self, missing: Iterable[int]) -> bool:
        """Tell whether this rank is the first one of its host that is still there."""
        return not {rank for rank in self.pids if rank < self.rank} - set(missing)

    def why(self) -> str:
        """Say what is known of why a process of this host is gone."""
        now = oom_kills()
        if now is not None and self._kills is not None and now > self._kills:
            return f"{Cause.DIED.text}; the kernel has killed a process here for want of memory"
        return Cause.DIED.text


def oom_kills(root: Path = Path("/")) -> int | None:
    """Count the processes of this control group that the kernel has killed for want of memory; None if unknown."""
    with suppress(OSError, ValueError, StopIteration):
        groups = (root / "proc/self/cgroup").read_text().splitlines()
        path = next(line.split(":", 2)[2] for line in groups if line.startswith("0::"))
        path = re.sub(r"(/job_\d+)/.*", r"\1", path)  # Slurm's: of the whole job on this node
        events = (root / f"sys/fs/cgroup{path}/memory.events").read_text().split()
        return int(events[events.index("oom_kill") + 1])
    return None
