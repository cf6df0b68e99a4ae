"""Compiled kernels: one decorator, so that every kernel is built the same way.

Kernels are compiled by numba for the signatures they name, at import, and cached on disk (`mpips.jit.kernel_cache`):
the first import on a machine compiles them, so no measurement includes a compilation. They release the GIL and never
reorder floating-point operations, so that results do not depend on the machine's vector width.

A rank calls only a few of the kernels that it imports, and compiles none. So the machine code of a cached kernel is
loaded at its first call, and called without numba (`mpips.jit.numba_extensions`), whose import would take much of a
rank's start-up time. The LLVM code that another kernel needs to include it takes several times the memory and the time,
and is loaded by numba, only when such a kernel is compiled (`mpips.jit.compiler`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

from mpips.jit import kernel_cache, kernel_index, numba_installed

F = TypeVar("F", bound=Callable[..., Any])


def kernel(*signatures: str, inline: bool = False) -> Callable[[F], F]:
    """Compile a function for each of `signatures` (numba's notation, e.g. ``"f8(f8[::1], i8)"``).

    Without a signature the function is compiled for the types of its first caller: for helpers that
    other kernels call.

    >>> @kernel("f8(f8, f8)")
    ... def product(a, b):
    ...     return a * b
    >>> product(2.0, 1.5)
    3.0

    Raises:
        TypeError: the decorator is not called, as in `@kernel` in place of `@kernel()`.
    """
    if not all(isinstance(each, str) for each in signatures):
        raise TypeError('@kernel takes signatures: write @kernel("f8(f8)"), or @kernel() without any')

    def compile_it(function: F) -> F:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
        if inline:
            options["inline"] = "always"
        file = function.__code__.co_filename
        sources = os.path.dirname(file) if os.path.isfile(file) else None
        folder = kernel_cache.choose(sources).folder if sources is not None else None
        cached = None
        if not numba_installed.is_needed():
            given = kernel_cache.given(sources) if sources is not None else None
            cached = _cached(function, options, signatures, folder, folder) or (
                _cached(function, options, signatures, folder, given) if given is not None else None
            )
        made = cached or _compiled(function, options, signatures, folder)
        _signatures[made] = signatures
        return cast(F, made)

    return compile_it


_signatures: WeakKeyDictionary[object, tuple[str, ...]] = WeakKeyDictionary()


def is_kernel(value: object) -> bool:
    """Return whether a value was made by `kernel`.

    >>> is_kernel(abs)
    False
    """
    return value in _signatures


def results_of(made: object) -> set[str]:
    """Return the types of a kernel's results, one for each signature; none if it has no signatures.

    >>> sorted(results_of(kernel("f8(f8)", "void(f8[::1])")(lambda x: None)))
    ['f8', 'void']
    """
    return {each.partition("(")[0].strip() for each in _signatures[made]}


def _cached(
    function: Callable[..., Any],
    options: dict[str, Any],
    signatures: tuple[str, ...],
    folder: Path | None,
    within: Path | None,
) -> object | None:
    """Return a kernel that is called without numba; None if it is not in the cache.

    `folder` is where it is compiled to if it is damaged, or if numba needs it; it is read from the one `within`.
    """
    extensions = _extensions()
    if extensions is None or not extensions.is_plain(function):
        return None
    path, entries = None, {}
    if signatures:
        if within is None:
            return None
        path = kernel_index.path_of(within, function.__code__.co_filename, numba_installed.key())
        entries = kernel_index.entries(path, function, signatures)
        if not entries:
            return None

    def become(kernel: Any) -> None:
        from mpips.jit.compiler import numba_kernel

        numba_kernel.become(kernel, function, options, signatures, folder)

    return cast(object, extensions.CachedKernel(function, become, path, entries))


def _compiled(
    function: Callable[..., Any], options: dict[str, Any], signatures: tuple[str, ...], folder: Path | None
) -> object:
    """Return a kernel that numba calls, compiled now if it is not in numba's cache."""
    from mpips.jit.compiler import numba_kernel

    return numba_kernel.made(function, options, signatures, folder)


@cache
def _extensions() -> ModuleType | None:
    """Return what calls cached kernels; None if it does not work with this numba."""
    try:
        from mpips.jit import numba_extensions
    except (ImportError, AttributeError, KeyError, TypeError):
        return None
    return numba_extensions
