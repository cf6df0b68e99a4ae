"""Placeholders for functions that need numba, such as intrinsics: only the compilation of kernels imports numba."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Deferred:
    """A placeholder for a function of another module, which is imported when a kernel is compiled."""

    def __init__(self, module: str, name: str) -> None:
        self.__module__, self._name = module, name

    def found(self) -> Any:
        """Import the module, and return the function."""
        return getattr(import_module(self.__module__), self._name)


def resolve(names: dict[str, Any]) -> None:
    """Replace the placeholders among a module's names by the functions, so that numba finds these."""
    for name, value in list(names.items()):
        if isinstance(value, Deferred):
            names[name] = value.found()
