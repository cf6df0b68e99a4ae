"""How a rank outlives its launcher and its launch daemon, so that the run continues when a host of theirs is lost.

Open MPI needs its launcher to start, and ends all ranks when the launcher loses a host:

    the daemon signals the process groups of its children      the rank is in a session of its own, `stand_in`
    Open MPI's PMIx client aborts when it loses its daemon     the rank leaves PMIx once the run has begun
    (under srun) ULFM announces a death by PMIx: the step ends the same
    the pipe of the rank's output breaks                       its output is in files, `output_files`

Deaths are then reported by connections that break, and on the same host by the operating system (`van.watch`).

What is left of the launcher's duties:

    the daemon is lost           the rank continues, and looks itself whether the run has a result: if it hangs then,
                                 it is killed
    `mpips run` is killed        the ranks of its host see that, and that they live on, so it was not the host: they
                                 write the result "failed", which ends all ranks
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from mpips.launch import node_beat
from mpips.process import stand_in
from mpips.process.host import host_name, is_gone
from mpips.process.supervisor import Supervisor
from mpips.rank.ending import ResultFile, say
from mpips.rundir import log, output_files
from mpips.rundir.folder import RunFolder
from mpips.transport.mpi import pmix

LOOK = 0.5
"""Seconds between two looks whether the run is over."""
ENDING = 10.0
"""Seconds that a rank without a daemon has to end when the run is over."""
ENDING_FAILED = 2.0
"""The same when the run has failed: nothing is left to do."""
HOST_ENDS = 1.0
"""Seconds in which a rank ends whose host ends, of which the end of another process may be the first sign."""


class Detachment:
    """A rank's independence of its launcher; without a `supervisor` it has none."""

    def __init__(self, supervisor: Supervisor | None = None) -> None:
        self._supervisor = supervisor
        self._folder: RunFolder | None = None
        self.left = False
        """Whether the rank has left its launcher."""

    @property
    def wanted(self) -> bool:
        """Whether the rank shall leave its launcher."""
        return self._supervisor is not None

    def leave(self, result: ResultFile, first: int) -> None:
        """Leave the launcher: all ranks have begun.

        Args:
            result: the result of the run, in its folder.
            first: the lowest rank on this host.

        Raises:
            OSError: the files for its output cannot be opened.
            RuntimeError: the process does not leave PMIx.
        """
        assert self._supervisor is not None and result.folder is not None
        self._folder = result.folder
        output_files.redirect(self._folder.path, first)
        pmix.leave()
        stand_in.release()
        node_beat.end()
        self.left = True
        log.note("detached")
        if self._supervisor.is_here:
            arguments = self._supervisor.pid, self._folder, result
            threading.Thread(target=_watch, args=arguments, name="mpips-supervisor", daemon=True).start()

    def outlive(self, daemon: str) -> None:
        """Return when this rank must end after all: its daemon has ended, and then the run."""
        assert self._folder is not None
        log.note("orphaned", logging.WARNING, daemon=daemon)
        while not stand_in.is_over(self._folder.path):
            time.sleep(LOOK)
        result = None
        with suppress(Exception):
            result = self._folder.read_result()
        time.sleep(ENDING_FAILED if (result or {}).get("status") == "failed" else ENDING)


def _watch(pid: int, folder: RunFolder, result: ResultFile) -> None:
    """End the run, and this rank, when the process that supervises it has been killed."""
    _wait(pid)
    time.sleep(HOST_ENDS)
    if not stand_in.is_over(folder.path):
        error = f"its launcher has ended (mpips run, process {pid})"
        log.note("failed", logging.ERROR, error=error, follows=True)
        # A provisional one ends no rank.
        result.fail_if_absent(f"the run was ended on {host_name()}: {error}", over_provisional=True)
        say(f"mpips: error: {error}")
        os.kill(os.getpid(), signal.SIGKILL)


def _wait(pid: int) -> None:
    """Wait for the end of a process."""
    try:
        handle = os.pidfd_open(pid)
    except (OSError, AttributeError):
        while not is_gone(pid):
            time.sleep(LOOK)
        return
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.poll()
    finally:
        os.close(handle)


def of_this_launch(pids: Mapping[int, int]) -> dict[int, int]:
    """Return those of the processes, by rank, that the launcher of this one has started as these ranks.

    Two ranks may have the same name of their host and not see each other's processes, as in containers.
    """
    launch = f"PMIX_NAMESPACE={os.environ.get('PMIX_NAMESPACE')}".encode()
    found = {}
    for rank, pid in pids.items():
        with suppress(OSError):
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if {launch, f"PMIX_RANK={rank}".encode()} <= set(variables):
                found[rank] = pid
    return found
