"""Calls MPI's C functions from compiled kernels, without Python.

mpi4py has loaded an MPI library; its functions are found by name, and `call` calls one at its address with 64-bit
arguments. So kernels are compiled without MPI, and a cached kernel works with every MPI. A `library` table holds what
differs between MPIs: the values of handles (integers or pointers), and the offset of the source in a status.

Arguments that C declares as 32-bit ints are passed as 64-bit ints: every calling convention that numba supports on
64-bit machines passes either in a register of its own, of which the callee reads the lower half. Requests and messages
occupy eight zeroed bytes each, which hold a handle of either size on a little-endian machine.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from mpips.jit.deferred import Deferred
from mpips.jit.kernel import kernel

NAMES = (
    "MPI_Improbe",
    "MPI_Imrecv",
    "MPI_Isend",
    "MPI_Irecv",
    "MPI_Test",
    "MPI_Get_count",
)
STATUS_BYTES = 64
_MARK = 0x1234567


# A function by its address, and a tuple of int64; returns its int.
call: Any = Deferred("mpips.transport.mpi.abi_intrinsics", "call")
# A function by its address, and the address of its words (`mpips.jit.kernel_call`); returns its int.
call_words: Any = Deferred("mpips.transport.mpi.abi_intrinsics", "call_words")
# A pointer to numbers of the type of `like`.
_pointer: Any = Deferred("mpips.transport.mpi.abi_intrinsics", "pointer")
_view: Any = Deferred("numba", "carray")


@kernel()
def at(address: int, count: int, like: Any) -> Any:
    """View `count` numbers of the type of `like` at an address, as an array."""
    return _view(_pointer(address, like), (count,))


@kernel()
def table(address: int, rows: int, columns: int, like: Any) -> Any:
    """View rows of numbers of the type of `like` at an address, as an array."""
    return _view(_pointer(address, like), (rows, columns))


def library(comm: MPI.Intracomm) -> NDArray[np.int64] | None:
    """Return the table for kernels that use `comm`, i8[14] (`mpips.transport.mpi.memory`).

    None if this MPI's functions are not found, or NUMBA_DISABLE_JIT is set: then Python handles all messages.
    """
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return None
    if sys.byteorder != "little" or sys.maxsize < 2**32 or not isinstance(comm, MPI.Comm):
        return None
    try:
        loaded = ctypes.CDLL(MPI.__file__)
        addresses = [ctypes.cast(getattr(loaded, name), ctypes.c_void_p).value for name in NAMES]
    except (OSError, AttributeError):
        return None
    system = ctypes.CDLL(None)
    for name in ("sched_yield", "memcpy", "process_vm_writev"):
        function = getattr(system, name, None)
        addresses.append(0 if function is None else ctypes.cast(function, ctypes.c_void_p).value)
    status = MPI.Status()
    status.Set_source(_MARK)
    size = MPI._sizeof(MPI.Status)
    raw = (ctypes.c_char * size).from_address(MPI._addressof(status)).raw
    place = raw.find(_MARK.to_bytes(4, "little"))
    if size > STATUS_BYTES or place < 0 or place % 4:
        return None
    try:
        yields = ctypes.addressof(ctypes.c_bool.in_dll(loaded, "opal_progress_yield_when_idle"))
    except ValueError:
        yields = 0
    words = [*addresses, comm.handle, MPI.BYTE.handle, MPI.ANY_SOURCE % 2**64, place, yields]
    # A handle may be above 2**63.
    return np.array(words, np.uint64).view(np.int64)
