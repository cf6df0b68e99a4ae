"""Protects the loading of MPI from a `ucx.conf` in the working folder.

UCX, which most MPIs use, reads this file when it is loaded, and the file may name a folder of libraries to load. So
MPI is loaded in another working folder if there is one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mpips.process.first_rank import seems_first

FILE = "ucx.conf"


def folder_without_ucx_conf() -> str | None:
    """Return a folder in which to start a process that loads MPI, instead of the working folder; mostly None."""
    return "/" if os.path.lexists(FILE) else None


@contextmanager
def without_ucx_conf() -> Iterator[None]:
    """Change from a working folder with a `ucx.conf` to another one while MPI is loaded, and print a warning."""
    folder = folder_without_ucx_conf()
    if folder is None:
        yield
        return
    if seems_first():
        text = "it may name code to load; set UCX_CONFIG_DIR to a folder with your own file"
        with suppress(OSError):
            print(f"mpips: the {FILE} of the working folder is not read: {text}", file=sys.stderr, flush=True)
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        os.chdir(folder)
        yield
    finally:
        os.fchdir(here)
        os.close(here)
