"""What the ranks of a check exchange by MPI: messages back and forth, and the names of their hosts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from mpips.process.host import NAME_BYTES, host_name

if TYPE_CHECKING:
    from mpi4py import MPI


def times(comm: MPI.Comm, size: int, rounds: int) -> list[float]:
    """Send `size` bytes from rank 0 to rank 1 and back, `rounds` times; return the one-way seconds of each."""
    buffer = np.zeros(size, np.uint8)
    taken = []
    for _ in range(rounds):
        start = time.perf_counter()
        if comm.rank == 0:
            comm.Send(buffer, dest=1)
            comm.Recv(buffer, source=1)
        else:
            comm.Recv(buffer, source=0)
            comm.Send(buffer, dest=0)
        taken.append((time.perf_counter() - start) / 2)
    return taken


def host_names(comm: MPI.Comm) -> list[str]:
    """Return the name of each rank's host."""
    mine = np.zeros(NAME_BYTES, np.uint8)
    name = np.frombuffer(host_name().encode(), np.uint8)
    mine[: name.size] = name
    everyone = np.empty((comm.size, NAME_BYTES), np.uint8)
    comm.Allgather(mine, everyone)
    return [row.tobytes().rstrip(b"\0").decode() for row in everyone]
