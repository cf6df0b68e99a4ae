"""Calls cached kernels with numba's extension modules alone, without the package `numba` and its compiler.

Numba's dispatcher, its functions around machine code and its memory management are extension modules in C, which need
nothing else of numba. They are loaded here from their files. So a call of a cached kernel takes as long as with
numba, and the same code checks the types of its arguments. It represents types by numbers, which numba assigns in
order of creation; the numbers that this module assigns are far above those. So if numba is imported later, and
assigns its own numbers to arguments, a kernel finds no match, rather than a wrong one. It is then converted to one of
numba's dispatchers, as in all other cases that this module does not support.

Like `mpips.jit.compiler.numba_internals`, this module uses private names of numba, and only those of the versions in
`mpips.jit.numba_installed`. It is imported only where the package is not.
"""

from __future__ import annotations

import builtins
import importlib.util
import sys
import threading
from collections.abc import Callable, Mapping
from functools import update_wrapper
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from inspect import CO_VARARGS, CO_VARKEYWORDS
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mpips.jit import code_image, kernel_cache, kernel_index, numba_installed
from mpips.jit.kernel_index import Entry

SCALARS = (
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float32", "float64", "complex64",
    "complex128",
)  # fmt: skip
"""The types of scalars, and of arrays' elements."""
CONVERSIONS = (
    "essssssssssss", "uepppuuuussss", "uueppuuuussss", "uuuepuuuuusus", "uuuueuuuuusus", "uusssepppssss",
    "uuussueppusus", "uuuusuuepusus", "uuuuuuuueusus", "uuuuuuuuuepss", "uuuuuuuuuueus", "-----------ep",
    "-----------ue",
)  # fmt: skip
"""By scalar, how an argument becomes each: exact, promoted, safe, unsafe, or not at all."""
MATH = (
    "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "ceil", "cos", "cosh", "exp", "expm1", "fabs", "floor",
    "fmod", "log", "log10", "log1p", "pow", "round", "sin", "sinh", "sqrt", "tan", "tanh", "trunc",
)  # fmt: skip
"""The functions, also for float32 with an f at the end, for which numba has addresses of its own."""
_FIRST = 1 << 20


def _extension(name: str) -> Any:
    folder = numba_installed.folder()
    if folder is None:
        raise ImportError("numba is not installed")
    path = str(folder.joinpath(*name.split(".")[1:])) + EXTENSION_SUFFIXES[0]
    loader = ExtensionFileLoader(name, path)
    spec = importlib.util.spec_from_file_location(name, path, loader=loader)
    if spec is None:
        raise ImportError(f"{path} is no extension module")
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _load() -> tuple[Any, Any, Any, Any, Any]:
    """Load the extension modules.

    They are not left among the imported modules, where a later import of numba would find them without their package:
    it loads them itself, and Python gives it the same functions and types.
    """
    # One of them asks for another by name, and so for the package.
    package: Any = ModuleType("numba")
    sys.modules["numba"] = package
    try:
        package._devicearray = _extension("numba._devicearray")
        return (
            _extension("numba._dispatcher"),
            _extension("numba._dynfunc"),
            _extension("numba._helperlib"),
            _extension("numba.core.runtime._nrt_python"),
            _extension("numba.core.typeconv._typeconv"),
        )
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "numba"]:
            del sys.modules[name]


_dispatcher, _dynfunc, _helperlib, _nrt, _typeconv = _load()


class _Type:
    """A type, with the attributes that numba's dispatcher reads."""

    def __init__(self, code: int) -> None:
        self._code = code


class _Omitted:
    """The class of omitted arguments: no kernel here has default values."""


_types: dict[Any, _Type] = {}
_manager: Any = _typeconv.new_type_manager()


def _type(about: kernel_index.Parameter | None) -> _Type:
    """Return a type by its description; that of None is one that no kernel takes."""
    found = _types.get(about)
    if found is None:
        found = _types[about] = _Type(_FIRST + len(_types))
        if isinstance(about, tuple):
            dtype, ndim, layout, readonly = about
            # Numba's array types can be converted in the same way.
            for other in ("C", "F", "A") if layout == "A" else (layout,):
                for fixed in {False, readonly}:
                    if (other, fixed) != (layout, readonly):
                        _convert((dtype, ndim, other, fixed), about, "s")
    return found


def _convert(begin: kernel_index.Parameter, end: kernel_index.Parameter, how: str) -> None:
    _typeconv.set_compatible(_manager, _type(begin)._code, _type(end)._code, ord(how))


def _type_of(value: object) -> _Type:
    """Return the type of an argument."""
    if isinstance(value, bool | np.bool_):
        return _type("bool")
    if isinstance(value, np.ndarray) and value.dtype.isnative and value.dtype.name in SCALARS:
        layout = "C" if value.flags.c_contiguous else "F" if value.flags.f_contiguous else "A"
        return _type((value.dtype.name, value.ndim, layout, not value.flags.writeable))
    return _type(None)


for _begin, _row in zip(SCALARS, CONVERSIONS, strict=True):
    for _end, _how in zip(SCALARS, _row, strict=True):
        if _how in "psu":
            _convert(_begin, _end, _how)
_dispatcher.typeof_init(_Omitted, {name: _type(name)._code for name in SCALARS if name != "bool"})


def _addresses() -> Mapping[str, int]:
    """List the addresses that numba gives to names in machine code, before those of the system."""
    helpers = {**_helperlib.c_helpers, **_dynfunc.c_helpers}
    return {
        **{name: helpers[name] for each in MATH for name in (each, f"{each}f")},
        **{f"numba_{name}": address for name, address in helpers.items()},
        **{name if name.startswith("_") else f"NRT_{name}": at for name, at in _nrt.c_helpers.items()},
        **{f"PyExc_{name}": id(each) for name, each in vars(builtins).items() if _is_exception(each)},
        "_Py_NoneStruct": id(None),
    }


def _is_exception(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


_known = _addresses()


def _address_of(name: str) -> int:
    found = _known.get(name)
    return code_image.system_symbol(name) if found is None else found


_lock = threading.Lock()
_Dispatcher: Any = _dispatcher.Dispatcher


class CachedKernel(_Dispatcher):  # type: ignore[misc]
    """A kernel whose machine code is in the cache, and is loaded at its first call.

    Numba's dispatcher calls some of its methods, and so their names are numba's.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        become: Callable[[Any], None],
        path: Path | None,
        entries: Mapping[str, Entry],
    ) -> None:
        """Make a kernel.

        Args:
            function: what it was compiled from.
            become: makes the object one of numba's dispatchers.
            path: the file with its machine code.
            entries: where it is in the file, by signature; empty for a function that only other kernels call.
        """
        update_wrapper(self, function)
        # Profilers show it.
        self.__code__ = function.__code__
        self._become, self._path, self._entries = become, path, entries
        self._functions: list[tuple[kernel_index.Parameters, Any, int]] = []
        names = function.__code__.co_varnames[: function.__code__.co_argcount]
        _Dispatcher.__init__(
            self, _typeconv.get_pointer(_manager), len(names), 1, names, (), False, False, False
        )

    def _load(self) -> None:
        """Load the machine code; if that fails, there is none."""
        with _lock:
            entries, path = self._entries, self._path
            if not entries or path is None:
                return
            self._entries = {}
            try:
                loaded = [
                    (entry.parameters, *_function(self.__wrapped__, path, entry))
                    for entry in entries.values()
                ]
            except (OSError, KeyError):
                kernel_cache.remark(f"{path}: is damaged, and made again")
                kernel_index.forget(path)
                return
            # The dispatcher does not keep them alive.
            self._functions = loaded
            for parameters, function, _ in loaded:
                self._insert(tuple(_type(each)._code for each in parameters), function)
            self._can_compile = False

    def _compile_for_args(self, *args: Any, **kwargs: Any) -> Any:
        """Return what to call for arguments for which there is no machine code yet."""
        if self._can_compile:
            # Waits while another thread loads it.
            self._load()
        if self._can_compile:
            self._become(self)
        return self.__call__

    def native(self, parameters: kernel_index.Parameters) -> int:
        """Return the address of the code for parameters of these types that other compiled code calls; 0: none."""
        if self._can_compile:
            self._load()
        if self._can_compile:
            self._become(self)
            return int(self.native(parameters))
        return next((address for known, _, address in self._functions if known == parameters), 0)

    @property
    def unpickle(self) -> int:
        """The address of numba's function that reads what compiled code raises."""
        return _known["numba_unpickle"]

    def _search_new_conversions(self, *args: Any, **kwargs: Any) -> bool:
        """Let `_compile_for_args` be asked, about arguments that do not match."""
        self._can_compile = True
        return False

    def _explain_ambiguous(self, *args: Any, **kwargs: Any) -> Any:
        """Let numba raise a TypeError."""
        self._become(self)
        return self(*args, **kwargs)

    def typeof_pyval(self, value: object) -> Any:
        """Return the type of a value that the dispatcher does not know yet."""
        found = _type_of(value)
        # What is returned is remembered for all dispatchers, also numba's own.
        if "numba" in sys.modules:
            self._become(self)
            return self.typeof_pyval(value)
        return found

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of numba's dispatchers."""
        if name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self._become(self)
        return getattr(self, name)


def _function(function: Callable[..., Any], path: Path, entry: Entry) -> tuple[Any, int]:
    """Load one signature's machine code; return a function of its unchecked arguments, and the address for kernels."""
    image = kernel_index.code(path, entry)
    memory, base = code_image.load(image, _address_of)
    environment = _dynfunc.Environment(function.__globals__)
    code_image.store(memory, image.environment, id(environment))
    made = _dynfunc.make_function(
        sys.modules[function.__module__], function.__name__, "", base + image.entry, environment,
        (memory, environment),
    )  # fmt: skip
    return made, base + image.native


def is_plain(function: Callable[..., Any]) -> bool:
    """Return whether a function has only positional parameters without defaults, and is no closure."""
    flags = function.__code__.co_flags & (CO_VARARGS | CO_VARKEYWORDS)
    special = function.__defaults__ or function.__closure__ or function.__code__.co_kwonlyargcount or flags
    return not special
