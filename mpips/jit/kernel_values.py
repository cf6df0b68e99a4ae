"""What a kernel of a program is compiled from, beside the files of its source: its code, and the values that it uses.

Compiled code contains the values of global names as they were when it was compiled. They may come from anywhere: a
module of constants, a computation at import, the environment, a file. So compiled code is found again by a digest of
the values themselves, those of the functions that the kernel calls included. Implementations that a program registers
with numba (`overload` and its kin) are not among the kernel's names, so all of them count for each of its kernels. For
the kernels of mpips the files are enough (`mpips.jit.compiler.kernel_sources`).
"""

from __future__ import annotations

import enum
import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import CodeType, FunctionType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

Seen = dict[tuple[int, frozenset[str] | None], object]
"""What has been described, by its identity; it is kept, since another object may get the identity of a lost one."""
_STABLE = ("numpy", "math", "cmath", "operator", "numba", "mpips")
"""Packages whose modules are not looked into: they change with their versions, or by their files."""
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_digests: WeakKeyDictionary[Callable[..., Any], str] = WeakKeyDictionary()


def digest_of(function: Callable[..., Any]) -> str:
    """Return the digest of a kernel's code and values, 16 hexadecimal digits; "" for a kernel of mpips.

    The values are those at the first call, which is when the kernel is compiled, or found in the cache.

    Args:
        function: what a kernel is compiled from.

    >>> def scaled(rate):
    ...     space = {"rate": rate, "__name__": "mine"}
    ...     exec("def scaled(x): return rate * x", space)
    ...     return space["scaled"]
    >>> len(digest_of(scaled(2.0))), digest_of(scaled(2.0)) == digest_of(scaled(3.0))
    (16, False)
    """
    if function.__module__.partition(".")[0] == "mpips":
        return ""
    if function not in _digests:
        sha = hashlib.blake2b(digest_size=8)
        for part in (*_of_function(function, {}), *_of_overloads()):
            sha.update(part.encode(errors="surrogatepass") + b"\0")
        _digests[function] = sha.hexdigest()
    return _digests[function]


def _of_function(function: Callable[..., Any], seen: Seen) -> Iterator[str]:
    """Describe a function's code, its defaults, and the values of its closure and of the global names that it uses."""
    code = function.__code__
    yield from _of_code(code)
    names = frozenset(_names(code))
    for cell in function.__closure__ or ():
        # Its variable may have no value yet.
        held: tuple[Any, ...] = ()
        with suppress(ValueError):
            held = (cell.cell_contents,)
        yield from _of_value(held, names, seen)
    yield from _of_value(function.__defaults__, names, seen)
    yield from _of_value(tuple((function.__kwdefaults__ or {}).items()), names, seen)
    for name in sorted(names & function.__globals__.keys()):
        yield name
        yield from _of_value(function.__globals__[name], names, seen)


def _of_overloads() -> list[str]:
    """Describe the implementations of functions, methods and attributes that a program has registered with numba.

    The order in which modules register them makes no difference.
    """
    # Without numba's module nothing has been registered.
    registry = getattr(sys.modules.get("numba.core.typing.templates"), "builtin_registry", None)
    found = []
    for template in (*getattr(registry, "functions", ()), *getattr(registry, "attributes", ())):
        made = getattr(template, "_overload_func", None)
        if isinstance(made, FunctionType) and not _is_installed(made):
            target = f"{getattr(template.key, '__name__', template.key)}.{getattr(template, '_attr', '')}"
            found.append("\0".join((target, *_of_function(made, {}))))
    return sorted(found)


def _is_installed(function: FunctionType) -> bool:
    """Return whether a function changes with a version only; numba loads some of these at its first compilation."""
    # Numba makes some from texts, which are of no module.
    return (function.__module__ or "numba").partition(".")[
        0
    ] in _STABLE or function.__code__.co_filename.startswith((sys.prefix, sys.base_prefix))


def _of_code(code: CodeType) -> Iterator[str]:
    yield code.co_code.hex()
    yield repr((code.co_names, code.co_varnames, code.co_freevars))
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _of_code(each)
        else:
            # The order of a set of strings is another one in each process.
            yield repr(sorted(map(repr, each)) if isinstance(each, frozenset) else each)


def _names(code: CodeType) -> Iterator[str]:
    """List the names of globals and attributes that a function and those within it use."""
    yield from code.co_names
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _names(each)


def _of_value(value: Any, names: frozenset[str], seen: Seen) -> Iterator[str]:
    """Describe a value; of a module, what has one of the `names`."""
    inner = _wrapped(value)
    # A kernel is of one type when it is compiled, and of another when it was in the cache.
    yield type(value if inner is None else inner).__qualname__
    if isinstance(value, _PLAIN):
        yield repr(value)
        return
    # What contains itself, directly or not, is described once; other functions use other parts of a module.
    key = id(value), names if isinstance(value, ModuleType) else None
    if key in seen:
        return
    seen[key] = value
    if isinstance(value, np.ndarray | np.generic):
        whole = np.asarray(value)
        if not whole.dtype.hasobject:
            yield f"{whole.dtype!r} {whole.shape} {hashlib.blake2b(whole.tobytes()).hexdigest()}"
    elif isinstance(value, np.dtype):
        yield repr(value)
    elif isinstance(value, enum.EnumMeta):
        members: dict[str, Any] = dict(value.__members__)
        yield repr([(name, members[name].value) for name in members])
    elif isinstance(value, enum.Enum):
        yield from _of_value(value.value, names, seen)
    elif isinstance(value, ModuleType):
        yield value.__name__
        used = set() if value.__name__.partition(".")[0] in _STABLE else names & vars(value).keys()
        for name in sorted(used):
            yield name
            yield from _of_value(vars(value)[name], names, seen)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _of_value(item, names, seen)
    elif isinstance(value, type):
        yield f"{value.__module__}.{value.__qualname__}"
        if isinstance(made := getattr(value, "class_type", None), _numba_type()):
            # Numba compiles the methods of a jitclass, which are those of the class that it is made from.
            yield repr(getattr(made, "struct", None))
            for each in value.__mro__[:-1]:
                yield from _of_value([*_members(each)], names, seen)
    elif isinstance(value, _numba_type()):
        yield repr(value)
    elif inner is not None:
        yield from _of_function(inner, seen)


def _members(of: type) -> Iterator[object]:
    """List the names and functions of a class's methods and properties."""
    for name, member in vars(of).items():
        if isinstance(member, FunctionType | staticmethod):
            yield from (name, member)
        elif isinstance(member, property):
            yield from (name, member.fget, member.fset)


def _numba_type() -> type | tuple[()]:
    """Return the class of numba's types, which a kernel may use as functions; none if numba is not loaded."""
    found = getattr(sys.modules.get("numba.core.types"), "Type", None)
    return found if isinstance(found, type) else ()


def _wrapped(value: Any) -> FunctionType | None:
    """Return the function that a kernel is made of, or a function itself; None for any other value."""
    if isinstance(value, FunctionType):
        return value
    # Any object may be among a module's names.
    with suppress(Exception):
        found = getattr(value, "__wrapped__", None)
        return found if isinstance(found, FunctionType) else None
    return None
