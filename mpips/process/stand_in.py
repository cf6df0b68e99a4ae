"""A process that stands in for a rank at its launch daemon, so that the rank can outlive the daemon.

Open MPI's daemon signals the process group of each process that it has started, and so ends all ranks of a run when it
loses another daemon. A rank that shall survive that forks before it does anything else:

    stand-in    what the daemon has started: it waits for the rank, and ends as the rank ends
    rank        a child of it, in a session of its own

Until the rank is `released` (`mpips.rank.detachment`) it ends with its stand-in, and gets the signals of its launcher.
From then on it gets none: the daemon's SIGTERM also says that a daemon is lost. If it comes when the run has a result,
the stand-in kills the rank, which hangs. If the rank fails before, the others wait for it in MPI_Init, and the daemon
lets them: so the stand-in leaves a file in the run's folder, by which `mpips run` knows.

A daemon ends with its launcher, or when it notices that it has lost it: if the launcher's host has no power any more,
that takes minutes. So a process stays for some time when the run is over, and then ends the daemon.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from mpips.process.dependent import end_with_parent
from mpips.process.host import is_gone
from mpips.process.stop_signals import STOP_SIGNALS
from mpips.process.supervisor import option

CHECKED = 0.5
"""Seconds between two checks whether the run has a result, once the daemon wants to end the rank."""

DAEMONS = ("prted", "prterun", "mpirun")
"""The names of Open MPI's daemons, each of one run."""
DAEMON_ENDS = 20.0
"""Seconds that a daemon has to end after the run: longer than `mpips run` takes to end a launcher that waits."""
DAEMON_LOOK = 0.05
"""Seconds between two checks whether it has ended: `mpips run` waits for the last process of a run."""
DAEMON_GRACE = 3.0
"""Seconds that it has after SIGTERM."""

LOST = ".lost-{}"
"""The name of the file about a rank that has failed before it was released, with the claim of `mpips run`."""
_NONE = -1
_to_stand_in = _NONE
"""In the rank: the pipe to which it writes when it is released."""


def begin(argv: Sequence[str]) -> None:
    """Continue in a child of this process, which becomes its stand-in; `argv` is the rank's command line."""
    global _to_stand_in
    released, _to_stand_in = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        os.close(_to_stand_in)
        _stand_in(pid, released, Path(option(argv, "--run-dir") or "-"), option(argv, "--claim"))
    os.close(released)
    os.setsid()
    end_with_parent(signal.SIGKILL)
    # It has ended before that.
    if os.getppid() != parent:
        os._exit(1)


def release() -> None:
    """Let this rank outlive its stand-in from now on."""
    global _to_stand_in
    if _to_stand_in != _NONE:
        end_with_parent(0)
        # Children that the program has forked may hold the pipe open.
        with suppress(OSError):
            os.write(_to_stand_in, b"released")
        os.close(_to_stand_in)
        _to_stand_in = _NONE


def is_over(folder: Path) -> bool:
    """Return whether the run in a folder has a final result."""
    try:
        result = json.loads((folder / "result.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(result, dict) and not result.get("provisional")


def _stand_in(pid: int, released: int, folder: Path, claim: str) -> NoReturn:
    """Wait for the rank `pid`, and end as it ends."""
    try:
        waited = {signal.SIGCHLD, *STOP_SIGNALS}
        signal.pthread_sigmask(signal.SIG_BLOCK, waited)
        unwanted = False
        while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            got = signal.sigtimedwait(waited, CHECKED if unwanted else 10 * CHECKED)
            number = got.si_signo if got is not None else 0
            if number in STOP_SIGNALS and not _is_released(released):
                os.kill(pid, number)
            unwanted |= number == signal.SIGTERM
            if unwanted and is_over(folder):
                os.kill(pid, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if _is_released(released) and is_over(folder):
            _end_daemon(os.getppid())
        elif code and claim and not _was_released(released):
            _report(folder / LOST.format(claim), code)
        if code < 0:
            with suppress(OSError):
                signal.signal(-code, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
            _without_core_file()
            os.kill(os.getpid(), -code)
        os._exit(code)
    finally:
        os._exit(1)


def _end_daemon(daemon: int) -> None:
    """Start a process that ends the daemon if it does not end by itself."""
    try:
        name = Path(f"/proc/{daemon}/comm").read_text().strip()
    except OSError:
        return
    if name not in DAEMONS or os.fork():
        return
    # The daemon waits for the end of its pipes.
    os.closerange(0, 256)
    os.setsid()
    until = time.monotonic() + DAEMON_ENDS
    for kind in (signal.SIGTERM, signal.SIGKILL):
        while time.monotonic() < until:
            if is_gone(daemon):
                os._exit(0)
            time.sleep(DAEMON_LOOK)
        with suppress(OSError):
            os.kill(daemon, kind)
        until += DAEMON_GRACE
    os._exit(0)


def _is_released(pipe: int) -> bool:
    """Return whether the rank has been released, or has ended."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return bool(poll.poll(0))


def _was_released(pipe: int) -> bool:
    """Return whether the rank, which has ended, had been released."""
    os.set_blocking(pipe, False)
    with suppress(BlockingIOError):
        return bool(os.read(pipe, 1))
    return False


def _report(path: Path, code: int) -> None:
    """Leave a file that says how this rank has ended, unless another one has."""
    names = {each.value: each.name for each in signal.Signals}
    how = f"exit code {code}" if code > 0 else names.get(-code, f"signal {-code}")
    with suppress(OSError):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        os.write(file, f"rank {os.environ.get('PMIX_RANK', '?')} on {os.uname().nodename}: {how}".encode())
        os.close(file)


def _without_core_file() -> None:
    """Write no core file of this process in place of the rank's."""
    import resource

    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
