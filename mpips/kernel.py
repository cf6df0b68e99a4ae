"""Compiled kernels: one decorator, so that every kernel is built the same way.

Kernels are compiled by numba for the signatures they name, at import, and cached on disk: the first import on
a machine compiles, every later one loads in milliseconds, and no clock ever runs during a compilation. They
release the GIL and never reorder floating-point operations, so that results do not depend on the machine's
vector width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])


def kernel(*signatures: str, inline: bool = False) -> Callable[[F], F]:
    """Compile a function for each of `signatures` (numba's notation, e.g. ``"f8(f8[::1], i8)"``).

    Without a signature the function is compiled for the types of its first caller: for helpers that
    other kernels call.
    """

    def compile_it(function: F) -> F:
        options: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
        if inline:
            options["inline"] = "always"
        jit = numba.njit(list(signatures), **options) if signatures else numba.njit(**options)
        return cast(F, jit(function))

    return compile_it
