"""Cross-process memory: a server writes pulled values directly into the memory of a worker on the same host.

With MPI, the receiver copies the data, which takes processor time from a worker that computes meanwhile. On Linux a
process can write into another one of the same user (process_vm_writev): the server's core does the work, and the values
are copied once instead of twice.

A server writes only to buffers that have no other use: a pull without `out` gets a buffer of the pool
(`mpips.transport.buffer_pool`). If its answer is no longer wanted, because the server hangs, that buffer is never used
again, so that a late write of the server is harmless.

Each rank publishes the address of a secret. A rank that can read another one's secret is on the same host and has the
permission. Under Yama, a process can grant it, besides its ancestors, to one process and its descendants:
it is granted to the nearest common ancestor of all ranks of the host, the launcher or its daemon. If their only common
ancestor is init (process 1), it is granted to none, and values are sent in messages.
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
# Largest number of ancestors of a rank that are considered.
_MOST_ANCESTORS = 32
_DESCRIPTOR = np.dtype(
    [
        ("pid", "<i8"),
        ("address", "<i8"),
        ("secret", "u1", _SECRET),
        ("host", "u1", _HOST),
        ("ancestors", "<i8", _MOST_ANCESTORS),
    ]
)
# linux/prctl.h
_SET_PTRACER = 0x59616D61


class ProcessMemory:
    """The ranks whose memory a rank can write to: `pids` i8[ranks], 0 for all others."""

    def __init__(self, pids: NDArray[np.int64], secret: NDArray[np.uint8]) -> None:
        # The secret is kept, since other ranks may still read it.
        self.pids, self._secret = pids, secret

    def has(self, rank: int) -> bool:
        """Return whether a rank's memory can be written to."""
        return bool(self.pids[rank])


def discover(world: MPI.Intracomm) -> ProcessMemory:
    """Find the ranks whose memory this rank can write to: collective."""
    size = world.Get_size()
    secret = np.frombuffer(bytearray(secrets.token_bytes(_SECRET)), np.uint8)
    system = ctypes.CDLL(None, use_errno=True)
    descriptor = np.zeros(1, _DESCRIPTOR)
    descriptor["pid"], descriptor["address"], descriptor["secret"] = os.getpid(), secret.ctypes.data, secret
    descriptor["host"], ancestors = _host(), _ancestors(os.getpid())
    descriptor["ancestors"][0, : len(ancestors)] = ancestors
    descriptors = np.zeros(size, _DESCRIPTOR)
    world.Allgather(descriptor.view(np.uint8), descriptors.view(np.uint8))
    here = descriptors["ancestors"][(descriptors["host"] == descriptor["host"]).all(axis=1)]
    launcher = common(ancestors, here.tolist())
    if launcher and len(here) > 1 and hasattr(system, "prctl"):
        system.prctl(_SET_PTRACER, ctypes.c_ulong(launcher), 0, 0, 0)
    # All ranks have granted the permission after this.
    world.Barrier()
    read = getattr(system, "process_vm_readv", None)
    reached = [read is not None and _has_secret(read, each) for each in descriptors]
    return ProcessMemory(np.where(reached, descriptors["pid"], 0).astype(np.int64), secret)


def _host() -> NDArray[np.uint8]:
    """Return a hash u1[8] of the machine and its process id namespace."""
    parts = [machine()]
    with suppress(OSError):
        parts.append(os.readlink(b"/proc/self/ns/pid"))
    return np.frombuffer(hashlib.blake2b(b"\0".join(parts), digest_size=_HOST).digest(), np.uint8)


def _ancestors(pid: int) -> list[int]:
    """List the ancestors of a process, the nearest first, without init (process 1)."""
    found: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        while len(found) < _MOST_ANCESTORS:
            pid = int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            if pid <= 1:
                break
            found.append(pid)
    return found


def common(ancestors: Sequence[int], all_ancestors: Sequence[Sequence[int]]) -> int:
    """Return the nearest of a rank's ancestors that is an ancestor of all ranks; 0 if there is none."""
    return next((pid for pid in ancestors if all(pid in each for each in all_ancestors)), 0)


def _has_secret(read: Any, descriptor: Any) -> bool:
    """Return whether the secret of a descriptor can be read at the descriptor's address."""
    found = np.zeros(_SECRET, np.uint8)
    here = (ctypes.c_size_t * 2)(found.ctypes.data, _SECRET)
    there = (ctypes.c_size_t * 2)(int(descriptor["address"]), _SECRET)
    read.restype = ctypes.c_ssize_t
    got = read(
        ctypes.c_int(int(descriptor["pid"])),
        here,
        ctypes.c_ulong(1),
        there,
        ctypes.c_ulong(1),
        ctypes.c_ulong(0),
    )
    return bool(got == _SECRET) and bool((found == descriptor["secret"]).all())
