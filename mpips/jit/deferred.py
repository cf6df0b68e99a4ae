"""Names of functions for kernels that only numba can make, such as intrinsics; a rank that compiles none does not."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class Deferred:
    """Stands among a module's names for one of another module, which is imported when a kernel is compiled."""

    def __init__(self, module: str, name: str) -> None:
        self.__module__, self._name = module, name

    def found(self) -> Any:
        """Import the module and return what it has by this name."""
        return getattr(import_module(self.__module__), self._name)


def resolve(names: dict[str, Any]) -> None:
    """Replace those among a module's names that stand for others, so that numba finds these."""
    for name, value in list(names.items()):
        if isinstance(value, Deferred):
            names[name] = value.found()
