"""A ping between two ranks, started by `mpips doctor`: checks for one world, and measures latency and bandwidth.

mpirun -n 2 python -P -m mpips.launch.checks.ping OUT.json|-

With `-` each world's first rank writes a line to stdout: the ranks may be on nodes without a shared file system, and if
there are as many worlds as ranks, each reports.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import mpi4py
import numpy as np

from mpips.launch.checks.exchange import host_names, times
from mpips.launch.checks.launcher_probe import REPORT_PREFIX
from mpips.process.mpi.open_mpi import initialize
from mpips.process.mpi.ucx import without_ucx_conf
from mpips.rundir.folder import write_json

mpi4py.rc(initialize=False, finalize=True)
with without_ucx_conf():
    from mpi4py import MPI

    initialize(MPI)

ROUND_TRIPS, SMALL = 2000, 8
"""Number of round trips of the small message, and its size in bytes."""
BURSTS, LARGE = 20, 4 << 20

PATIENCE = 5.0
"""Seconds to wait for the detection of a death."""

LEVELS = {
    MPI.THREAD_SINGLE: "single",
    MPI.THREAD_FUNNELED: "funneled",
    MPI.THREAD_SERIALIZED: "serialized",
    MPI.THREAD_MULTIPLE: "multiple",
}


def survives(comm: MPI.Comm) -> bool:
    """Kill rank 1; return on rank 0 whether it survives that (ULFM)."""
    comm.Set_errhandler(MPI.ERRORS_RETURN)
    comm.Barrier()
    if comm.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    request = comm.Irecv(np.zeros(1, np.uint8), source=1)
    deadline = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < deadline:
            request.Test()
            time.sleep(0.001)
    except MPI.Exception:
        return True
    return False


def write_report(path: str, report: dict[str, Any]) -> None:
    """Write the report, to a file or as a line to stdout."""
    if path == "-":
        print(f"{REPORT_PREFIX}{json.dumps(report)}", flush=True)
    else:
        write_json(Path(path), report)


def main(path: str, may_die: bool) -> None:
    """Measure, and let rank 0 write the report.

    Args:
        path: the file to write, or `-`.
        may_die: the launcher was asked to let ranks survive the death of another: test it.
    """
    comm = MPI.COMM_WORLD
    report: dict[str, Any] = {"size": comm.size, "thread_level": LEVELS[MPI.Query_thread()]}
    if comm.size == 2:
        times(comm, SMALL, ROUND_TRIPS // 10)
        report["latency_seconds"] = median(times(comm, SMALL, ROUND_TRIPS))
        times(comm, LARGE, 2)
        report["bytes_per_second"] = LARGE / median(times(comm, LARGE, BURSTS))
        report["ulfm"] = False
    report["hosts"] = len(set(host_names(comm)))
    if comm.rank == 0:
        write_report(path, report)
    if may_die and comm.size == 2:
        report["ulfm"] = survives(comm)
        write_report(path, report)
        # MPI_Finalize would wait for the dead rank.
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], "--may-die" in sys.argv[2:])
