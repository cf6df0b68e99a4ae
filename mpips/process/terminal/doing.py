"""A line on stderr about what a command does, if that takes long: nobody must guess whether it hangs."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LONG = 0.7
"""Seconds after which a command says what it does."""


@contextmanager
def doing(what: str, after: float = LONG) -> Iterator[None]:
    """Print a line if the block takes longer than `after` seconds.

    >>> with doing("nothing, quickly"):
    ...     pass
    """
    timer = threading.Timer(after, lambda: print(f"mpips: {what}", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
