"""`python -P -m mpips JOB.toml`: one rank of a job; see `mpips.rank.main`."""

import gc
import sys

from mpips.process import stop_signals


def start() -> int:
    """Run a rank. Signal handlers are set first: otherwise a request to stop would kill the rank while it loads."""
    received = [] if "--warm-up" in sys.argv else stop_signals.receive()
    # Imported modules are never freed; garbage collections during imports take a tenth of a rank's start.
    gc.disable()
    from mpips.process import standard_streams

    standard_streams.prepare()
    from mpips.rank.main import main

    gc.freeze()
    gc.enable()
    return main(stop_signals=received)


sys.exit(start())
