"""Compiled kernels: one decorator, so that every kernel is built the same way.

Kernels are compiled by numba for the signatures they name, at import, and cached on disk (`mpips.jit.kernel_cache`):
the first import on a machine compiles, and no clock ever runs during a compilation. They release the GIL and never
reorder floating-point operations, so that results do not depend on the machine's vector width.

A rank calls a few of the kernels that it imports, and compiles none of them. So a kernel that is in the cache is
loaded at its first call, and numba's compiler is not: that is most of the modules that a rank would import, scipy's
among them, and of the time it takes to start. Of a cached kernel only the machine code is loaded. What LLVM would need
to build it into another kernel, which takes several times the memory and the time, is read when one is compiled.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, cast

import llvmlite.binding as llvm
import numba
from numba.core import config as _config
from numba.core.compiler_lock import global_compiler_lock
from numba.core.environment import Environment
from numba.core.funcdesc import FunctionDescriptor
from numba.core.runtime.nrt import rtsys

from mpips.jit import compiling, kernel_cache

config: Any = _config
# numba reads a file of the working folder, which may be anybody's, and may say from where cached code is loaded.
config._config_fname = os.devnull
config.reload_config()
F = TypeVar("F", bound=Callable[..., Any])
_files: dict[str, set[str]] = {}  # by module: the files that its kernels are made of


def kernel(*signatures: str, inline: bool = False) -> Callable[[F], F]:
    """Compile a function for each of `signatures` (numba's notation, e.g. ``"f8(f8[::1], i8)"``).

    Without a signature the function is compiled for the types of its first caller: for helpers that
    other kernels call.
    """

    def compile_it(function: F) -> F:
        options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
        if inline:
            options["inline"] = "always"
        file = function.__code__.co_filename
        folder = kernel_cache.settle(os.path.dirname(file)).folder if os.path.isfile(file) else None
        jit = _made(function, options, folder)
        _stamp(jit, function)
        if signatures:
            if _is_cached(jit, signatures):
                _load_when_used(jit, signatures)
            else:
                with compiling.announced(function.__module__, folder), compiling.alone(folder):
                    if _is_cached(jit, signatures):  # another process was first
                        _load_when_used(jit, signatures)
                    else:
                        _load(jit, signatures)
        return cast(F, jit)

    return compile_it


def _made(function: Callable[..., Any], options: dict[str, Any], folder: Path | None) -> Any:
    """Let numba make a dispatcher whose cache is in a folder, or which has none."""
    # Numba appends a name of its own to this folder; without one it takes `__pycache__`.
    with _configured(CACHE_DIR="" if folder is None or folder.name == "__pycache__" else str(folder)):
        jit = numba.njit(**options, cache=folder is not None)(function)
    cache: Any = getattr(jit, "_cache", None)
    if hasattr(cache, "_cache_file"):
        _read_own_files(cache._cache_file)
    if hasattr(cache, "_load_overload"):
        cache.load_overload, cache.save_overload = _loader(cache), _saver(cache)
    return jit


def _load(jit: Any, signatures: Sequence[str]) -> None:
    """Make a kernel ready, from the cache or by compiling it."""
    with _configured():
        for signature in signatures:
            jit.compile(signature)
    jit.disable_compile()


@contextmanager
def _configured(**values: str) -> Iterator[None]:
    """Set variables of numba's configuration for a while.

    Kernels are compiled also with NUMBA_DISABLE_JIT, which is for the program's own functions: they use pointers, so
    that Python cannot run them.
    """
    values |= {"DISABLE_JIT": ""}
    with global_compiler_lock:
        before = {name: getattr(config, name) for name in values}
        config.__dict__.update(values)
        try:
            yield
        finally:
            config.__dict__.update(before)


def _is_cached(jit: Any, signatures: Sequence[str]) -> bool:
    """Tell whether a kernel is in the cache for all its signatures; no, if this numba keeps its cache another way."""
    try:
        cache, codegen = jit._cache, jit.targetctx.codegen()
        names = cache._cache_file._load_index()
        found = [names.get(cache._index_key(signature, codegen)) for signature in signatures]
        return all(name and kernel_cache.is_own_file(cache._cache_file._data_path(name)) for name in found)
    except (AttributeError, TypeError):
        return False


def _load_when_used(jit: Any, signatures: Sequence[str]) -> None:
    """Load a kernel when it is called, or when a kernel that calls it is compiled.

    Numba asks a function without compiled code by these two methods, for something to call and for its type.
    """

    def load() -> None:
        with global_compiler_lock:  # another thread may have been first
            if "_compile_for_args" in jit.__dict__:
                _load(jit, signatures)
                del jit._compile_for_args, jit.get_call_template

    def first_call(*args: Any, **kwargs: Any) -> Any:
        load()
        return jit.__call__

    def first_caller(*args: Any) -> Any:
        load()
        return jit.get_call_template(*args)

    jit._compile_for_args, jit.get_call_template = first_call, first_caller


def _read_own_files(files: Any) -> None:
    """Take what is damaged, or no regular file of this user, as absent: numba then compiles, and replaces it.

    Numba opens whatever has the name, and waits for a named pipe. Unpickling damaged bytes raises any error.
    """
    read_index, read_data = files._load_index, files._load_data

    def index() -> dict[Any, str]:
        try:
            return dict(read_index()) if kernel_cache.is_own_file(files._index_path) else {}
        except Exception:
            return {}

    def data(name: str) -> tuple[Any, ...]:
        path = files._data_path(name)
        found = None
        if kernel_cache.is_own_file(path):
            with suppress(Exception):
                found = read_data(name)
        if not isinstance(found, tuple) or not found:
            # which numba takes as absent
            raise FileNotFoundError(path)
        return found

    files._load_index, files._load_data = index, data


def _loader(cache: Any) -> Callable[[Any, Any], Any]:
    """Load from a cache as numba does, but without the compiler: what is compiled needs numba's memory only."""

    def load(signature: Any, target: Any) -> Any:
        rtsys.initialize(target)
        return _load_overload(cache, signature, target)

    return load


def _load_overload(cache: Any, signature: Any, target: Any) -> Any:
    """Load what was compiled for one signature; None if it is not in the cache."""
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
        case _:  # this numba keeps another thing
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
    """Give a module in LLVM's bitcode that has a function's names and no code: numba looks for them in it."""
    names = (function.llvm_func_name, function.llvm_cpython_wrapper_name, function.llvm_cfunc_wrapper_name)
    text = "\n".join(f'define void @"{name}"() {{ ret void }}' for name in names)
    with llvm.parse_assembly(text) as module:
        return cast(bytes, module.as_bitcode())


def _saver(cache: Any) -> Callable[[Any, Any], None]:
    """Save to a cache as numba does; a kernel that cannot be saved is as good for this process.

    Numba saves an environment of Python objects for each function that a kernel is made of, and imports that function's
    module when it loads the kernel: of its own functions, modules of the compiler. One without objects is not needed.
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

    return save


def _stamp(jit: Any, function: Callable[..., Any]) -> None:
    """Let a cached kernel count as stale when a file changes that it takes helpers or a module's constants from.

    Numba sees a kernel's own file only.
    """
    module = function.__module__
    files = _files.setdefault(module, {function.__code__.co_filename})
    for value in function.__globals__.values():
        if isinstance(value, ModuleType) and value.__name__.startswith("mpips."):
            files.add(value.__file__ or module)
        other = getattr(value, "__module__", None)
        if isinstance(other, str) and other != module and type(value).__module__.startswith("numba"):
            files |= _files.get(other) or {getattr(sys.modules.get(other), "__file__", None) or module}
    stat = [os.stat(file) for file in sorted(files) if os.path.isfile(file)]
    cached = getattr(getattr(jit, "_cache", None), "_cache_file", None)
    if cached is not None and hasattr(cached, "_source_stamp"):
        cached._source_stamp = (cached._source_stamp, *((each.st_mtime_ns, each.st_size) for each in stat))
