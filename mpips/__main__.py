"""`python -P -m mpips JOB.toml`: one rank of a job; see `mpips.run`."""

import signal
import sys

from mpips.wishes import ASKS


def start() -> int:
    """Run a rank; from its first moment it can be asked to stop: else a signal would kill it while it loads."""
    asked: list[int] = []
    if "--warm-up" not in sys.argv:
        for kind in ASKS:
            signal.signal(kind, lambda number, _: asked.append(number))
    from mpips import streams

    streams.prepare()
    from mpips.run import main

    return main(asked=asked)


sys.exit(start())
