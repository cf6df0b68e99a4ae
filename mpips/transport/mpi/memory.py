"""The memory of a fast path, i8[n]: numbers and addresses by which its kernels and Python share their state.

It begins with a library's table (`mpips.transport.mpi.abi`), and numbers and addresses that all kernels need. What
follows from MEMORY on is the client's (`mpips.transport.fastpath.client`) or the server's
(`mpips.transport.fastpath.rounds`, `mpips.transport.fastpath.table`). Kernels take it as one argument.
"""

from __future__ import annotations

from mpips.transport.key_cache import USED

IMPROBE, IMRECV, ISEND, IRECV, TEST, GET_COUNT, YIELD, MEMCPY, WRITE, COMM, BYTE, ANY, SOURCE, YIELDS = range(
    14
)
"""Indices of a library's table: addresses of functions (the last three are the system's, 0 if missing), handles,
MPI_ANY_SOURCE, the offset of the source in a status (bytes), and the address of the u1 that says whether the MPI itself
yields the core when it finds nothing (0: none)."""
LIBRARY = YIELDS + 1

(
    FLAG,
    MESSAGE,
    REQUEST,
    SECOND,
    SIZE,
    FROM,
    ERROR,
    SENT,
    POSTED,
    RECEIVED,
    SERVED,
    NEXT,
    WANTED,
    SLEEPERS,
    WANTED_ROOM,
    WANTED_BLOCK,
    PART_AT,
    LATE_ROW,
    LATE_AT,
    IGNORED_AT,
    ANSWER_AT,
    ANSWER_TYPE,
    ANSWER_WIDTH,
    NEW_LIST,
) = range(LIBRARY, LIBRARY + 24)
VECTORS = NEW_LIST + USED
HERE, STATUS, FRAME_AT = range(VECTORS + 4, VECTORS + 7)
MEMORY = FRAME_AT + 1
"""The first five are written by MPI; bytes and frames that were moved, and requests that were answered; where the
search for a free slot begins; the size of a body for which there was no buffer (0: none); how many of the answered
ranks sleep; the size of a change, and of a part of a round, for which there was no memory (0: none); the row of the
part that Python takes; of keys or values that are incomplete, 1 + the row of the change into whose memory they are
received (0: the receive buffer, -1 - n: block n of the rounds), and the address; the address of u1[ranks], the ranks
that are ignored (0: none); address (0: the values), wire type and width of the rows that an update has answered; the
first columns of the row of a list that is to be cached (`mpips.transport.key_cache`; its COUNT is 0: none); two pairs
of address and size, for system calls; and the addresses of the memory itself, of a status, and of the frame buffer."""
