"""The van sends and receives messages between ranks: the interface.

`mpips.transport.mpi.van.MPIVan` implements it over MPI, `mpips.transport.in_memory.TwinVan` in memory. Both pass the
same conformance tests. One thread owns a van.

The guarantees of a van are weak on purpose: a message arrives completely or not at all, in no order, and the twin may
also drop or duplicate it. Order, exactly-once execution and flow control belong to `mpips.tasks.caller`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpips.transport.buffer_pool import BufferPool
from mpips.transport.message import Message

if TYPE_CHECKING:
    # Imported late, since it loads kernels.
    from mpips.transport.fastpath.table import FastPathTable


NO_KEYS, NO_BYTES = np.empty(0, np.uint64), np.empty(0, np.uint8)


class Van(Protocol):
    """Sends and receives messages of one rank."""

    rank: int
    size: int
    receive_buffer: Callable[[Message], NDArray[Any] | None]
    """Returns the array that receives the detached values of a message; None: a new array."""
    fast_path: FastPathTable | None
    """The requests that the van may answer itself; see `mpips.transport.fastpath.table`."""
    compiled: bool
    """Whether the fast paths are in use: they need this MPI's functions."""
    epoch: int
    """The epoch of the requests that the fast path may answer."""
    buffers: BufferPool
    """Buffers for large messages."""

    @property
    def sent_bytes(self) -> int:
        """The bytes that were sent; those of the fast path count from the start of their send."""

    @property
    def sent_messages(self) -> int:
        """The messages that were sent."""

    @property
    def received_bytes(self) -> int:
        """The bytes of the messages that have arrived."""

    @property
    def survives(self) -> bool:
        """Whether the other ranks survive the death of one, and detect it."""

    def send(self, dest: int, message: Message) -> None:
        """Send without blocking. The message's arrays must not be written until it was delivered.

        Messages to a rank that has failed or was excluded are dropped.
        """

    def receive(self) -> Message | None:
        """Return one message that has arrived completely, or None. Makes progress on sends.

        `ANSWER` stands for the answer to a request sent by `ask`; `slot` is its slot.
        """

    slot: int

    def ask(
        self,
        parts: NDArray[np.int64],
        ranks: Sequence[int],
        keys: NDArray[np.uint64],
        rows: NDArray[np.uint8],
        out: NDArray[np.uint8],
        time: int,
        acked: int,
        round: int,
        command: int,
        origin: int,
        namespace: int,
        wire_type: int,
        width: int,
        answer_type: int,
        answer_bytes: int,
        fresh: bool,
    ) -> list[int]:
        """Send a request by the client fast path; return the slots of its parts, -1 for one that was not sent.

        `parts` is a table of them (`mpips.transport.request_parts`), and `ranks` the receivers. Parts without keys are
        sent in a round only, and have no slot otherwise. If no part is sent, the list is empty.

        A push sends `rows`, `width` numbers of a wire type for each key. Rows of answers, of another type and so many
        bytes (0: there are none), are received in `out`. `fresh`: that memory has no other use, so that servers may
        write into it directly. Parts that list their keys send them from `keys`.
        """

    def version(self) -> int:
        """Return after how many changes of its shard the answer at `slot` was read; -1: it answers a change."""

    def withdraw(self, slot: int) -> None:
        """Free a slot: if its answer still arrives, it is received as a message."""

    def idle(self) -> None:
        """Tell the van that its rank has nothing to do: it may yield or sleep."""

    def glance(self) -> None:
        """Let the next `receive` return what has arrived, without polling for an answer that may come soon."""

    def finish_receives(self) -> None:
        """Wait until the messages that are being received, from ranks that are not excluded, are complete.

        Then an old answer cannot overwrite the answer to a request that is sent to another rank afterwards.
        """

    def arriving(self, source: int) -> bool:
        """Return whether a message from a rank is being received: later messages may overtake its end."""

    def unsent(self, dest: int) -> int:
        """Count the bytes of keys and values whose sends to a rank are not complete."""

    def pending(self) -> int:
        """Count the incomplete sends to ranks that are neither known to have failed nor excluded."""

    def failed(self) -> list[int]:
        """Return the ranks whose death was detected since the last call, without those excluded before.

        Messages that had arrived from them may still be received. Raises no error because of other ranks.
        """

    def exclude(self, rank: int) -> None:
        """Exclude a rank, dead or alive: nothing is sent to it or received from it any more. Idempotent."""

    def now(self) -> float:
        """Seconds on this van's clock."""

    def wall(self) -> float:
        """Seconds since the epoch; see `mpips.transport.time_of_day`."""

    def close(self) -> None:
        """Stop sending and receiving; idempotent."""
