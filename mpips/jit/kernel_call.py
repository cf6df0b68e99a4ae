"""Calls of a kernel by others, which know only its address: the words of such a call, in the order of its arguments.

Compiled functions of numba take 64-bit words only, if all their parameters are arrays and they return nothing: where a
result would be written, where to write the address of a description of what is raised, and for each array (0, 0,
elements, bytes of an element, address, shape, strides). They return 0, or a number that tells that they have raised.
The caller removes the words from the stack, so that it may pass more words than the function takes, and one call in
compiled code is enough for any number of arrays (`mpips.transport.mpi.abi.call_words`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.jit.kernel_index import Parameters

COUNT, SIZE, ADDRESS, SHAPE = 2, 3, 4, 5
"""Places among the words of an array: elements, bytes of an element, address, and the shape, then the strides."""
FUNCTION, VARYING, RAISED, RESULT, ARGUMENTS = range(5)
"""Places in `KernelCall.words`: the address of the function, the place of the arrays that differ from call to call, the
address of what was raised (0: nothing), a result that is not used, and the words that the function takes."""
MOST_TABLES = 6
MOST_ARGUMENTS = 2 + 9 * MOST_TABLES + 2 * 7
"""Words for so many arrays of two dimensions, and two of one."""
WORDS = ARGUMENTS + MOST_ARGUMENTS
_Unpickle = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class KernelCall:
    """The words of calls of a kernel, i8[WORDS], whose arrays from number `varying` on differ from call to call."""

    def __init__(self, kernel: Any, varying: int) -> None:
        self._kernel, self._varying = kernel, varying
        self.words = np.zeros(WORDS, np.int64)

    def prepare(self, arrays: Sequence[NDArray[Any]]) -> bool:
        """Write down the arrays of the next calls, all contiguous; return whether the kernel takes such arrays.

        Of those that vary, only their types matter; the caller keeps the others.
        """
        types: Parameters = tuple((each.dtype.name, each.ndim, "C", False) for each in arrays)
        code = self._kernel.native(types)
        sizes = [5 + 2 * each.ndim for each in arrays]
        if not code or sum(sizes) > MOST_ARGUMENTS - 2:
            return False
        words, at = self.words, self.words.ctypes.data
        words[FUNCTION], words[VARYING] = code, ARGUMENTS + 2 + sum(sizes[: self._varying])
        words[ARGUMENTS : ARGUMENTS + 2] = at + 8 * RESULT, at + 8 * RAISED
        place = ARGUMENTS + 2
        for array, size in zip(arrays, sizes, strict=True):
            about = 0, 0, array.size, array.itemsize, array.ctypes.data, *array.shape, *array.strides
            words[place : place + size] = about
            place += size
        return True

    def take_error(self) -> BaseException | None:
        """Return, once, what the last call has raised."""
        place = int(self.words[RAISED])
        self.words[RAISED] = 0
        if not place:
            return None
        # What numba's functions for Python read: address and length of a pickled exception, among the constants, and
        # its digest; the last word is not 0 if some of its arguments are known at run time only.
        pickled, size, digest, _, varies = (ctypes.c_int64 * 5).from_address(place)
        if varies & 0xFFFFFFFF:
            return RuntimeError("a kernel has raised an exception with arguments of its own")
        kind, arguments, _ = _Unpickle(self._kernel.unpickle)(pickled, size & 0xFFFFFFFF, digest)
        error = kind(*(arguments or ()))
        assert isinstance(error, BaseException)
        return error
