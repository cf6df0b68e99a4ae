"""`python -P -m mpips JOB.toml`: one rank of a job; see `mpips.rank.main`."""

import gc
import sys

from mpips.process import stop_signals, supervisor


def begin_detached() -> None:
    """Continue in a child process, if this rank is to outlive the daemon of Open MPI that has started it.

    Under srun, let another process show that this node lives.
    """
    found = supervisor.given(sys.argv)
    if found is not None and found.launcher == "openmpi":
        from mpips.process import stand_in

        stand_in.begin(sys.argv)
    elif found is not None and found.launcher == "srun":
        from mpips.launch import node_beat

        node_beat.begin(sys.argv)


def start() -> int:
    """Run a rank. Signal handlers are set first: otherwise a request to stop would kill the rank while it loads."""
    received = [] if "--warm-up" in sys.argv else stop_signals.receive()
    begin_detached()
    # Imported modules are never freed; garbage collections during imports take a tenth of a rank's start.
    gc.disable()
    from mpips.process import standard_streams

    standard_streams.prepare()
    from mpips.rank.main import main

    gc.freeze()
    gc.enable()
    return main(stop_signals=received)


sys.exit(start())
