"""The intrinsics behind `mpips.jit.numba_pointers`, in LLVM's instructions."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def _address(typing: Any, array: Any) -> Any:
    """Return the address of an array's first element; accesses are not checked, and the array is not kept alive."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, arguments[0]).data

    pointer: Any = types.CPointer
    return pointer(array.dtype)(array), generate


def _moved(typing: Any, pointer: Any, by: Any) -> Any:
    """Return the address of pointer[by]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.gep(arguments[0], [arguments[1]])

    return pointer(pointer, types.int64), generate


def _halves(typing: Any, pointer: Any) -> Any:
    """Cast a pointer to 64-bit numbers to one to twice as many i32."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

    narrow: Any = types.CPointer
    return narrow(types.int32)(pointer), generate


def _fetched(typing: Any, pointer: Any, at: Any) -> Any:
    """Prefetch pointer[at]."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte = builder.bitcast(builder.gep(arguments[0], [arguments[1]]), ir.IntType(8).as_pointer())
        word = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte.type, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte.type], kind)
        # Operands of llvm.prefetch: for a read, into all caches, data.
        builder.call(function, [byte, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(pointer, types.int64), generate


def _count_below(typing: Any, pointer: Any, at: Any, key: Any) -> Any:
    """Count the eight numbers from pointer[at] on that are below a key, as u64, with vector instructions."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        start, at, key = arguments
        lanes, word = 8, ir.IntType(64)
        vector, lane = ir.VectorType(word, lanes), ir.IntType(32)
        place = builder.bitcast(builder.gep(start, [at]), vector.as_pointer())
        numbers = builder.load(place)
        # Numbers are only aligned one by one.
        numbers.align = 8
        first = builder.insert_element(ir.Constant(vector, ir.Undefined), key, lane(0))
        same = ir.Constant(ir.VectorType(lane, lanes), [0] * lanes)
        keys = builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), same)
        bits = builder.bitcast(builder.icmp_unsigned("<", numbers, keys), ir.IntType(lanes))
        return builder.zext(builder.ctpop(bits), word)

    return types.int64(pointer, types.int64, types.uint64), generate


address: Any = intrinsic(_address)
count_below: Any = intrinsic(_count_below)
halves: Any = intrinsic(_halves)
moved: Any = intrinsic(_moved)
prefetch: Any = intrinsic(_fetched)
