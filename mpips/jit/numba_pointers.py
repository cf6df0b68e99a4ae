"""Pointers for compiled kernels, to pass arrays to inner functions and to prefetch memory.

Numba counts the references of an array that is passed on or selected, with atomic operations, which cost more than the
lookup of one key. A pointer is a number. Accesses through it are not checked, and it does not keep its memory alive:
the kernel that Python calls must hold the array until its end.
"""

from __future__ import annotations

from typing import Any

from mpips.jit.deferred import Deferred

_MODULE = "mpips.jit.compiler.pointer_intrinsics"

address: Any = Deferred(_MODULE, "address")
"""address(array): the address of its first element."""
count_below: Any = Deferred(_MODULE, "count_below")
"""count_below(pointer, at, key): how many of the eight u64 from pointer[at] on are below a key."""
halves: Any = Deferred(_MODULE, "halves")
"""halves(pointer): a pointer to 64-bit numbers as one to twice as many i32."""
moved: Any = Deferred(_MODULE, "moved")
"""moved(pointer, by): the address of pointer[by]."""
prefetch: Any = Deferred(_MODULE, "prefetch")
"""prefetch(pointer, at): load pointer[at] into the caches."""
