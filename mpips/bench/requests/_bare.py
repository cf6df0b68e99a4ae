"""The limit of a push or pull: the same bytes between the same ranks by mpi4py alone, with a numpy add or copy.

A round of a push: the worker sends values (and keys, if the compared request sends them) to every server; each adds its
part to an existing array and sends one byte back. Of a pull: the worker sends the keys or one byte; each server copies
its part from its array and sends it; the worker receives into its own array.

The messages use MPI.COMM_WORLD, which a run does not use otherwise: the van has its own communicator.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter_ns
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

KEYS, VALUES, REPLY = 1, 2, 3
"""Tags."""
Start = Callable[[], MPI.Request]
"""Starts a send or a receive."""


def send(array: NDArray[Any], rank: int, tag: int) -> Start:
    """Give a function that starts to send a contiguous array."""
    return partial(MPI.COMM_WORLD.Isend, [array.view(np.uint8), MPI.BYTE], rank, tag)


def receive(array: NDArray[Any], rank: int, tag: int) -> Start:
    """Give a function that starts to receive into a contiguous array."""
    return partial(MPI.COMM_WORLD.Irecv, [array.view(np.uint8), MPI.BYTE], rank, tag)


def waits(crowded: bool) -> Callable[[list[MPI.Request]], object]:
    """Give a function that waits for all requests; with more ranks than cores it yields the processor."""
    return _yielding if crowded else MPI.Request.Waitall


def _yielding(requests: list[MPI.Request]) -> None:
    while not MPI.Request.Testall(requests):
        os.sched_yield()


# --- The worker ------------------------------------------------------------------------------------------


def ask(
    servers: Sequence[int],
    cuts: Sequence[int],
    keys: NDArray[np.uint64] | None,
    rows: NDArray[Any],
    out: NDArray[Any] | None,
) -> list[Start]:
    """Give the sends and receives of a worker's round: a pull into `out` if there is one, else a push of `rows`.

    Server i, a rank, has the keys and rows [cuts[i], cuts[i + 1]). Without `keys` none are sent.
    """
    receives, sends = [], []
    for rank, begin, end in zip(servers, cuts[:-1], cuts[1:], strict=True):
        if begin == end:
            continue
        if keys is not None:
            sends.append(send(keys[begin:end], rank, KEYS))
        elif out is not None:
            sends.append(send(np.zeros(1, np.uint8), rank, KEYS))
        if out is None:
            sends.append(send(rows[begin:end], rank, VALUES))
        receives.append(receive(np.zeros(1, np.uint8) if out is None else out[begin:end], rank, REPLY))
    return receives + sends


def rounds(each: Sequence[Sequence[Start]], crowded: bool = False) -> NDArray[np.float64]:
    """Do one round for each of these starts; give the durations (ns)."""
    wait, times = waits(crowded), np.empty(len(each))
    for at, starts in enumerate(each):
        begin = perf_counter_ns()
        wait([start() for start in starts])
        times[at] = perf_counter_ns() - begin
    return times


# --- The server ------------------------------------------------------------------------------------------


class _Peer:
    """The server's state for a worker: `store` has the rows that it pushes to and pulls from."""

    def __init__(self, rank: int, store: NDArray[Any], rounds: int, pulls: bool, listed: bool) -> None:
        self.left = rounds
        self._store, self._pulls, self._rows = store, pulls, np.ones_like(store)
        self._receives: list[Start] = []
        if listed:
            self._receives.append(receive(np.ones(len(store), np.uint64), rank, KEYS))
        elif pulls:
            self._receives.append(receive(np.zeros(1, np.uint8), rank, KEYS))
        if not pulls:
            self._receives.append(receive(self._rows, rank, VALUES))
        self._reply = send(self._rows if pulls else np.zeros(1, np.uint8), rank, REPLY)
        self.requests = [start() for start in self._receives]
        self.sent = MPI.REQUEST_NULL

    def answer(self) -> None:
        """Serve one round, and post the receives of the next one before its sender can start it."""
        if self._pulls:
            self.sent.Wait()  # It has arrived; otherwise the worker would not start another round.
            np.copyto(self._rows, self._store)
        else:
            np.add(self._store, self._rows, self._store)
        self.left -= 1
        if self.left:
            self.requests = [start() for start in self._receives]
        self.sent = self._reply()


def serve(
    peers: Sequence[tuple[int, int]], rounds: int, *, pulls: bool, listed: bool, crowded: bool = False
) -> None:
    """Serve a number of rounds of every worker; `peers` are ranks, and the number of their float32 rows here."""
    store = np.ones(max([0, *(count for _, count in peers)]), np.float32)
    everyone = [_Peer(rank, store[:count], rounds, pulls, listed) for rank, count in peers if count]
    wait = waits(crowded)
    if len(everyone) == 1:
        (peer,) = everyone
        for _ in range(rounds):
            wait(peer.requests)
            peer.answer()
    left = [peer for peer in everyone if peer.left]
    while left:
        ready = [peer for peer in left if MPI.Request.Testall(peer.requests)]
        for peer in ready:
            peer.answer()
        if ready:
            left = [peer for peer in left if peer.left]
        elif crowded:
            os.sched_yield()
    wait([peer.sent for peer in everyone])
