"""Reach: a server writes pulled values straight into the memory of a worker on the same host.

MPI has the receiver copy what comes, so a worker that computes meanwhile pays for every byte that it has asked for.
Linux lets a process write into another one of the same user (process_vm_writev): the server's core does all of the
work, and the values are copied once instead of twice.

Only memory that is nobody else's is written to: a pull without `out` is given a room (`mpips.rooms`), and if its answer
is no longer wanted from there, because the server has hung, that room is never used again. A server that wakes up and
goes on where it was stopped so writes to where nobody looks.

Ranks show each other a secret at an address. Whoever can read it there is on the same host, and is allowed to.
"""

from __future__ import annotations

import ctypes
import os
import secrets
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mpi4py import MPI

_SECRET = 16
_CARD = np.dtype([("pid", "<i8"), ("address", "<i8"), ("secret", "u1", _SECRET)])
_SET_PTRACER = 0x59616D61  # linux/prctl.h; where Yama is at work, a process says who may reach it
_ANYBODY = -1


class Reach:
    """Whom a rank reaches: `pids` i8[ranks], 0 for who is elsewhere or is not to be touched."""

    def __init__(self, pids: NDArray[np.int64], secret: NDArray[np.uint8]) -> None:
        self.pids, self._secret = pids, secret  # others may still be reading it

    def has(self, rank: int) -> bool:
        """Tell whether a rank is reached."""
        return bool(self.pids[rank])


def meet(world: MPI.Intracomm) -> Reach:
    """Find out who reaches whom: collective."""
    size = world.Get_size()
    secret = np.frombuffer(bytearray(secrets.token_bytes(_SECRET)), np.uint8)
    system = ctypes.CDLL(None, use_errno=True)
    if hasattr(system, "prctl"):
        system.prctl(_SET_PTRACER, ctypes.c_ulong(_ANYBODY), 0, 0, 0)
    card = np.zeros(1, _CARD)
    card["pid"], card["address"], card["secret"] = os.getpid(), secret.ctypes.data, secret
    cards = np.zeros(size, _CARD)
    world.Allgather(card.view(np.uint8), cards.view(np.uint8))
    read = getattr(system, "process_vm_readv", None)
    reached = [read is not None and _is_there(read, each) for each in cards]
    return Reach(np.where(reached, cards["pid"], 0).astype(np.int64), secret)


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
