"""The launcher and its ranks as child processes: forwards signals and output, and leaves no process behind."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpips.errors import in_a_line
from mpips.process import dependent
from mpips.process.stop_signals import WARNINGS, StopRequests

if TYPE_CHECKING:
    from mpips.launch.detached_run import DetachedRun
    from mpips.launch.mpi_launcher import Launch

GRACE = 5.0
"""Seconds that ranks have to end after they were asked to, before they are killed."""
ORPHAN_GRACE = 2.0
"""Seconds that ranks have to end after their launcher has ended."""
EXIT_TIME, EXIT_TIME_FAILED = 5.0, 30.0
"""Seconds that a launcher has to end once there is a result; longer if it ends the ranks itself, after a failure."""
START_GRACE = 10.0
"""Seconds that all ranks have to end by themselves after one has failed before the run began."""
TASK_ENDED = re.compile(
    rb"^(srun: error: (?:\S+: tasks? [0-9,\[\]-]+: .*|Node failure on .*))$", re.MULTILINE
)
"""The line in which srun reports tasks that have failed, or a node."""
SLOW_START = 0.8
"""Seconds after which the ranks' start is said to be waited for."""
INTERVAL = 0.2
"""Seconds between two looks at the launcher."""
CHECK_INTERVAL = 1.0
"""Seconds between two checks for a result."""
FIRST_INTERVAL, LONGEST_INTERVAL = 1.0, 30.0
"""Seconds between two stop requests to the ranks: at first, and at most."""


class LauncherProcess:
    """The launcher as a child in a process group of its own; stop requests are forwarded to it.

    All are forwarded as USR1, which asks the ranks to checkpoint and stop: a launcher that gets TERM kills them within
    a second. That is not before the ranks are `ready`: USR1 would kill a rank that is starting, and a launcher without
    ranks would drop it; it is repeated, with exponential backoff, until the run ends. A second INT, TERM or HUP ends
    everything. Ranks whose launcher has died are adopted, and ended too. So is a launcher that still waits after the
    run is over, for a stopped (SIGSTOP) rank that the others have excluded.

    A `detached` run continues when its launcher has ended, until it has a result or none of its ranks lives. It is
    asked to stop by an order in its folder instead of USR1, and its output is read from files. A rank that fails before
    the others have begun ends the run, which its launcher does not: srun reports it, and its stand-in under mpirun. So
    does a node that is lost then, of which srun may know nothing.

    Args:
        launch: the command to run.
        result: returns the run's result once there is one.
        requests: the stop signals of the command; default: those that arrive while the launcher runs.
        ready: returns whether the ranks can be asked to stop: they have started.
        tell: is called with the first of the signals before USR1 is sent: ranks cannot tell which signal it stands for.
        detached: the run, if its ranks outlive their launcher.
    """

    def __init__(
        self,
        launch: Launch,
        result: Callable[[], Mapping[str, Any] | None] = lambda: None,
        requests: StopRequests | None = None,
        ready: Callable[[], bool] = lambda: True,
        tell: Callable[[int], None] = lambda number: None,
        detached: DetachedRun | None = None,
    ) -> None:
        self._launch, self._result, self._ready, self._tell = launch, result, ready, tell
        self._detached, self._outlived = detached, False
        # Copies the files of a detached run.
        self._follower: threading.Thread | None = None
        self._over = threading.Event()
        self._requests = requests
        # Whether the ranks have been ready: their files may not be readable for some time.
        self._has_begun = False
        self._next_check = 0.0
        self._status_since = ("", 0.0)
        self._process: subprocess.Popen[bytes] | None = None
        # When a message is printed that the ranks have not started; None once it is, or is not needed.
        self._started_at: float | None = None
        # Whether a message was printed that the run will stop.
        self._announced = False
        self._next_request, self._interval = 0.0, FIRST_INTERVAL
        self._deadline: float | None = None
        # When it was seen that a rank has failed before the run began.
        self._lost_since: float | None = None
        self._copiers: list[threading.Thread] = []
        self._sinks: tuple[Sink, ...] = ()

    @property
    def last_output(self) -> str:
        """The last output of the launcher and the ranks, stdout and then stderr."""
        return "\n".join(b"".join(sink.kept).decode(errors="replace") for sink in self._sinks)

    def _copy_output(self) -> None:
        """Copy the output of the ranks: a launcher whose reader has ended, as in `| head`, would kill them."""
        assert self._process is not None
        self._sinks = Sink(sys.stdout.fileno()), Sink(sys.stderr.fileno())
        for pipe, sink in zip((self._process.stdout, self._process.stderr), self._sinks, strict=True):
            assert pipe is not None
            copier = threading.Thread(target=copy, args=(pipe.fileno(), sink), daemon=True)
            copier.start()
            self._copiers.append(copier)
        if self._detached is not None:
            self._follower = threading.Thread(target=self._follow, args=(self._detached,), daemon=True)
            self._follower.start()

    def _follow(self, detached: DetachedRun) -> None:
        """Copy the output that the ranks of a detached run write to files, until all is over."""
        while not self._over.wait(INTERVAL):
            self._copy_files(detached)
        while self._copy_files(detached, at_once=True):
            pass

    def _copy_files(self, detached: DetachedRun, at_once: bool = False) -> bool:
        """Copy what is new; return whether there was anything."""
        found = detached.output(at_once)
        for stream, data in found:
            self._sinks[stream - 1].write(data)
        return bool(found)

    def _finish_output(self, requests: Sequence[int]) -> None:
        """Wait until all output is copied, also to a slow reader, or until a signal asks again to stop."""
        before = len(requests)
        for copier in self._copiers:
            copier.join(1.0)
            # A process that has escaped may hold an empty pipe open.
            while copier.is_alive() and self._pipes_are(select.POLLIN | select.POLLHUP):
                if any(kind not in WARNINGS for kind in requests[before:]):
                    return
                copier.join(0.2)
        self._over.set()
        while self._follower is not None and self._follower.is_alive():
            if any(kind not in WARNINGS for kind in requests[before:]):
                return
            self._follower.join(0.2)

    def _pipes_are(self, state: int) -> bool:
        """Return whether a pipe of the ranks' output has data that are not copied (POLLIN), or its end (POLLHUP)."""
        assert self._process is not None
        poll = select.poll()
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            poll.register(pipe, select.POLLIN)
        return any(found & state for _, found in poll.poll(0))

    def run(self) -> int:
        """Run the launch to its end; return its exit code, negative for a signal."""
        if self._requests is not None:
            return self._run(self._requests)
        with StopRequests() as requests:
            requests.record_only()
            return self._run(requests)

    def _run(self, requests: StopRequests) -> int:
        adopt_orphans()
        try:
            self._process = subprocess.Popen(
                dependent.line(self._launch.line),
                env=self._launch.environment(),
                stdin=subprocess.DEVNULL,
                process_group=0,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            self._copy_output()
            self._started_at = time.monotonic()
            while self._goes_on(self._process):
                self._say_slow_start()
                self._forward(self._process, requests.received)
                if why := self._lost_at_start():
                    self._end(why)
                if self._must_be_ended():
                    self._end()
                if self._deadline is not None and time.monotonic() > self._deadline:
                    self._kill()
            self._end_orphans()
            dependent.clear_session(self._process.pid)
            self._finish_output(requests.received)
            return self._process.returncode
        except BaseException as error:
            # Ranks of other hosts would continue.
            if self._detached is not None:
                self._detached.kill(f"mpips run has failed: {in_a_line(error)}")
            self._kill()
            raise

    def _goes_on(self, launcher: subprocess.Popen[bytes]) -> bool:
        """Wait a moment; return whether the launcher still runs, or the run continues without it."""
        with suppress(subprocess.TimeoutExpired):
            launcher.wait(timeout=INTERVAL)
        if launcher.returncode is None:
            return True
        if self._detached is None or self._status() or not self._begun():
            return False
        if not descendants(os.getpid()) and not self._detached.lives_elsewhere():
            return False
        if not self._outlived:
            self._outlived = True
            print("mpips: the launcher has ended; the run continues without it", file=sys.stderr, flush=True)
        time.sleep(INTERVAL)
        return True

    def _say_slow_start(self) -> None:
        """Say once that the ranks have not started together, if that takes long and none of them has said anything."""
        if self._started_at is None or time.monotonic() < self._started_at + SLOW_START:
            return
        self._started_at = None
        if not self._begun() and not any(sink.kept for sink in self._sinks):
            print("mpips: waiting for the ranks to start", file=sys.stderr, flush=True)

    def _begun(self) -> bool:
        """Return whether the ranks can be asked to stop."""
        self._has_begun = self._has_begun or self._ready()
        return self._has_begun

    def _forward(self, process: subprocess.Popen[bytes], requests: Sequence[int]) -> None:
        """Forward stop requests; those that batch systems send by themselves never kill."""
        stops = sum(kind not in WARNINGS for kind in requests)
        if stops and not self._announced:
            self._announced = True
            print(
                "mpips: stopping, with a checkpoint if anything is trained; repeat to kill the run",
                file=sys.stderr,
                flush=True,
            )
        now = time.monotonic()
        if stops > 1:
            self._end()
        elif requests and now >= self._next_request and self._deadline is None and self._begun():
            if self._detached is None:
                self._tell(requests[0])
                process.send_signal(signal.SIGUSR1)
            else:
                self._detached.ask_to_stop(signal.Signals(requests[0]).name)
            self._next_request, self._interval = (
                now + self._interval,
                min(2 * self._interval, LONGEST_INTERVAL),
            )

    def _lost_at_start(self) -> str:
        """Return why a detached run cannot begin, "" if it can: ranks wait in MPI_Init for one that has failed."""
        if self._detached is None or self._begun():
            return ""
        who, now = self._detached.lost_at_start(), time.monotonic()
        if self._launch.kind == "srun":
            if node := self._detached.lost_node():
                return f"node {node} was lost before the run had begun"
            found = TASK_ENDED.search(b"".join(self._sinks[1].kept))
            who = found[1].decode(errors="replace") if found else ""
        if not who:
            return ""
        self._lost_since = self._lost_since or now
        # After bad input all ranks end, and not all at once.
        return f"a rank has ended at its start ({who})" if now - self._lost_since >= START_GRACE else ""

    def _end(self, why: str = "killed on request") -> None:
        """Ask the launcher to end everything; what is left is killed at the deadline."""
        if self._process is not None and self._deadline is None:
            if self._detached is not None:
                self._detached.kill(why)
            self._process.send_signal(signal.SIGTERM)
            self._deadline = time.monotonic() + GRACE

    def _must_be_ended(self) -> bool:
        """Return whether the run has been over for so long that its launcher will not end by itself."""
        now = time.monotonic()
        if now >= self._next_check:
            self._next_check = now + CHECK_INTERVAL
            status = self._status()
            if status != self._status_since[0]:
                self._status_since = (status, now)
        status, since = self._status_since
        longer = status == "failed" and self._detached is None
        late = bool(status) and now - since > (EXIT_TIME_FAILED if longer else EXIT_TIME)
        # The launcher may wait for the reader of its output.
        return late and not self._pipes_are(select.POLLIN)

    def _status(self) -> str:
        """Return the status in the result; empty while there is none."""
        try:
            result = self._result()
        except (OSError, ValueError):
            return ""
        # A provisional result is from a rank that got SIGTERM, and may still stop in order.
        if result is None or result.get("provisional"):
            return ""
        return str(result.get("status") or "")

    def _end_orphans(self) -> None:
        """Wait shortly for ranks that have outlived their launcher, then kill them."""
        deadline = time.monotonic() + (EXIT_TIME if self._outlived else ORPHAN_GRACE)
        while left := descendants(os.getpid()):
            if time.monotonic() > deadline:
                kill(left)
            time.sleep(0.02)

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            kill([*descendants(self._process.pid), self._process.pid])
        elif self._process is not None:
            kill(descendants(os.getpid()))


PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends (subreaper); without effect where unsupported."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Sink:
    """A file descriptor to which output is copied: when it is closed or full, it gets nothing more.

    The last pieces are also `kept`. A full one is reported on stderr.
    """

    def __init__(self, descriptor: int) -> None:
        self.kept: deque[bytes] = deque(maxlen=16)
        self._descriptor, self._failed = descriptor, False

    def write(self, data: bytes) -> None:
        """Write all of some bytes."""
        self.kept.append(data)
        try:
            while data and not self._failed:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            self._failed = True
            if error.errno != errno.EPIPE and self._descriptor != sys.stderr.fileno():
                why = f"mpips: the output of the run cannot be written: {error.strerror}; the run continues"
                print(why, file=sys.stderr, flush=True)


def copy(source: int, sink: Sink) -> None:
    """Copy the output that can be read from a file descriptor, until its end."""
    while data := os.read(source, 1 << 16):
        sink.write(data)


def kill(pids: Iterable[int]) -> None:
    """Kill processes that still exist."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> list[int]:
    """List the descendants of a process that have not ended: a launcher puts ranks into process groups of their own."""
    below: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except (OSError, ValueError):
                continue
            if state in "ZX":
                continue
            below.setdefault(int(parent), []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        children = below.get(todo.pop(), [])
        found += children
        todo += children
    return found
