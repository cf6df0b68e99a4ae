"""The deaths of ranks, as MPI reports them.

Where MPI survives a death (Open MPI under `mpirun --with-ft ulfm`, or with its parameter `mpi_ft_enable` under srun),
any call may report one: it is acknowledged and reported by `failed()`, incomplete messages are dropped, and the
communicator stays in use, since no call is collective.
MPI learns of a death from its launcher, or by a connection that breaks. Ranks that have left their launcher share
memory with those of the same host, which does not break: so they `watch` the processes.
`exclude` also works for a rank that is alive: buffers that MPI may still access are kept.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Mapping
from contextlib import suppress

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

_FT_ENABLE = "OMPI_MCA_mpi_ft_enable"
_DEATHS = (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING)
"""Error classes by which MPI reports the death of a rank."""


def survives_deaths() -> bool:
    """Return whether ranks survive the death of one: only with Open MPI, if its launch line enables that.

    No MPI call reports this: if it is not enabled, all return as if no rank had died.
    """
    asked = os.environ.get(_FT_ENABLE, "").lower() in ("1", "true", "yes", "on", "enabled")
    return asked and MPI.get_vendor()[0] == "Open MPI"


class Deaths:
    """The ranks that are lost, since they have failed or were excluded.

    `comm` returns the communicator, of `size` ranks; `lose(rank)` is called when a rank is lost.
    """

    def __init__(self, comm: Callable[[], MPI.Intracomm], size: int, lose: Callable[[int], None]) -> None:
        self.survives = survives_deaths()
        self.lost: set[int] = set()
        """Ranks to which nothing is sent any more."""
        self.ignored: NDArray[np.uint8] = np.zeros(size, np.uint8)
        """By rank, read by kernels: it was excluded, or died within a message, and nothing more is received from it."""
        self.abandoned: list[tuple[MPI.Request, object]] = []
        """Requests to and from lost ranks, with the buffers that MPI may still access."""
        self._comm, self._lose = comm, lose
        self._news: list[int] = []
        self._acknowledged = 0
        # Descriptors of watched processes (pidfd): their ranks.
        self._watched: dict[int, int] = {}
        self._ends = select.poll()

    def watch(self, pids: Mapping[int, int]) -> None:
        """Watch these processes of this host, by rank, and no others."""
        for handle in self._watched:
            self._ends.unregister(handle)
            os.close(handle)
        self._watched.clear()
        for rank, pid in pids.items():
            # Only Linux has pidfd_open; a process that is gone already is found by its heartbeats.
            with suppress(OSError, AttributeError):
                handle = os.pidfd_open(pid)
                self._watched[handle] = rank
                self._ends.register(handle, select.POLLIN)

    def failed(self) -> list[int]:
        """Return the ranks whose death was detected since the last call, without those excluded before."""
        if self.survives:
            self._look()
        for handle, _ in self._ends.poll(0) if self._watched else ():
            self._fail(self._watched.pop(handle))
            self._ends.unregister(handle)
            os.close(handle)
        news, self._news = self._news, []
        return news

    def exclude(self, rank: int) -> None:
        """Lose a rank, dead or alive."""
        self.ignored[rank] = True
        self.lost.add(rank)
        self._lose(rank)
        self._news = [each for each in self._news if each != rank]

    def note(self, error: MPI.Exception, rank: int | None = None, incomplete: bool = False) -> None:
        """Record the death that made a call concerning `rank`, or any rank, fail; re-raise all other errors.

        `incomplete`: a message from it is incomplete, so that bodies without a frame may follow; nothing more is
        received from that rank.
        """
        if not self.survives or error.Get_error_class() not in _DEATHS:
            raise error
        if rank is not None:
            if incomplete:
                self.ignored[rank] = True
            self._fail(rank)
        self._look()

    def _look(self) -> None:
        """Ask MPI for failed ranks, and acknowledge them: otherwise each probe with MPI_ANY_SOURCE fails again."""
        comm = self._comm()
        group = comm.Get_failed()
        count = group.Get_size()
        if not count:
            return
        if count > self._acknowledged:
            everyone = comm.Get_group()
            for rank in group.Translate_ranks(range(count), everyone):
                self._fail(rank)
            everyone.Free()
            self._acknowledged = comm.Ack_failed(count)
        group.Free()

    def _fail(self, rank: int) -> None:
        if rank not in self.lost:
            self.lost.add(rank)
            self._lose(rank)
            self._news.append(rank)

    def clear(self) -> None:
        """Free the buffers of lost ranks that MPI no longer uses."""
        if self.abandoned:
            self.abandoned = [each for each in self.abandoned if not over(each[0])]


def over(request: MPI.Request) -> bool:
    """Return whether a request has completed, or failed since a rank has died."""
    try:
        return request.Test()
    except MPI.Exception as error:
        if error.Get_error_class() not in _DEATHS:
            raise
        return True
