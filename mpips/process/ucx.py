"""Loading MPI where the working folder has a say in it: UCX, which most MPIs bring, reads a `ucx.conf` there.

It does so when it is loaded, and the file may name a folder of libraries to load. So MPI is loaded `away` from a folder
that has one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mpips.process.first_rank import seems_first

FILE = "ucx.conf"


def elsewhere() -> str | None:
    """Give a folder in which a process that loads MPI is to be started instead of the working folder; mostly None."""
    return "/" if os.path.lexists(FILE) else None


@contextmanager
def away() -> Iterator[None]:
    """Leave a working folder that has a `ucx.conf`, for as long as MPI is loaded; say so."""
    other = elsewhere()
    if other is None:
        yield
        return
    if seems_first():
        text = "it may name code to load; UCX_CONFIG_DIR names a folder that has one of yours"
        with suppress(OSError):
            print(f"mpips: the {FILE} of the working folder is not read: {text}", file=sys.stderr, flush=True)
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        os.chdir(other)
        yield
    finally:
        os.fchdir(here)
        os.close(here)
