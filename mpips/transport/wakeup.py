"""Wakes ranks on the same host: whoever sends a message to a rank that sleeps, rings.

MPI has no way to sleep until something comes. A rank that looks every millisecond takes up to one to hear a message,
and on a virtual machine, where a sleep costs 30 microseconds of processor time, more than three per cent of a core. So
the ranks of a host share a page with a flag for each: "asleep, ring for me". A sender reads the flag of the one it has
sent to, which takes 20 nanoseconds; if it is set, it clears it and sends a datagram to that rank's Unix socket, where
the rank waits. To sleep, a rank sets its flag, looks again, and then waits: a message that was sent before the flag
was seen is found by the look. A flag seen too late costs one sleep, and those are short (`mpips.transport.backoff`).

There are bells only where all ranks of a run can ring for each other, that is on one host: else a rank would have to
look by itself for those who cannot. Nothing but time depends on them. What rings is a token that stands at the end of
the page, which nobody else can read: datagrams of others wake nobody (`mpips.transport.socket_filter`).
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

_RINGS = 64  # that are taken at once
_APART = 64
"""Bytes between two flags: whoever reads one is not slowed down by who writes the next."""
_CORES = 1024  # of a host that are told apart
_HOST = 8  # bytes of a letter up to where its cores begin
_PATH = _HOST + _CORES // 8  # and its path
_LETTER = 512


class Wakeup:
    """One rank's wakeup: a flag for each rank, and a socket to wait at. `asleep[rank]` tells who is to be rung for.

    `asleep` is for Python, which reads one of them in 20 ns; `flags`, u1[ranks], strided, is the same for kernels.
    """

    def __init__(self, rank: int, flags: memoryview, mail: socket.socket, name: str, token: bytes) -> None:
        self.asleep = flags[::_APART]
        self.flags: NDArray[np.uint8] = np.frombuffer(flags, np.uint8)[::_APART]
        self._rank, self._mail, self._name, self._token = rank, mail, name, token
        self._poll = select.poll()
        self._poll.register(mail, select.POLLIN)

    def arm(self) -> None:
        """Let others know that this rank is about to sleep."""
        self.asleep[self._rank] = 1

    def disarm(self) -> None:
        """Let them know that it looks by itself."""
        self.asleep[self._rank] = 0

    def sleep(self, seconds: float) -> None:
        """Sleep until somebody rings, or for so long, in whole milliseconds; still armed then."""
        if self._poll.poll(1e3 * seconds):
            with contextlib.suppress(OSError):
                for _ in range(_RINGS):
                    self._mail.recv(1)
            self.arm()

    def wake(self, rank: int) -> None:
        """Wake a rank that is asleep; whoever sends to it next need not do so again."""
        self.asleep[rank] = 0
        with contextlib.suppress(OSError):  # it has died, or hangs with its mail unread
            self._mail.sendto(self._token, _place(self._name, rank))

    def close(self) -> None:
        """Neither ring nor be rung for any more; idempotent."""
        if self._mail.fileno() >= 0:
            self.disarm()
            self._mail.close()


def _place(name: str, rank: int) -> str:
    """Give the socket's address: Linux's abstract names leave no file behind."""
    return f"\0mpips-{name}-{rank}"


def connect(world: MPI.Intracomm) -> tuple[Wakeup | None, bool]:
    """Make the bells of a run, and tell whether ranks outnumber cores on this host: collective.

    There is no wakeup on any rank if they are not all on one host, or it has no such sockets.
    """
    rank, size = world.Get_rank(), world.Get_size()
    path = _page(size) if rank == 0 else ""
    mine, everyone = _letter(machine(), os.sched_getaffinity(0), path), np.empty((size, _LETTER), np.uint8)
    world.Allgather(mine, everyone)
    path, one_host = _shared(everyone)
    wakeup = _open(rank, size, path) if path and one_host else None
    hung, least = np.array([wakeup is not None], np.uint8), np.empty(size, np.uint8)
    world.Allgather(hung, least)
    if rank == 0 and path:
        Path(path).unlink(missing_ok=True)
    if wakeup is not None and not least.all():
        wakeup.close()
        wakeup = None
    return wakeup, outnumbered(everyone, rank)


def _letter(host: bytes, cores: Iterable[int], path: str) -> NDArray[np.uint8]:
    """Write down a rank's host, the cores that it may run on, and the path of the page: u1[_LETTER]."""
    letter, bits = np.zeros(_LETTER, np.uint8), np.zeros(_CORES, np.uint8)
    bits[[core for core in cores if core < _CORES]] = 1
    raw = host + np.packbits(bits).tobytes() + os.fsencode(path)
    letter[: len(raw)] = np.frombuffer(raw, np.uint8)
    return letter


def _shared(letters: NDArray[np.uint8]) -> tuple[str, bool]:
    """Read the path of the page, which is rank 0's, and whether all ranks are on one host."""
    path = os.fsdecode(letters[0, _PATH:].tobytes().rstrip(b"\0"))
    return path, bool((letters[:, :_HOST] == letters[0, :_HOST]).all())


def outnumbered(letters: NDArray[np.uint8], rank: int) -> bool:
    """Tell whether the ranks on this rank's host are more than the cores that any of them may run on."""
    here = letters[(letters[:, :_HOST] == letters[rank, :_HOST]).all(axis=1), _HOST:_PATH]
    return len(here) > int(np.unpackbits(np.bitwise_or.reduce(here)).sum())


def _page(size: int) -> str:
    """Make the file of flags, in memory if there is such a folder; its path, or nothing if there can be none."""
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    try:
        handle, path = tempfile.mkstemp(prefix="mpips-wakeup-", dir=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(bytes(_APART * size) + socket_filter.token())
    except OSError:
        return ""
    return path if len(os.fsencode(path)) <= _LETTER - _PATH else ""


def _open(rank: int, size: int, path: str) -> Wakeup | None:
    """Take one's own wakeup, or None where that is not possible."""
    name = Path(path).name
    try:
        mail = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    except (OSError, AttributeError):
        return None
    try:
        mail.setblocking(False)
        with open(path, "r+b") as file:
            page = memoryview(mmap.mmap(file.fileno(), _APART * size + socket_filter.TOKEN_BYTES))
        flags, token = page[: _APART * size], bytes(page[_APART * size :])
        socket_filter.put(mail, token, len(token))
        mail.bind(_place(name, rank))
        return Wakeup(rank, flags, mail, name, token)
    except (OSError, ValueError):
        mail.close()
        return None
