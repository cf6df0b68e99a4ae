"""All that mpips uses of numba beyond its public names: dispatchers' caches, and the configuration.

Numba may change it in any minor version, so pyproject.toml admits none but those that were tried: TRIED, each with the
llvmlite that it requires. tests/jit/test_numba_internals.py names each attribute that is used here and has moved. To
admit the next minor version, run tests/jit with it, change what has moved, and raise the bound and TRIED.

Other modules use `numba.carray`, `numba.types` and `numba.extending.intrinsic`, which are documented, with llvmlite's
builder and the target context that an intrinsic is given.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import llvmlite.binding as llvm
import numba
from numba.core import config as _config
from numba.core.compiler_lock import global_compiler_lock
from numba.core.environment import Environment
from numba.core.funcdesc import FunctionDescriptor
from numba.core.runtime.nrt import rtsys

from mpips.jit import kernel_cache

TRIED = ("0.61.2", "0.68.1")
"""Versions that were tried: the latest with all of tests/jit, the least with the tests of kernels and these names."""

DIGEST = 16
"""Bytes of a digest at the end of a cached file."""

config: Any = _config
# numba reads a file of the working folder, which may be anybody's, and may say from where cached code is loaded.
config._config_fname = os.devnull
config.reload_config()


def made(function: Callable[..., Any], options: dict[str, Any], folder: Path | None) -> Any:
    """Let numba make a dispatcher whose cache is in a folder, or which has none."""
    # Numba appends a name of its own to this folder; without one it takes `__pycache__`.
    where = "" if folder is None or folder.name == "__pycache__" else str(folder)
    with _configured(CACHE_DIR=where, CACHE_LOCATOR_CLASSES=""):
        jit = numba.njit(**options, cache=folder is not None)(function)
    cache: Any = getattr(jit, "_cache", None)
    if hasattr(cache, "_cache_file"):
        _seal(cache._cache_file)
        _read_own_files(cache._cache_file)
    if hasattr(cache, "_load_overload"):
        cache.load_overload, cache.save_overload = _loader(cache), _saver(cache)
    return jit


def load(jit: Any, signatures: Sequence[str]) -> None:
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
        before = {name: getattr(config, name, "") for name in values}
        config.__dict__.update(values)
        try:
            yield
        finally:
            config.__dict__.update(before)


def is_cached(jit: Any, signatures: Sequence[str]) -> bool:
    """Return whether a kernel is in the cache for all its signatures; no, if this numba keeps its cache another way."""
    try:
        cache, codegen = jit._cache, jit.targetctx.codegen()
        names = cache._cache_file._load_index()
        found = [names.get(cache._index_key(signature, codegen)) for signature in signatures]
        return all(name and kernel_cache.is_own_file(cache._cache_file._data_path(name)) for name in found)
    except (AttributeError, TypeError):
        return False


def load_when_used(jit: Any, signatures: Sequence[str]) -> None:
    """Load a kernel when it is called, or when a kernel that calls it is compiled.

    Numba asks a function without compiled code by these two methods, for something to call and for its type.
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
    """Append to each file of a cache the digest of its bytes; what unpickles them stops before it.

    Machine code with a flipped bit is as good to numba as any other.
    """
    open_for_write = files._open_for_write

    @contextmanager
    def sealed(path: str) -> Iterator[io.BytesIO]:
        content = io.BytesIO()
        yield content
        with open_for_write(path) as file:
            file.write(content.getvalue() + _digest(content.getbuffer()))

    files._open_for_write = sealed


def _digest(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=DIGEST).digest()


def _is_sound(path: str) -> bool:
    """Tell whether a cached file is a regular file of this user, and as it was written."""
    if not kernel_cache.is_own_file(path):
        return False
    content = memoryview(Path(path).read_bytes())
    return content[-DIGEST:] == _digest(content[:-DIGEST])


def _read_own_files(files: Any) -> None:
    """Take what is damaged, or no regular file of this user, as absent: numba then compiles, and replaces it.

    Numba opens whatever has the name, and waits for a named pipe. Unpickling damaged bytes raises any error.
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
    """Return a module in LLVM's bitcode that has a function's names and no code: numba looks for them in it."""
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


def is_compiled(value: object) -> bool:
    """Return whether a value of a module is a compiled function."""
    return type(value).__module__.startswith("numba")


def stamp(jit: Any, files: Sequence[str]) -> None:
    """Let a cached kernel count as stale also when one of these files changes; numba sees a kernel's own file only."""
    stats = [os.stat(file) for file in files if os.path.isfile(file)]
    cached = getattr(getattr(jit, "_cache", None), "_cache_file", None)
    if cached is not None and hasattr(cached, "_source_stamp"):
        cached._source_stamp = (cached._source_stamp, *((each.st_mtime_ns, each.st_size) for each in stats))
