"""The intrinsics by which kernels call C functions at addresses, in LLVM's instructions."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mpips.jit.kernel_call import MOST_ARGUMENTS


def _call(typing_context: Any, function: Any, arguments: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        word = ir.IntType(64)
        count = len(arguments)
        kind = ir.FunctionType(ir.IntType(32), [word] * count)
        target = builder.inttoptr(given[0], kind.as_pointer())
        values = [builder.extract_value(given[1], position) for position in range(count)]
        return builder.call(target, values)

    return types.int32(types.int64, arguments), generate


call: Any = intrinsic(_call)
"""Call the C function at an address with a tuple of int64; return its int."""


def _call_words(typing_context: Any, function: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.IntType(32), [word] * MOST_ARGUMENTS)
        target = builder.inttoptr(given[0], kind.as_pointer())
        words = builder.inttoptr(given[1], word.as_pointer())
        values = [builder.load(builder.gep(words, [word(place)])) for place in range(MOST_ARGUMENTS)]
        return builder.call(target, values)

    return types.int32(types.int64, types.int64), generate


call_words: Any = intrinsic(_call_words)
"""Call the C function at an address with the MOST_ARGUMENTS words at another address; return its int."""


def _to_pointer(typing_context: Any, address: Any, like: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.inttoptr(given[0], context.get_value_type(signature.return_type))

    kind: Any = types.CPointer
    return kind(like)(types.int64, like), generate


pointer: Any = intrinsic(_to_pointer)
"""Return an address as a pointer to numbers of the type of another argument."""
