"""Calls of a program's update by kernels: the update of one segment, as a C function, or as a kernel.

The kernels of the server's fast path receive, check and sum rows. They call the update by its address, with the
addresses of these rows and of their slots, and copy its answer from where it tells them. An update that is a kernel
they call with its own arguments, without Python; it has no answer but the values.

An update that raises may have changed some rows, so it must not be called again for them. Kernels then do nothing more,
and give the push, or the round, to Python, where its error is raised instead of a second call (`take_error`).
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from mpips.jit.kernel_call import KernelCall
from mpips.storage.segment import Array, Segment, Slots
from mpips.storage.updates import numbers_of
from mpips.transport.message import CODES

_Function = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_int64] * 7)
_FIRST = 1
_MEMORY: Any = (ctypes.c_char * 2**62).from_address(_FIRST)
"""All memory, from which arrays are made by address; numpy takes an address of 0 for no memory."""
_SLOT = np.dtype(np.int32)


class KernelUpdate:
    """The update of a segment, a kernel, as kernels call it: `address` is that of the words of a call."""

    answer_bytes = 0

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        # The slots and rows vary: they follow the values and state.
        self._call = KernelCall(segment.update.kernel, 1 + len(segment.state))
        self._numbers = np.zeros(0)
        self.address = self._call.words.ctypes.data

    @staticmethod
    def fits(segment: Segment) -> bool:
        """Return whether the update of a segment is a kernel whose answers kernels can give."""
        update = segment.update
        return update.kernel is not None and (update.read is None or not segment.spec.aggregate)

    def prepare(self) -> bool:
        """Write down where the values, state and settings are; return whether the kernel takes such arguments."""
        segment = self._segment
        self._numbers = numbers_of(segment.update, segment.settings)
        rows = np.empty((1, segment.push_row.width), segment.push_row.dtype)
        state = segment.state.values()
        return self._call.prepare([segment.values, *state, np.empty(1, _SLOT), rows, self._numbers])

    def take_error(self) -> BaseException | None:
        """Return, once, the error of the last call."""
        return self._call.take_error()


class UpdateCall:
    """The update of a segment as a C function; see the module.

    Its arguments are all int64: the address, number and width of the rows; the first slot of a run, and the address of
    their slots (0: the run); whether an answer is wanted; and where to describe it: address (0: the values), wire type
    and width, int64 each. The answer stays where it is until the next call. The function returns 0, or 1 if the update
    has raised.
    """

    def __init__(self, segment: Segment) -> None:
        self._segment, self._pushed = segment, np.dtype(segment.push_row.dtype)
        self._function = _Function(self._call)
        self.address = ctypes.cast(self._function, ctypes.c_void_p).value or 0
        self._error: BaseException | None = None
        self._answer: Array | None = None
        self.answer_bytes = 0
        """Bytes of the widest row of an answer so far."""

    def take_error(self) -> BaseException | None:
        """Return, once, the error of the last call."""
        error, self._error = self._error, None
        return error

    def _call(self, rows: int, count: int, width: int, first: int, slots: int, wants: int, about: int) -> int:
        self._error = None
        try:
            given: Array = np.ndarray((count, width), self._pushed, _MEMORY, rows - _FIRST)
            where: Slots = (
                np.ndarray((count,), _SLOT, _MEMORY, slots - _FIRST) if slots else slice(first, first + count)
            )
            answer = self._segment.apply(where, given)
            if wants:
                self._describe(answer, where, given, about)
        except BaseException as error:
            self._error = error
            return 1
        return 0

    def _describe(self, answer: Array | None, slots: Slots, given: Array, about: int) -> None:
        """Write down where the answer is."""
        segment = self._segment
        if answer is None and segment.update.read is not None:
            answer = segment.pull_slots(slots)
        address, dtype, width = 0, segment.values.dtype, segment.spec.width
        if answer is not None:
            answer = segment.checked(answer, len(given), "the function")
            dtype, width = answer.dtype, 1 if answer.ndim < 2 else answer.shape[1]
            # Kernels write the answers where the rows have been.
            shares = np.may_share_memory(answer, given)
            self._answer = answer.copy() if shares else np.ascontiguousarray(answer)
            address = self._answer.ctypes.data
        self.answer_bytes = max(self.answer_bytes, width * dtype.itemsize)
        np.ndarray((3,), np.int64, _MEMORY, about - _FIRST)[:] = address, CODES[dtype], width
