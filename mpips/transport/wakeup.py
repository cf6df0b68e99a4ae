"""Wakeups between ranks on one host: the sender of a message wakes a receiver that sleeps.

MPI cannot sleep until a message arrives. A rank that polls every millisecond receives a message up to 1 ms late and, on
a virtual machine, where a sleep costs 30 microseconds of processor time, takes more than 3 % of a core. So the ranks of
a host share a memory page with a flag for each: "asleep". After a send, the sender reads the receiver's flag, which
takes 20 ns; if it is set, the sender clears it and sends a datagram to the Unix socket on which the receiver waits. To
sleep, a rank sets its flag, polls once more, and then waits: the poll finds a message that was sent before the flag was
seen. A flag that is seen too late costs one sleep, and sleeps are short (`mpips.transport.backoff`).

Wakeups exist only where all ranks of a run are on one host: otherwise a rank would have to poll for those on other
hosts. They change latency only. The datagram is a token from the end of the page, which other users cannot read, so
that their datagrams wake no rank (`mpips.transport.socket_filter`).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import socket
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpips.process.host import machine
from mpips.transport import socket_filter

if TYPE_CHECKING:
    from mpi4py import MPI

# The largest number of datagrams that are read at once.
_DATAGRAMS = 64
_APART = 64
"""Bytes between two flags: each has a cache line of its own."""
# The number of cores of a host that are distinguished.
_CORES = 1024
# Offsets of the cores and of the path in a descriptor, and its size (bytes).
_HOST = 8
_PATH = _HOST + _CORES // 8
_DESCRIPTOR = 512


class Wakeup:
    """One rank's end: the flags of all ranks, and the socket on which it waits. `asleep[rank]`: the rank must be woken.

    `asleep` is for Python, which reads an entry in 20 ns; `flags`, u1[ranks], strided, is the same memory for kernels.
    """

    def __init__(
        self, rank: int, flags: memoryview, endpoint: socket.socket, name: str, token: bytes
    ) -> None:
        self.asleep = flags[::_APART]
        self.flags: NDArray[np.uint8] = np.frombuffer(flags, np.uint8)[::_APART]
        self._rank, self._socket, self._name, self._token = rank, endpoint, name, token
        self._poll = select.poll()
        self._poll.register(endpoint, select.POLLIN)

    def arm(self) -> None:
        """Tell senders that this rank is about to sleep."""
        self.asleep[self._rank] = 1

    def disarm(self) -> None:
        """Tell senders that this rank polls."""
        self.asleep[self._rank] = 0

    def sleep(self, seconds: float) -> None:
        """Sleep until a sender wakes this rank, at most `seconds`, in whole milliseconds; stay armed."""
        if self._poll.poll(1e3 * seconds):
            with contextlib.suppress(OSError):
                for _ in range(_DATAGRAMS):
                    self._socket.recv(1)
            self.arm()

    def wake(self, rank: int) -> None:
        """Wake a rank that sleeps, and clear its flag, so that the next sender does not wake it again."""
        self.asleep[rank] = 0
        # The rank has died, or hangs and its socket buffer is full.
        with contextlib.suppress(OSError):
            self._socket.sendto(self._token, _address(self._name, rank))

    def close(self) -> None:
        """Stop waking and being woken; idempotent."""
        if self._socket.fileno() >= 0:
            self.disarm()
            self._socket.close()


def _address(name: str, rank: int) -> str:
    """Return the socket's address, an abstract name, which leaves no file."""
    return f"\0mpips-{name}-{rank}"


def connect(world: MPI.Intracomm) -> tuple[Wakeup | None, bool]:
    """Return this rank's wakeup, and whether ranks outnumber cores on this host: collective.

    No rank has a wakeup if the ranks are not all on one host, or it has no such sockets.
    """
    rank, size = world.Get_rank(), world.Get_size()
    path = _create_flags_file(size) if rank == 0 else ""
    descriptors = np.empty((size, _DESCRIPTOR), np.uint8)
    world.Allgather(_descriptor(machine(), os.sched_getaffinity(0), path), descriptors)
    path, one_host = _shared(descriptors)
    wakeup = _open(rank, size, path) if path and one_host else None
    opened = np.empty(size, np.uint8)
    world.Allgather(np.array([wakeup is not None], np.uint8), opened)
    if rank == 0 and path:
        Path(path).unlink(missing_ok=True)
    if wakeup is not None and not opened.all():
        wakeup.close()
        wakeup = None
    return wakeup, is_oversubscribed(descriptors, rank)


def _descriptor(host: bytes, cores: Iterable[int], path: str) -> NDArray[np.uint8]:
    """Return a rank's host, the cores that it may run on, and the path of the file of flags: u1[_DESCRIPTOR]."""
    descriptor, bits = np.zeros(_DESCRIPTOR, np.uint8), np.zeros(_CORES, np.uint8)
    bits[[core for core in cores if core < _CORES]] = 1
    raw = host + np.packbits(bits).tobytes() + os.fsencode(path)
    descriptor[: len(raw)] = np.frombuffer(raw, np.uint8)
    return descriptor


def _shared(descriptors: NDArray[np.uint8]) -> tuple[str, bool]:
    """Return the path of the file of flags, from rank 0's descriptor, and whether all ranks are on one host."""
    path = os.fsdecode(descriptors[0, _PATH:].tobytes().rstrip(b"\0"))
    return path, bool((descriptors[:, :_HOST] == descriptors[0, :_HOST]).all())


def is_oversubscribed(descriptors: NDArray[np.uint8], rank: int) -> bool:
    """Return whether there are more ranks on this rank's host than cores that they may run on."""
    here = descriptors[(descriptors[:, :_HOST] == descriptors[rank, :_HOST]).all(axis=1), _HOST:_PATH]
    return len(here) > int(np.unpackbits(np.bitwise_or.reduce(here)).sum())


def _create_flags_file(size: int) -> str:
    """Create the file of flags, in memory if possible; return its path, "" if it cannot be created."""
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    try:
        handle, path = tempfile.mkstemp(prefix="mpips-wakeup-", dir=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(bytes(_APART * size) + socket_filter.token())
    except OSError:
        return ""
    return path if len(os.fsencode(path)) <= _DESCRIPTOR - _PATH else ""


def _open(rank: int, size: int, path: str) -> Wakeup | None:
    """Open this rank's wakeup; None if that is not possible."""
    name = Path(path).name
    try:
        endpoint = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    except (OSError, AttributeError):
        return None
    try:
        endpoint.setblocking(False)
        with open(path, "r+b") as file:
            shared = memoryview(mmap.mmap(file.fileno(), _APART * size + socket_filter.TOKEN_BYTES))
        flags, token = shared[: _APART * size], bytes(shared[_APART * size :])
        socket_filter.attach(endpoint, token, len(token))
        endpoint.bind(_address(name, rank))
        return Wakeup(rank, flags, endpoint, name, token)
    except (OSError, ValueError):
        endpoint.close()
        return None
