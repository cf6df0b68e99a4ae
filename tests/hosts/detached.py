"""python detached.py JOB [options]: a rank of mpips that does not depend on its launch daemon once MPI has started.

What ends the ranks of a run when a node is lost, and what helps:

    Open MPI's daemon signals its children's process group     the rank is in a session of its own
    when it loses the others
    Open MPI's PMIx client aborts when it loses its daemon     the rank leaves PMIx (PMIx_Finalize) after the start
    mpips ends a rank whose daemon has ended                   not here
    the pipe of its output breaks                              its output is in a file beside the job file

Addresses cannot be looked up afterwards, so OMPI_MCA_mpi_add_procs_cutoff must be at least the number of ranks.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path


def leave_launcher() -> None:
    """Leave the session and the PMIx server of the daemon that has started this process."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    (library, *_) = {line.split(maxsplit=5)[5] for line in maps if "/libpmix.so" in line}
    pmix = ctypes.CDLL(library)
    for _ in range(10):
        if not pmix.PMIx_Initialized():
            return
        pmix.PMIx_Finalize(None, ctypes.c_size_t(0))
    raise RuntimeError("this process does not leave PMIx")


def main() -> int:
    # The leader of a process group cannot begin a session.
    if os.getpid() == os.getpgrp() and (pid := os.fork()):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.setsid()
    import mpi4py

    mpi4py.rc.thread_level = "serialized"
    from mpi4py import MPI

    from mpips.rank import parent_daemon
    from mpips.rank.main import main as run

    MPI.COMM_WORLD.Barrier()
    with open(f"{Path(sys.argv[1]).parent}/output-{MPI.COMM_WORLD.Get_rank()}", "wb", 0) as out:
        for stream in (1, 2):
            os.dup2(out.fileno(), stream)
    leave_launcher()
    parent_daemon.watch = lambda end: None  # type: ignore[assignment, misc]
    return run()


if __name__ == "__main__":
    sys.exit(main())
