"""ProcessMemory: a server writes pulled values straight into the memory of a worker on the same host.

MPI has the receiver copy what comes, so a worker that computes meanwhile pays for every byte that it has asked for.
Linux lets a process write into another one of the same user (process_vm_writev): the server's core does all of the
work, and the values are copied once instead of twice.

Only memory that is nobody else's is written to: a pull without `out` is given a room
(`mpips.transport.buffer_pool`), and if its answer is no longer wanted from there, because the server has hung, that
room is never used again. A server that wakes up and goes on where it was stopped so writes to where nobody looks.

Ranks show each other a secret at an address. Whoever can read it there is on the same host, and is allowed to.

Where Yama is at work, a process says who besides its ancestors may do so: one process, and all below it. That is the
nearest process above all ranks of the host, the launcher's or its daemon's. Where there is none but the first process
of the machine, above which everything is, nobody is allowed to, and values travel in messages.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpips.process.host import machine

if TYPE_CHECKING:
    from mpi4py import MPI

_SECRET = 16
_HOST = 8
_ABOVE = 32  # processes above a rank that are looked at
_CARD = np.dtype(
    [
        ("pid", "<i8"),
        ("address", "<i8"),
        ("secret", "u1", _SECRET),
        ("host", "u1", _HOST),
        ("above", "<i8", _ABOVE),
    ]
)
_SET_PTRACER = 0x59616D61  # linux/prctl.h


class ProcessMemory:
    """Whom a rank reaches: `pids` i8[ranks], 0 for who is elsewhere or is not to be touched."""

    def __init__(self, pids: NDArray[np.int64], secret: NDArray[np.uint8]) -> None:
        self.pids, self._secret = pids, secret  # others may still be reading it

    def has(self, rank: int) -> bool:
        """Tell whether a rank is reached."""
        return bool(self.pids[rank])


def discover(world: MPI.Intracomm) -> ProcessMemory:
    """Find out who reaches whom: collective."""
    size = world.Get_size()
    secret = np.frombuffer(bytearray(secrets.token_bytes(_SECRET)), np.uint8)
    system = ctypes.CDLL(None, use_errno=True)
    card = np.zeros(1, _CARD)
    card["pid"], card["address"], card["secret"] = os.getpid(), secret.ctypes.data, secret
    card["host"], above = _host(), _above(os.getpid())
    card["above"][0, : len(above)] = above
    cards = np.zeros(size, _CARD)
    world.Allgather(card.view(np.uint8), cards.view(np.uint8))
    here = cards["above"][(cards["host"] == card["host"]).all(axis=1)]
    launcher = common(above, here.tolist())
    if launcher and len(here) > 1 and hasattr(system, "prctl"):
        system.prctl(_SET_PTRACER, ctypes.c_ulong(launcher), 0, 0, 0)
    world.Barrier()  # until all have said so
    read = getattr(system, "process_vm_readv", None)
    reached = [read is not None and _is_there(read, each) for each in cards]
    return ProcessMemory(np.where(reached, cards["pid"], 0).astype(np.int64), secret)


def _host() -> NDArray[np.uint8]:
    """Give what is the same for processes that number processes alike: u1[8]."""
    parts = [machine()]
    with suppress(OSError):
        parts.append(os.readlink(b"/proc/self/ns/pid"))
    return np.frombuffer(hashlib.blake2b(b"\0".join(parts), digest_size=_HOST).digest(), np.uint8)


def _above(pid: int) -> list[int]:
    """List the processes above one, the nearest first; the first process of the machine, which is above all, is not."""
    found: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        while len(found) < _ABOVE:
            pid = int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            if pid <= 1:
                break
            found.append(pid)
    return found


def common(above: Sequence[int], all_above: Sequence[Sequence[int]]) -> int:
    """Give the nearest of the processes above a rank that is above all ranks; 0 if there is none."""
    return next((pid for pid in above if all(pid in each for each in all_above)), 0)


def _is_there(read: Any, card: Any) -> bool:
    """Tell whether the secret of a card can be read where the card says that it stands."""
    found = np.zeros(_SECRET, np.uint8)
    here = (ctypes.c_size_t * 2)(found.ctypes.data, _SECRET)
    there = (ctypes.c_size_t * 2)(int(card["address"]), _SECRET)
    read.restype = ctypes.c_ssize_t
    got = read(
        ctypes.c_int(int(card["pid"])), here, ctypes.c_ulong(1), there, ctypes.c_ulong(1), ctypes.c_ulong(0)
    )
    return bool(got == _SECRET) and bool((found == card["secret"]).all())
