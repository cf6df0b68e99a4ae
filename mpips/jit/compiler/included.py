"""Kernels that only other kernels call: their code is optimised, and compiled, in each kernel that includes it.

Numba optimises each function with all that it calls, compiles it and its wrappers to machine code, and includes the
optimised code in the function's callers, where it is optimised again: once for each level of calls. Python does not
call these functions. So they stay LLVM code until a kernel that Python calls includes them.

Like `mpips.jit.compiler.numba_internals`, this module uses private names of numba.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import llvmlite.binding as llvm
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler

OPTIONS = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""Options of numba for these functions."""
_ENVIRONMENT = "_ZN08NumbaEnv"
# The type annotations of numba's classes are not those of their values.
_Compiler: Any = Compiler
_Library: Any = JITCodeLibrary


class _IncludedLibrary(_Library):  # type: ignore[misc]
    """The LLVM code of a function, and of those that it calls."""

    def _optimize_final_module(self) -> None:
        """Leave it to the kernel that includes the code."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        # The machine code of the kernel that includes this function refers to the function's environment by name.
        names = [each.name for each in self._final_module.global_variables]
        self._codegen._add_module(stub((), (name for name in names if name.startswith(_ENVIRONMENT))))
        self._codegen._engine.finalize_object()
        self._finalized = True

    def serialize_using_object_code(self) -> tuple[str, str, tuple[bytes, bytes]]:
        """Return what numba caches, without machine code."""
        return self.name, "object", (b"", self._get_module_for_linking().as_bitcode())


class IncludedCompiler(_Compiler):  # type: ignore[misc]
    """Compiles a function to LLVM code."""

    def compile_extra(self, function: Callable[..., Any]) -> Any:
        """Compile a function."""
        state = self.state
        state.library = _IncludedLibrary(state.targetctx.codegen(), function.__qualname__)
        return super().compile_extra(function)


def stub(functions: Iterable[str], environments: Iterable[str]) -> Any:
    """Return an LLVM module that defines some names of functions, without their code, and of environments."""
    lines = [f'define void @"{name}"() {{ ret void }}' for name in functions]
    lines += [f'@"{name}" = common global i8* null' for name in environments]
    return cast(Any, llvm.parse_assembly("\n".join(lines)))
