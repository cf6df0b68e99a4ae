"""A test by `mpips doctor`, of two ranks: do ranks continue when a daemon of their launcher, or one of them, is killed?

mpirun -n 2 ... python -P -m mpips.launch.checks.outliving OUT.json daemon|rank

The ranks leave their launcher as those of a run do (`mpips.rank.detachment`). Under srun the daemons are root's, so a
rank is killed there. Rank 0 writes {"outlives": false} into the file first, and then true if it continues and reaches
the other one: it cannot if the launcher has ended it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import mpi4py
import numpy as np

from mpips.process import parent_daemon, stand_in
from mpips.process.mpi.open_mpi import initialize
from mpips.process.mpi.ucx import without_ucx_conf

if TYPE_CHECKING:
    from mpi4py import MPI

ENDS = 4.0
"""Seconds in which a launcher ends all ranks that depend on it."""
GIVES_UP = 12
"""Seconds after which a rank ends whose partner does not answer."""
TURN = 0.02
"""Seconds between two messages of a rank."""


def exchange(comm: MPI.Intracomm, seconds: float) -> None:
    """Exchange messages between the two ranks for some time; an MPI error if the other one has ended."""
    number, until = np.zeros(1, np.int64), time.monotonic() + seconds
    while not number[0]:
        if comm.rank == 0:
            number[0] = time.monotonic() > until
            comm.Send(number, 1)
            comm.Recv(number, 1)
        else:
            comm.Recv(number, 0)
            comm.Send(number, 0)
        time.sleep(TURN)


def main(path: Path, killed: str) -> None:
    """Test it; `killed` is "daemon" or "rank"."""
    if killed == "daemon":
        stand_in.begin([])
    mpi4py.rc(initialize=False, finalize=False)
    with without_ucx_conf():
        from mpi4py import MPI

        initialize(MPI)
    from mpips.rundir.folder import write_json
    from mpips.transport.mpi import pmix

    comm = MPI.COMM_WORLD
    comm.Set_errhandler(MPI.ERRORS_RETURN)
    exchange(comm, 0.0)
    # Else this node does not see it.
    reports = comm.rank == 0 and path.parent.is_dir()
    if reports:
        write_json(path, {"outlives": False})
    daemon = parent_daemon.daemon()
    pmix.leave()
    stand_in.release()
    # Both have left their launcher after this.
    exchange(comm, 0.0)
    if comm.rank == 1:
        target = os.getpid() if killed == "rank" else daemon[0] if daemon is not None else 0
        if target:
            os.kill(target, signal.SIGKILL)
    # The other rank may never answer.
    signal.alarm(GIVES_UP)
    outlives = True
    if killed == "rank":
        time.sleep(ENDS)
    else:
        try:
            exchange(comm, ENDS)
        except MPI.Exception:
            outlives = False
    if reports:
        write_json(path, {"outlives": outlives})
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
