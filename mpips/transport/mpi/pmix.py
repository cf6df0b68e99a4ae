"""PMIx, by which Open MPI depends on its launcher: a rank that has left it does not end with the launcher.

Addresses cannot be looked up after that, so all must be known: the parameter `mpi_add_procs_cutoff` must be more than
the number of ranks. MPI_Abort then ends the calling rank only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

LIBRARIES = ("/libpmix.so", "/libopen-pal.so", "/libmpi.so")
"""Where PMIx is: a library of its own, or a part of Open MPI."""
TRIES = 10
"""Calls of PMIx_Finalize, at most: PMIx counts the initializations of a process."""


def leave() -> None:
    """Leave PMIx. MPI must be initialized, and no rank may need another one to call a collective function of it.

    Raises:
        RuntimeError: that is not possible.
    """
    for path in _loaded():
        library = ctypes.CDLL(path)
        if hasattr(library, "PMIx_Finalize") and hasattr(library, "PMIx_Initialized"):
            for _ in range(TRIES):
                if not library.PMIx_Initialized():
                    return
                library.PMIx_Finalize(None, ctypes.c_size_t(0))
    raise RuntimeError("this process cannot leave PMIx")


def _loaded() -> Iterator[str]:
    """Yield the paths of libraries that this process has loaded and that may have PMIx in them."""
    maps = Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines()
    paths = dict.fromkeys(line.split(maxsplit=5)[5] for line in maps if ".so" in line)
    for name in LIBRARIES:
        yield from (path for path in paths if name in path)
