"""Kernels as numba's dispatchers: loaded from its cache or compiled, and then added to `kernel_index`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# isort: off
# Before numba itself.
from mpips.jit.compiler import numba_environment as numba_environment
from mpips.jit import deferred, kernel_index, numba_installed
from mpips.jit.compiler import compiling, kernel_sources, numba_cache, numba_internals
from mpips.process import stop_signals

# isort: on


_made: set[Any] = set()


def made(
    function: Callable[..., Any], options: dict[str, Any], signatures: Sequence[str], folder: Path | None
) -> Any:
    """Return a kernel; arguments as for `become`."""
    kernel = numba_internals.Kernel.__new__(numba_internals.Kernel)
    become(kernel, function, options, signatures, folder)
    return kernel


def become(
    kernel: Any,
    function: Callable[..., Any],
    options: dict[str, Any],
    signatures: Sequence[str],
    folder: Path | None,
) -> None:
    """Make an object one of numba's dispatchers, with its cache.

    Args:
        kernel: a `numba_internals.Kernel` or `numba_extensions.CachedKernel`.
        function: what it is compiled from.
        options: numba's.
        signatures: for which it is compiled; none: for the types of its callers.
        folder: the folder of the cache; None if there is none.
    """
    with numba_internals.compiler_lock:
        # Another thread may have been first.
        if kernel in _made:
            return
        deferred.resolve(function.__globals__)
        files = kernel_sources.files(function, numba_internals.is_compiled)
        known = kernel_index.stamps(kernel_index.folder_of(function), files)
        with numba_internals.waited_for(kernel):
            numba_internals.initialise(kernel, function, options, folder, known, is_included=not signatures)
            if signatures:
                _load(kernel, function, signatures, folder)
        if signatures and folder is not None and numba_installed.key():
            _add(kernel, function, signatures, folder, known)
        _made.add(kernel)


def _load(kernel: Any, function: Callable[..., Any], signatures: Sequence[str], folder: Path | None) -> None:
    """Load a kernel from numba's cache when it is used, or compile it now.

    A rank that is asked to stop while it loads compiles none: it ends before it uses any.
    """
    if not numba_internals.is_cached(kernel, signatures) and not stop_signals.received:
        with compiling.announced(function.__module__, folder), compiling.alone(folder):
            # Another process may have been first.
            if not numba_internals.is_cached(kernel, signatures) and not stop_signals.received:
                with suppress(numba_cache.Abandoned):
                    numba_internals.compile_now(kernel, signatures, lambda: bool(stop_signals.received))
                    return
    numba_internals.load_when_used(kernel, signatures)


def _add(
    kernel: Any,
    function: Callable[..., Any],
    signatures: Sequence[str],
    folder: Path,
    known: kernel_index.Stamps,
) -> None:
    """Add a kernel to the file of its module, unless it is there."""
    path = kernel_index.path_of(folder, function.__code__.co_filename, numba_installed.key())
    if kernel_index.entries(path, function, signatures):
        return
    images = {each: numba_internals.image(kernel, each) for each in signatures}
    found = {each: image for each, image in images.items() if image is not None}
    if len(found) == len(images):
        with suppress(OSError), compiling.alone(folder):
            kernel_index.add(path, known, function, found)
