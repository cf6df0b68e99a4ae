"""`python -P -m mpips JOB.toml`: one rank of a job; see `mpips.rank.main`."""

import gc
import signal
import sys

from mpips.process.stop_signals import ASKS


def start() -> int:
    """Run a rank. Signal handlers are set first: otherwise a request to stop would kill the rank while it loads."""
    asked: list[int] = []
    if "--warm-up" not in sys.argv:
        for kind in ASKS:
            signal.signal(kind, lambda number, _: asked.append(number))
    # What is imported stays: a search of it for garbage costs a tenth of a rank's start, and finds none.
    gc.disable()
    from mpips.process import standard_streams

    standard_streams.prepare()
    from mpips.rank.main import main

    gc.freeze()
    gc.enable()
    return main(asked=asked)


sys.exit(start())
