"""Finds the source files that a kernel depends on: if one of them changes, its compiled code is no longer valid.

They are its own file, those of the modules of mpips and of the compiled functions among its module's names, and those
from which the module imports names that the kernel uses, such as constants.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from mpips.jit.deferred import Deferred

_PACKAGE = str(Path(__file__).parents[2])
IsCompiled = Callable[[object], bool]


def files(function: Callable[..., Any], is_compiled: IsCompiled) -> list[str]:
    """List the files, sorted.

    Args:
        function: what a kernel is compiled from, while its module is imported or later.
        is_compiled: whether a value is a function for kernels.
    """
    module = function.__module__
    found = {function.__code__.co_filename, *_used(module, function.__code__)}
    return sorted(found | _among(module, function.__globals__, is_compiled, {module}))


def _among(module: str, names: Mapping[str, Any], is_compiled: IsCompiled, seen: set[str]) -> set[str]:
    """List the files of what is among a module's names."""
    found = set()
    for value in list(names.values()):
        if isinstance(value, ModuleType):
            if value.__name__.startswith("mpips.") and value.__file__:
                found.add(value.__file__)
        elif is_compiled(value):
            if isinstance(value, Deferred):
                # The list is the same whether or not its module has been imported before.
                value.found()
            other = getattr(value, "__module__", None)
            if isinstance(other, str) and other not in seen:
                found |= _of(other, is_compiled, seen)
    return found


def _of(module: str, is_compiled: IsCompiled, seen: set[str]) -> set[str]:
    """List the files that the kernels of another module are made of."""
    seen.add(module)
    file = _file(module)
    if file is None or _is_installed(file):
        return set()
    names = vars(sys.modules[module])
    found = {file, *_among(module, names, is_compiled, seen)}
    for value in names.values():
        if is_compiled(value) and value.__module__ == module:
            code = getattr(getattr(value, "__wrapped__", None), "__code__", None)
            found.update(_used(module, code) if isinstance(code, CodeType) else ())
    return found


def _used(module: str, code: CodeType) -> Iterator[str]:
    """List the files of the modules from which a module has imported what a function uses."""
    for name in _names(code):
        yield from _origins(module, name)


def _names(code: CodeType) -> Iterator[str]:
    """List the global names that a function and those within it use."""
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _names(each)


def _origins(module: str, name: str) -> Iterator[str]:
    """List the files of the modules through which a module has imported a name."""
    seen = {module}
    while (origin := _imports(module).get(name)) and origin[0] not in seen:
        module, name = origin
        seen.add(module)
        file = _file(module)
        if file is not None and not _is_installed(file):
            yield file


@cache
def _imports(module: str) -> dict[str, tuple[str, str]]:
    """Return from which module a module has imported each name, and by what name there."""
    file, found = _file(module), {}
    if file is None or not file.endswith(".py"):
        return {}
    package = getattr(sys.modules.get(module), "__package__", None) or ""
    for node in ast.walk(ast.parse(Path(file).read_bytes())):
        if isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), package)
            found.update({each.asname or each.name: (origin, each.name) for each in node.names})
    return found


def _file(module: str) -> str | None:
    return getattr(sys.modules.get(module), "__file__", None)


def _is_installed(file: str) -> bool:
    """Return whether a module is no source of this user: then it changes with its version, as numpy does."""
    return file.startswith((sys.prefix, sys.base_prefix)) and not file.startswith(_PACKAGE)
