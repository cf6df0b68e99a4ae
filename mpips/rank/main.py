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
has ended exits at once, at any time: no other process would end it (`mpips.process.parent_daemon`). It continues if it
has left its launcher before (`mpips.rank.detachment`).
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence

from mpips.errors import InputError
from mpips.exit_codes import ExitCode
from mpips.launch.oversubscription import oversubscription
from mpips.process import parent_daemon
from mpips.process.mpi.open_mpi import initialize
from mpips.process.mpi.ucx import without_ucx_conf
from mpips.rank import stacks
from mpips.rank.ending import LAST, LONGER, alarm, end_for_thread, say
from mpips.rank.prepare import parser, prepare
from mpips.rank.rank_run import RankRun
from mpips.rundir import log

START = 120.0
"""Seconds for all ranks to start, more on a loaded host; then this one prints its stacks and exits."""


def main(argv: Sequence[str] | None = None, stop_signals: list[int] | None = None) -> int:
    """Run one rank; return its exit code. `stop_signals`: those received so far; later ones are appended."""
    started = time.perf_counter()
    argv = sys.argv[1:] if argv is None else argv
    options, prepared = None, None
    error: BaseException | None = None
    try:
        options = parser().parse_args(argv)
    except InputError as raised:
        error = raised
    stop_signals = [] if stop_signals is None else stop_signals
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
            say(f"mpips: error: {error}")
        return ExitCode.BAD_INPUT if error is not None else ExitCode.COMPLETED

    runs: list[RankRun] = []
    parent_daemon.watch(lambda who: _orphaned(who, runs[0] if runs else None))
    # Other ranks wait in MPI_Init for a rank that ends before, without limit with ULFM.
    faulthandler.dump_traceback_later(START * oversubscription(1)(), exit=True)
    threading.excepthook = end_for_thread
    stacks.serve()
    import mpi4py

    # `_load_van` may have failed before this.
    mpi4py.rc.initialize = False

    with without_ucx_conf():
        from mpi4py import MPI

        # The program may have initialized MPI.
        if not MPI.Is_initialized():
            initialize(MPI, MPI.THREAD_SERIALIZED)
    run = RankRun(MPI, options, prepared, stop_signals, started)
    runs.append(run)
    try:
        code = run.live(error)
    except BaseException as raised:
        run.abort(raised)
    run.release()
    sys.stdout.flush()
    alarm(LAST if code else LONGER)
    if not run.survives:
        MPI.Finalize()
    # All files are written. Threads that never end, and libraries that take seconds to unload, are not waited for.
    os._exit(code)


def _load_van() -> None:
    """Load the transport: its kernels are compiled before MPI starts, and so before any timing."""
    import mpi4py

    mpi4py.rc.initialize = False
    with without_ucx_conf():
        import mpips.transport.mpi.van  # noqa: F401


def _orphaned(daemon: str, run: RankRun | None) -> None:
    """End this rank, whose launcher has ended: no other process would end it.

    At once, or when the run is over if the rank does not depend on its launcher.
    """
    if run is not None and run.detachment.left:
        run.detachment.outlive(daemon)
    else:
        error = f"its launcher has ended ({daemon})"
        log.note("failed", logging.ERROR, error=error, follows=True)
        if run is not None:
            run.write_failure(error)
        say(f"mpips: error: {error}")
    os.kill(os.getpid(), signal.SIGKILL)
