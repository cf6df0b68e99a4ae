"""Numba's caches of compiled kernels: the files of one function, and its configuration.

Like `mpips.jit.compiler.numba_internals`, this module uses private names of numba.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
from numba.core import config as _config
from numba.core.caching import FunctionCache
from numba.core.compiler_lock import global_compiler_lock
from numba.core.environment import Environment
from numba.core.funcdesc import FunctionDescriptor
from numba.core.runtime.nrt import rtsys

from mpips.jit import kernel_cache, kernel_values
from mpips.jit.compiler import included
from mpips.jit.kernel_index import DIGEST, Stamps, digest

config: Any = _config
# The type annotations of numba's classes are not those of their values.
_Implementation: Any = FunctionCache._impl_class
_FunctionCache: Any = FunctionCache


class Abandoned(BaseException):
    """The compilation of a kernel was abandoned, between two of the kernels that are built into it."""


is_abandoned: Callable[[], bool] | None = None
"""Whether the present compilation is to be abandoned, if it may be."""


@contextmanager
def configured(**values: str) -> Iterator[None]:
    """Set variables of numba's configuration for a while."""
    with global_compiler_lock:
        before = {name: getattr(config, name, "") for name in values}
        config.__dict__.update(values)
        try:
            yield
        finally:
            config.__dict__.update(before)


class Locator:
    """The place where a function's compiled code is cached, and the state of the source files that it depends on.

    Numba's own locators consider only the function's own file, and create a temporary file for each function: every
    rank would do so for each kernel, although `kernel_cache` has already examined the folder.
    """

    def __init__(self, function: Callable[..., Any], folder: Path, known: Stamps, kind: str = "") -> None:
        self._given, self._folder = (function, folder, known), str(folder)
        # Numba's name: it says where a kernel is that it cannot cache.
        self._py_file = function.__code__.co_filename
        self._name = f"{function.__code__.co_firstlineno}{kind}"
        self._stamp = (*(stamp for _, *stamp in known), *filter(None, [kernel_values.digest_of(function)]))

    def other(self, kind: str) -> Locator:
        """Return the place of another kind of code of the same function."""
        return Locator(*self._given, kind)

    def from_function(self, function: Any, file: str) -> Locator:
        """Return the place of a function."""
        return self

    def ensure_cache_path(self) -> None:
        """Numba calls it before it writes; the folder is there."""

    def get_cache_path(self) -> str:
        """Return the folder."""
        return self._folder

    def get_source_stamp(self) -> object:
        """Return the state of the source files."""
        return self._stamp

    def get_disambiguator(self) -> str:
        """Return what tells functions of the same name apart."""
        return self._name


class _LocatedImplementation(_Implementation):  # type: ignore[misc]
    def __init__(self, function: Any, locator: Locator) -> None:
        self._locator_classes = [locator]
        super().__init__(function)


class Cache(_FunctionCache):  # type: ignore[misc]
    """Numba's cache of one function."""

    def __init__(self, function: Any, locator: Locator) -> None:
        self._impl_class = lambda function: _LocatedImplementation(function, locator)
        with configured(CACHE_LOCATOR_CLASSES=""):
            super().__init__(function)
        if hasattr(self, "_cache_file"):
            _seal(self._cache_file)
            _read_own_files(self._cache_file)
        if hasattr(self, "_load_overload"):
            self.load_overload, self.save_overload = _loader(self), _saver(self)


def _seal(files: Any) -> None:
    """Append to each file of a cache the digest of its bytes; unpickling stops before the digest.

    Numba itself does not detect damaged machine code.
    """
    open_for_write = files._open_for_write

    @contextmanager
    def sealed(path: str) -> Iterator[io.BytesIO]:
        content = io.BytesIO()
        yield content
        with open_for_write(path) as file:
            file.write(content.getvalue() + digest(content.getbuffer()))

    files._open_for_write = sealed


def _is_sound(path: str) -> bool:
    """Return whether a cached file is a regular file of this user and undamaged."""
    if not kernel_cache.is_own_file(path):
        return False
    content = memoryview(Path(path).read_bytes())
    return content[-DIGEST:] == digest(content[:-DIGEST])


def _read_own_files(files: Any) -> None:
    """Treat files that are damaged, or not regular files of this user, as absent: numba compiles and replaces them.

    Numba opens any file of that name, and blocks on a named pipe. Unpickling damaged bytes can raise any exception.
    """
    read_index, read_data = files._load_index, files._load_data

    def index() -> dict[Any, str]:
        try:
            return dict(read_index()) if _is_sound(files._index_path) else {}
        except Exception:
            return {}

    def data(name: str) -> tuple[Any, ...]:
        path = files._data_path(name)
        found = None
        with suppress(Exception):
            found = read_data(name) if _is_sound(path) else None
        if not isinstance(found, tuple) or not found:
            if os.path.lexists(path):
                kernel_cache.remark(f"{path}: is damaged, and compiled again")
            # Numba takes this as absent.
            raise FileNotFoundError(path)
        return found

    files._load_index, files._load_data = index, data


def _loader(cache: Any) -> Callable[[Any, Any], Any]:
    """Load from a cache as numba does, but without the compiler: compiled code needs only numba's memory management."""

    def load(signature: Any, target: Any) -> Any:
        rtsys.initialize(target)
        return _load_overload(cache, signature, target)

    return load


def _load_overload(cache: Any, signature: Any, target: Any) -> Any:
    """Load the compiled code for one signature; None if it is not in the cache."""
    if not hasattr(cache, "_impl"):
        return cache._load_overload(signature, target)
    key = cache._index_key(signature, target.codegen())
    entry = cache._cache_file.load(key)
    if entry is None:
        return None
    match entry:
        case (str(name), "object", (bytes(code), bytes())), FunctionDescriptor() as function, *others:
            made = cache._impl.rebuild(target, (_outline(name, code, function, others), function, *others))
        case _:
            # A format that this module does not know.
            return cache._impl.rebuild(target, entry)

    def linked() -> Any:
        found = cache._cache_file.load(key)
        if found is None:
            raise RuntimeError(
                f"{function.qualname}: its compiled code has gone from the cache since it was loaded"
            )
        made.library._shared_module = llvm.parse_bitcode(found[0][2][1])
        del made.library._get_module_for_linking
        return made.library._shared_module

    made.library._get_module_for_linking = linked
    return made


def _outline(name: str, code: bytes, function: Any, others: Sequence[Any]) -> tuple[Any, ...]:
    """Return what numba loads: a function's machine code, and an LLVM module without code, to look up its names.

    Without machine code, numba compiles what is in the module: no functions, but variables.
    """
    names = (function.llvm_func_name, function.llvm_cpython_wrapper_name, function.llvm_cfunc_wrapper_name)
    inner = {function.env_name, *(each.env_name for each in environments(others))}
    outline = included.stub(names if code else (), inner).as_bitcode()
    return (name, "object", (code, outline)) if code else (name, "bitcode", outline)


def environments(parts: Sequence[Any]) -> Iterator[Any]:
    """Yield the environments of the functions that a kernel calls, among the parts of what is cached of it."""
    for part in parts:
        if isinstance(part, tuple):
            yield from (each for each in part if isinstance(each, Environment))


def _saver(cache: Any) -> Callable[[Any, Any], None]:
    """Save to a cache as numba does; this process can use a kernel even if saving fails.

    Numba saves an environment of Python objects for each function in a kernel, and imports that function's module when
    it loads the kernel; for numba's own functions these are modules of the compiler. Empty environments are left out.
    """
    saved = cache.save_overload
    if hasattr(cache, "_impl"):
        reduced = cache._impl.reduce

        def reduce(data: Any) -> Any:
            *parts, last = reduced(data)
            if isinstance(last, tuple) and all(isinstance(each, Environment) for each in last):
                last = tuple(each for each in last if each.consts)
            return *parts, last

        cache._impl.reduce = reduce

    def save(signature: Any, data: Any) -> None:
        try:
            saved(signature, data)
        except OSError as error:
            kernel_cache.remark(f"compiled kernels cannot be kept: {error}")
        if is_abandoned is not None and is_abandoned():
            raise Abandoned

    return save
