"""Server fast path: what is recorded of each caller's finished requests, and which answered ranks have to be woken."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpips.jit.kernel import kernel
from mpips.transport.fastpath.table import (
    ACKED,
    ASLEEP_AT,
    ASLEEP_STEP,
    HIGHEST,
    NOTED,
    SLEEPERS_AT,
    TIMES,
    WINDOW,
)
from mpips.transport.mpi.abi import at
from mpips.transport.mpi.memory import SLEEPERS

_INT4, _UINT1 = np.int32(0), np.uint8(0)


@kernel()
def note(caller: Any, time: int, acked: int, pushed: bool) -> None:
    """Record that a request is finished; where no entry is free, those that the caller has acknowledged are dropped."""
    if acked > caller[ACKED]:
        caller[ACKED] = acked
    noted = caller[NOTED]
    if noted == WINDOW:
        kept = 0
        for i in range(WINDOW):
            if caller[TIMES + i] >> 1 >= caller[ACKED]:
                caller[TIMES + kept] = caller[TIMES + i]
                kept += 1
        noted = kept
    caller[TIMES + noted] = 2 * time + (1 if pushed else 0)
    caller[NOTED] = noted + 1
    caller[HIGHEST] = max(time, caller[HIGHEST])


@kernel()
def has_room(caller: Any, acked: int) -> bool:
    """Return whether one more time can be recorded."""
    if caller[NOTED] < WINDOW:
        return True
    acked = max(acked, caller[ACKED])
    for i in range(WINDOW):  # noqa: SIM110 (a kernel)
        if caller[TIMES + i] >> 1 < acked:
            return True
    return False


@kernel()
def wake_later(memory: Any, rank: int) -> None:
    """List a rank to which a message was sent among those to be woken, if it sleeps."""
    if at(memory[ASLEEP_AT] + memory[ASLEEP_STEP] * rank, 1, _UINT1)[0] == 0:
        return
    sleepers = at(memory[SLEEPERS_AT], memory[SLEEPERS] + 1, _INT4)
    for i in range(memory[SLEEPERS]):
        if sleepers[i] == rank:
            return
    sleepers[memory[SLEEPERS]] = rank
    memory[SLEEPERS] += 1
