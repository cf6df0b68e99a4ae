"""`python -P -m mpips JOB.toml`: one rank of a job; see `mpips.run`."""

import signal
import sys


def start() -> int:
    """Run a rank; from its first moment it can be asked to stop: it loads for seconds, in which USR1 would kill it."""
    asked: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _: asked.append(number))
    from mpips import streams

    streams.prepare()
    from mpips.run import main

    return main(asked=asked)


sys.exit(start())
