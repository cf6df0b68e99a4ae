"""All uses of numba's internal names in mpips where numba is imported: dispatchers' caches, and the configuration.

Numba may change these in any minor version, so pyproject.toml allows only the tested versions (those in
`mpips.jit.numba_installed`), each with the llvmlite that it requires. tests/jit/test_numba_internals.py names each
attribute used here, or by `mpips.jit.numba_extensions`, that no longer exists. To allow the next minor version, run
tests/jit with it, adapt these modules, and raise the bounds.

Other modules use `numba.carray`, `numba.types` and `numba.extending.intrinsic`, which are documented, with llvmlite's
builder and the target context, which an intrinsic receives as arguments.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, cached_property, update_wrapper
from inspect import CO_VARARGS, CO_VARKEYWORDS
from pathlib import Path
from typing import Any, cast

import llvmlite.binding as llvm
from numba import _dispatcher, types
from numba.core import config as _config
from numba.core.caching import FunctionCache
from numba.core.compiler_lock import global_compiler_lock
from numba.core.environment import Environment
from numba.core.funcdesc import FunctionDescriptor
from numba.core.registry import CPUDispatcher, cpu_target
from numba.core.runtime.nrt import rtsys
from numba.core.typeconv.rules import default_type_manager

from mpips.jit import deferred, kernel_cache
from mpips.jit.code_image import Image, image_of
from mpips.jit.kernel_index import DIGEST, Parameter, Parameters, Stamps, digest

config: Any = _config


class _Locator:
    """The place where a function's compiled code is cached, and the state of the source files that it depends on.

    Numba's own locators consider only the function's own file, and create a temporary file for each function: every
    rank would do so for each kernel, although `kernel_cache` has already examined the folder.
    """

    def __init__(self, function: Callable[..., Any], folder: Path, known: Stamps) -> None:
        self._folder, self._line = str(folder), function.__code__.co_firstlineno
        self._stamp = tuple(stamp for _, *stamp in known)

    def from_function(self, function: Any, file: str) -> _Locator:
        return self

    def ensure_cache_path(self) -> None:
        """Numba calls it before it writes; the folder is there."""

    def get_cache_path(self) -> str:
        return self._folder

    def get_source_stamp(self) -> object:
        return self._stamp

    def get_disambiguator(self) -> str:
        return str(self._line)


# The type annotations of numba's classes are not those of their values.
_Implementation: Any = FunctionCache._impl_class
_FunctionCache: Any = FunctionCache
_Dispatcher: Any = CPUDispatcher
_manager: Any = default_type_manager


class _LocatedImplementation(_Implementation):  # type: ignore[misc]
    def __init__(self, function: Any, locator: _Locator) -> None:
        self._locator_classes = [locator]
        super().__init__(function)


class _Cache(_FunctionCache):  # type: ignore[misc]
    def __init__(self, function: Any, locator: _Locator) -> None:
        self._impl_class = lambda function: _LocatedImplementation(function, locator)
        with _configured(CACHE_LOCATOR_CLASSES=""):
            super().__init__(function)
        if hasattr(self, "_cache_file"):
            _seal(self._cache_file)
            _read_own_files(self._cache_file)
        if hasattr(self, "_load_overload"):
            self.load_overload, self.save_overload = _loader(self), _saver(self)


class Kernel(_Dispatcher):  # type: ignore[misc]
    """A numba dispatcher, created at its first use, since a rank calls only a few of the kernels that it imports."""

    def __init__(
        self, function: Callable[..., Any], options: dict[str, Any], locator: _Locator | None
    ) -> None:
        update_wrapper(self, function)
        self._options, self._locator = options, locator
        code = function.__code__
        if function.__defaults__ or code.co_kwonlyargcount or code.co_flags & (CO_VARARGS | CO_VARKEYWORDS):
            self._make()
            return
        # For the first call: it finds nothing compiled, and asks `_compile_for_args`.
        names = code.co_varnames[: code.co_argcount]
        _dispatcher.Dispatcher.__init__(
            self, _manager.get_pointer(), len(names), self._fold_args, names, (), False, False, False
        )

    def __getattr__(self, name: str) -> Any:
        # Another thread may be the first.
        with global_compiler_lock:
            if "_options" in self.__dict__:
                self._make()
            return object.__getattribute__(self, name)

    @cached_property
    def cache(self) -> _Cache | None:
        """The cache of its compiled code; reading this does not create the dispatcher."""
        return None if self._locator is None else _Cache(self.__wrapped__, self._locator)

    def _make(self) -> None:
        options = {**self.__dict__.pop("_options"), "nopython": True, "boundscheck": None}
        super().__init__(self.__wrapped__, targetoptions=options)
        if self.cache is not None:
            self._cache = self.cache


def initialise(
    kernel: Any, function: Callable[..., Any], options: dict[str, Any], folder: Path | None, known: Stamps
) -> None:
    """Make an object a dispatcher with its cache in a folder, or without one.

    Args:
        kernel: an instance of `Kernel`, or of another subclass of numba's C type of dispatchers.
        function: what it is compiled from.
        options: for numba's compiler.
        folder: the folder; None if there is none.
        known: the state of the source files, a change of which invalidates the cache.
    """
    kernel.__class__ = Kernel
    kernel.__init__(function, options, None if folder is None else _Locator(function, folder, known))


compiler_lock: Any = global_compiler_lock
"""Held by the thread that compiles, or makes a dispatcher."""


@contextmanager
def waited_for(kernel: Any) -> Iterator[None]:
    """Let other threads that call a kernel wait while it is made a dispatcher, by the thread that has the lock."""

    def wait(*args: Any, **kwargs: Any) -> Any:
        with global_compiler_lock:
            return kernel.__call__

    kernel.__dict__["_compile_for_args"] = wait
    try:
        yield
    finally:
        # It may have been replaced: by what loads the machine code at the first call.
        if kernel.__dict__.get("_compile_for_args") is wait:
            del kernel.__dict__["_compile_for_args"]


class Abandoned(BaseException):
    """The compilation of a kernel was abandoned, between two of the kernels that are built into it."""


_is_abandoned: Callable[[], bool] | None = None


def compile_now(jit: Any, signatures: Sequence[str], is_abandoned: Callable[[], bool]) -> None:
    """Compile a kernel as `load` does.

    Raises:
        Abandoned: `is_abandoned()` was true after one of the kernels that are built into it.
    """
    global _is_abandoned
    _is_abandoned = is_abandoned
    try:
        load(jit, signatures)
    finally:
        _is_abandoned = None


def load(jit: Any, signatures: Sequence[str]) -> None:
    """Load a kernel from the cache, or compile it.

    NUMBA_DISABLE_JIT has no effect on kernels, only on the program's own functions: kernels use pointers, so Python
    cannot run them.
    """
    with _configured(DISABLE_JIT=""):
        for signature in signatures:
            jit.compile(signature)
    jit.disable_compile()


@contextmanager
def _configured(**values: str) -> Iterator[None]:
    """Set variables of numba's configuration for a while."""
    with global_compiler_lock:
        before = {name: getattr(config, name, "") for name in values}
        config.__dict__.update(values)
        try:
            yield
        finally:
            config.__dict__.update(before)


def is_cached(jit: Any, signatures: Sequence[str]) -> bool:
    """Return whether a kernel is in the cache for all its signatures; False if this numba has another cache format."""
    try:
        cache = jit.cache
        names = cache._cache_file._load_index()
        found = [names.get(cache._index_key(signature, _codegen())) for signature in signatures]
        return all(name and kernel_cache.is_own_file(cache._cache_file._data_path(name)) for name in found)
    except (AttributeError, TypeError):
        return False


@cache
def _codegen() -> Any:
    """Return numba's code generator for this machine; it determines the machine's features only once."""
    codegen = cpu_target.target_context.codegen()
    described = codegen.magic_tuple()
    codegen.magic_tuple = lambda: described
    return codegen


def load_when_used(jit: Any, signatures: Sequence[str]) -> None:
    """Load a kernel when it is called, or when a kernel that calls it is compiled.

    For a function without compiled code, numba calls these two methods to get its entry point and its type.
    """

    def load_once() -> None:
        # Another thread may have been first.
        with global_compiler_lock:
            if "_compile_for_args" in jit.__dict__:
                load(jit, signatures)
                del jit._compile_for_args, jit.get_call_template

    def first_call(*args: Any, **kwargs: Any) -> Any:
        load_once()
        return jit.__call__

    def first_caller(*args: Any) -> Any:
        load_once()
        return jit.get_call_template(*args)

    jit._compile_for_args, jit.get_call_template = first_call, first_caller


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
            made = cache._impl.rebuild(
                target, ((name, "object", (code, _outline(function))), function, *others)
            )
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


def _outline(function: Any) -> bytes:
    """Return an LLVM bitcode module with a function's names but no code, in which numba looks up these names."""
    names = (function.llvm_func_name, function.llvm_cpython_wrapper_name, function.llvm_cfunc_wrapper_name)
    text = "\n".join(f'define void @"{name}"() {{ ret void }}' for name in names)
    with llvm.parse_assembly(text) as module:
        return cast(bytes, module.as_bitcode())


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
        if _is_abandoned is not None and _is_abandoned():
            raise Abandoned

    return save


def is_compiled(value: object) -> bool:
    """Return whether a value of a module is a compiled function."""
    known = isinstance(value, _dispatcher.Dispatcher | deferred.Deferred)
    return known or type(value).__module__.startswith("numba")


def image(kernel: Any, signature: str) -> tuple[Parameters, Image] | None:
    """Return the types and the machine code of a compiled kernel in numba's cache.

    Returns:
        What `mpips.jit.numba_extensions` calls; None if the kernel needs more than that module provides.
    """
    try:
        cache = kernel.cache
        entry = cache._cache_file.load(cache._index_key(signature, _codegen()))
    except (AttributeError, TypeError):
        return None
    match entry:
        case (
            str(),
            "object",
            (bytes(code), bytes()),
        ), FunctionDescriptor() as about, Environment() as own, *others:
            parameters = [_parameter(each) for each in about.argtypes]
            if own.consts or None in parameters:
                return None
            tuples = [each for each in others if isinstance(each, tuple)]
            # Those with objects in them, of the functions that the kernel calls. Mostly only these functions' wrappers
            # for Python need the objects, and are not called.
            inner = [each.env_name for other in tuples for each in other if isinstance(each, Environment)]
            made = image_of(
                code, about.llvm_cpython_wrapper_name, about.env_name, {*inner} - {about.env_name}
            )
            return None if made is None else (cast(Parameters, tuple(parameters)), made)
    return None


def _parameter(kind: Any) -> Parameter | None:
    """Describe a type; None if it is neither a number nor an array of numbers."""
    if type(kind) is types.Array and kind.aligned and _is_number(kind.dtype):
        return str(kind.dtype), kind.ndim, kind.layout, not kind.mutable
    return str(kind) if _is_number(kind) else None


def _is_number(kind: Any) -> bool:
    return type(kind) in (types.Boolean, types.Integer, types.Float, types.Complex)
