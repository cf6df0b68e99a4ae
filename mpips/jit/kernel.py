"""Compiled kernels: one decorator, so that every kernel is built the same way.

Kernels are compiled by numba for the signatures they name, at import, and cached on disk (`mpips.jit.kernel_cache`):
the first import on a machine compiles them, so no measurement includes a compilation. They release the GIL and never
reorder floating-point operations, so that results do not depend on the machine's vector width.

A rank calls only a few of the kernels that it imports, and compiles none. So a cached kernel is loaded at its first
call, without numba's compiler, whose modules (with scipy's) would take most of a rank's start-up time. Only the machine
code of a cached kernel is loaded. The LLVM code that another kernel needs to include it takes several times the memory
and the time, and is loaded only when such a kernel is compiled.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, TypeVar, cast

# isort: off
from mpips.jit import numba_environment as numba_environment  # before numba itself
from mpips.jit import compiling, kernel_cache, numba_internals

# isort: on

F = TypeVar("F", bound=Callable[..., Any])
# By module: the files that its kernels are made of.
_files: dict[str, set[str]] = {}


def kernel(*signatures: str, inline: bool = False) -> Callable[[F], F]:
    """Compile a function for each of `signatures` (numba's notation, e.g. ``"f8(f8[::1], i8)"``).

    Without a signature the function is compiled for the types of its first caller: for helpers that
    other kernels call.

    >>> @kernel("f8(f8, f8)")
    ... def product(a, b):
    ...     return a * b
    >>> product(2.0, 1.5)
    3.0
    """

    def compile_it(function: F) -> F:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
        if inline:
            options["inline"] = "always"
        file = function.__code__.co_filename
        folder = kernel_cache.choose(os.path.dirname(file)).folder if os.path.isfile(file) else None
        jit = numba_internals.made(function, options, folder, _sources(function))
        if signatures:
            if numba_internals.is_cached(jit, signatures):
                numba_internals.load_when_used(jit, signatures)
            else:
                with compiling.announced(function.__module__, folder), compiling.alone(folder):
                    if numba_internals.is_cached(jit, signatures):  # another process was first
                        numba_internals.load_when_used(jit, signatures)
                    else:
                        numba_internals.load(jit, signatures)
        return cast(F, jit)

    return compile_it


def _sources(function: Callable[..., Any]) -> list[str]:
    """List the source files of a kernel: its own, and those of the helpers and module constants that it uses."""
    module = function.__module__
    files = _files.setdefault(module, {function.__code__.co_filename})
    for value in function.__globals__.values():
        if isinstance(value, ModuleType):
            if value.__name__.startswith("mpips."):
                files.add(value.__file__ or module)
        elif numba_internals.is_compiled(value):
            other = getattr(value, "__module__", None)
            if isinstance(other, str) and other != module:
                files |= _files.get(other) or {getattr(sys.modules.get(other), "__file__", None) or module}
    return sorted(files)
