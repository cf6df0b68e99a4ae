"""Uses of numba's internal names in mpips where numba is imported: its dispatchers.

Its caches are in `mpips.jit.compiler.numba_cache`, its compiler in `mpips.jit.compiler.included`.

Numba may change such names in any minor version, so pyproject.toml allows only the tested versions (those in
`mpips.jit.numba_installed`), each with the llvmlite that it requires. tests/jit/test_numba_internals.py names each
attribute used in these modules, or by `mpips.jit.numba_extensions`, that no longer exists. To allow the next minor
version, run tests/jit with it, adapt these modules, and raise the bounds.

Other modules use `numba.carray`, `numba.types` and `numba.extending.intrinsic`, which are documented, with llvmlite's
builder and the target context, which an intrinsic receives as arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property, update_wrapper
from inspect import CO_VARARGS, CO_VARKEYWORDS
from pathlib import Path
from typing import Any, cast

from numba import _dispatcher, _helperlib, types
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.core.environment import Environment
from numba.core.funcdesc import FunctionDescriptor
from numba.core.registry import CPUDispatcher, cpu_target
from numba.core.typeconv.rules import default_type_manager

from mpips.jit import deferred, kernel_cache
from mpips.jit.code_image import Image, image_of
from mpips.jit.compiler import included, numba_cache
from mpips.jit.compiler.numba_cache import Cache, Locator, configured, environments
from mpips.jit.kernel_index import Parameter, Parameters, Stamps

# The type annotations of numba's classes are not those of their values.
_Dispatcher: Any = CPUDispatcher
_manager: Any = default_type_manager


class Kernel(_Dispatcher):  # type: ignore[misc]
    """A numba dispatcher, created at its first use, since a rank calls only a few of the kernels that it imports.

    One that is `included` has code for the kernels that call it only (`mpips.jit.compiler.included`); if Python calls
    it, another one is made.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        options: dict[str, Any],
        locator: Locator | None,
        is_included: bool = False,
    ) -> None:
        update_wrapper(self, function)
        self._is_included, self._options, self._locator = is_included, options, locator
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
    def cache(self) -> Cache | None:
        """The cache of its compiled code; reading this does not create the dispatcher."""
        return None if self._locator is None else Cache(self.__wrapped__, self._locator)

    def _make(self) -> None:
        options = {**self.__dict__.pop("_options"), "nopython": True, "boundscheck": None}
        options |= included.OPTIONS if self._is_included else {"no_cfunc_wrapper": True}
        pipeline = included.IncludedCompiler if self._is_included else Compiler
        super().__init__(self.__wrapped__, targetoptions=options, pipeline_class=pipeline)
        if self.cache is not None:
            self._cache = self.cache

    def _insert(self, *entry: Any) -> None:
        """Let Python call the code for some types, unless it is included in other kernels only."""
        if not self._is_included:
            super()._insert(*entry)

    def _compile_for_args(self, *args: Any, **kwargs: Any) -> Any:
        """Return what to call for arguments for which there is no code yet."""
        return self._whole if self._is_included else super()._compile_for_args(*args, **kwargs)

    def native(self, parameters: Parameters) -> int:
        """Return the address of the code for parameters of these types that other compiled code calls; 0: none."""
        if "_compile_for_args" in self.__dict__:
            # It is loaded when it is used.
            self._compile_for_args()
        for each in self.overloads.values():
            if tuple(_parameter(kind) for kind in each.fndesc.argtypes) == parameters:
                return int(each.library.get_pointer_to_function(each.fndesc.llvm_func_name))
        return 0

    @property
    def unpickle(self) -> int:
        """The address of numba's function that reads what compiled code raises."""
        helpers: Any = _helperlib
        return int(helpers.c_helpers["unpickle"])

    @cached_property
    def _whole(self) -> Kernel:
        """The same kernel for Python."""
        options = {name: value for name, value in self.targetoptions.items() if name not in included.OPTIONS}
        return Kernel(self.__wrapped__, options, self._locator and self._locator.other("p"))


def initialise(
    kernel: Any,
    function: Callable[..., Any],
    options: dict[str, Any],
    folder: Path | None,
    known: Stamps,
    is_included: bool,
) -> None:
    """Make an object a dispatcher with its cache in a folder, or without one.

    Args:
        kernel: an instance of `Kernel`, or of another subclass of numba's C type of dispatchers.
        function: what it is compiled from.
        options: for numba's compiler.
        folder: the folder; None if there is none.
        known: the state of the source files, a change of which invalidates the cache.
        is_included: whether it is compiled for other kernels only.
    """
    kernel.__class__ = Kernel
    locator = None if folder is None else Locator(function, folder, known)
    kernel.__init__(function, options, locator, is_included)


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


def compile_now(jit: Any, signatures: Sequence[str], is_abandoned: Callable[[], bool]) -> None:
    """Compile a kernel as `load` does.

    Raises:
        numba_cache.Abandoned: `is_abandoned()` was true after one of the kernels that are built into it.
    """
    numba_cache.is_abandoned = is_abandoned
    try:
        load(jit, signatures)
    finally:
        numba_cache.is_abandoned = None


def load(jit: Any, signatures: Sequence[str]) -> None:
    """Load a kernel from the cache, or compile it.

    NUMBA_DISABLE_JIT has no effect on kernels, which use pointers, so that Python cannot run them. It has an effect on
    the program's own functions, and on who handles messages (`mpips.transport.mpi.abi.library`).
    """
    with configured(DISABLE_JIT=""):
        for signature in signatures:
            jit.compile(signature)
    jit.disable_compile()


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
            # Those with objects in them. Mostly only the functions' wrappers for Python need the objects, and are not
            # called.
            inner = [each.env_name for each in environments(others)]
            made = image_of(
                code, about.llvm_cpython_wrapper_name, about.env_name, about.llvm_func_name,
                {*inner} - {about.env_name},
            )  # fmt: skip
            return None if made is None else (cast(Parameters, tuple(parameters)), made)
    return None


def _parameter(kind: Any) -> Parameter | None:
    """Describe a type; None if it is neither a number nor an array of numbers."""
    if type(kind) is types.Array and kind.aligned and _is_number(kind.dtype):
        return str(kind.dtype), kind.ndim, kind.layout, not kind.mutable
    return str(kind) if _is_number(kind) else None


def _is_number(kind: Any) -> bool:
    return type(kind) in (types.Boolean, types.Integer, types.Float, types.Complex)
