"""Imports numba, and reports in one line each of numba's environment variables that has an invalid value.

Numba itself prints a traceback for such a variable, or fails. The variable is removed, so that child processes do not
report it again. This module is imported before any other that imports numba.
"""

from __future__ import annotations

import os
import re
import sys
import warnings

from mpips.jit.numba_installed import THREADS, are_threads
from mpips.process.first_rank import seems_first
from mpips.process.printable import one_line

_UNPARSED = re.compile(
    r"Environment variable '(NUMBA_\w+)' is defined but its associated value .*?\n(.*)", re.DOTALL
)


def _refuse(name: str, why: str) -> None:
    value = os.environ.pop(name, "")
    if seems_first():
        print(f"mpips: {one_line(f'{name}={value} is not used: {why}')}", file=sys.stderr, flush=True)


def import_numba() -> None:
    """Import numba without the variables that it cannot use."""
    # Numba refuses a number that is not positive by an error of its own, at import.
    if not are_threads(os.environ.get(THREADS, "1")):
        _refuse(THREADS, "it must be a whole number, at least 1")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        _import_without_scipy()
    for each in said:
        found = _UNPARSED.match(str(each.message))
        if found is None:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        elif found[1] in os.environ:
            _refuse(found[1], found[2].strip().splitlines()[-1])


def _import_without_scipy() -> None:
    """Import numba without scipy, which numba imports only to check its version: forty modules in every rank.

    A kernel that uses linear algebra imports scipy when it is compiled.
    """
    hidden = not {"numba", "scipy"} & sys.modules.keys()
    if hidden:
        # `import` treats a module that is None as not installed.
        sys.modules["scipy"] = None  # type: ignore[assignment]
    try:
        import numba  # noqa: F401
    finally:
        if hidden:
            del sys.modules["scipy"]


import_numba()
