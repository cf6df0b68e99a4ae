"""Compiled kernels: one decorator, so that every kernel is built the same way.

Kernels are compiled by numba for the signatures they name, at import, and cached on disk: the first import on
a machine compiles, every later one loads in milliseconds, and no clock ever runs during a compilation. They
release the GIL and never reorder floating-point operations, so that results do not depend on the machine's
vector width.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

F = TypeVar("F", bound=Callable[..., Any])
_files: dict[str, set[str]] = {}  # by module: the files that its kernels are made of


def kernel(*signatures: str, inline: bool = False) -> Callable[[F], F]:
    """Compile a function for each of `signatures` (numba's notation, e.g. ``"f8(f8[::1], i8)"``).

    Without a signature the function is compiled for the types of its first caller: for helpers that
    other kernels call.
    """

    def compile_it(function: F) -> F:
        options: dict[str, Any] = {"nogil": True, "cache": True, "error_model": "numpy"}
        if inline:
            options["inline"] = "always"
        jit = numba.njit(**options)(function)
        _stamp(jit, function)
        for signature in signatures:
            jit.compile(signature)
        if signatures:
            jit.disable_compile()
        return cast(F, jit)

    return compile_it


def _stamp(jit: Any, function: Callable[..., Any]) -> None:
    """Let a cached kernel count as stale when a file changes that it takes helpers from: numba sees its own only."""
    module = function.__module__
    files = _files.setdefault(module, {function.__code__.co_filename})
    for value in function.__globals__.values():
        other = getattr(value, "__module__", None)
        if isinstance(other, str) and other != module and type(value).__module__.startswith("numba"):
            files |= _files.get(other) or {getattr(sys.modules.get(other), "__file__", None) or module}
    stat = [os.stat(file) for file in sorted(files) if os.path.isfile(file)]
    cached = getattr(getattr(jit, "_cache", None), "_cache_file", None)
    if cached is not None and hasattr(cached, "_source_stamp"):
        cached._source_stamp = (cached._source_stamp, *((each.st_mtime_ns, each.st_size) for each in stat))
