"""Compiled kernels: one decorator, so that every kernel is built the same way.

Kernels are compiled by numba for the signatures they name, at import, and cached on disk: the first import on
a machine compiles, and no clock ever runs during a compilation. They release the GIL and never reorder
floating-point operations, so that results do not depend on the machine's vector width.

A rank calls a few of the kernels that it imports, and compiles none of them. So a kernel that is in the cache is
loaded at its first call, in a millisecond or two, and numba's compiler is not: that is most of the modules that a rank
would import, scipy's among them, and of the time it takes to start.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numba
from numba.core.compiler_lock import global_compiler_lock
from numba.core.runtime.nrt import rtsys

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
        if signatures:
            if _is_cached(jit, signatures):
                jit._cache.load_overload = _loader(jit._cache)
                _load_when_used(jit, signatures)
            else:
                _load(jit, signatures)
        return cast(F, jit)

    return compile_it


def _load(jit: Any, signatures: Sequence[str]) -> None:
    """Make a kernel ready, from the cache or by compiling it."""
    for signature in signatures:
        jit.compile(signature)
    jit.disable_compile()


def _is_cached(jit: Any, signatures: Sequence[str]) -> bool:
    """Tell whether a kernel is in the cache for all its signatures; no, if this numba keeps its cache another way."""
    try:
        cache, codegen = jit._cache, jit.targetctx.codegen()
        names = cache._cache_file._load_index()
        found = [names.get(cache._index_key(signature, codegen)) for signature in signatures]
        return all(name and os.path.isfile(cache._cache_file._data_path(name)) for name in found)
    except (AttributeError, TypeError):
        return False


def _load_when_used(jit: Any, signatures: Sequence[str]) -> None:
    """Load a kernel when it is called, or when a kernel that calls it is compiled.

    Numba asks a function without compiled code by these two methods, for something to call and for its type.
    """

    def load() -> None:
        with global_compiler_lock:  # another thread may have been first
            if "_compile_for_args" in jit.__dict__:
                _load(jit, signatures)
                del jit._compile_for_args, jit.get_call_template

    def first_call(*args: Any, **kwargs: Any) -> Any:
        load()
        return jit.__call__

    def first_caller(*args: Any) -> Any:
        load()
        return jit.get_call_template(*args)

    jit._compile_for_args, jit.get_call_template = first_call, first_caller


def _loader(cache: Any) -> Callable[[Any, Any], Any]:
    """Load from a cache as numba does, but without the compiler: what is compiled needs numba's memory only."""

    def load(signature: Any, target: Any) -> Any:
        rtsys.initialize(target)
        return cache._load_overload(signature, target)

    return load


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
