"""The private names of numba that mpips uses exist, and few modules use them."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numba
import pytest
from numba import _dispatcher, _dynfunc, _helperlib
from numba.core import config, environment, funcdesc, intrinsics
from numba.core.runtime import _nrt_python, nrt
from numba.core.typeconv import _typeconv
from numba.core.typeconv.rules import default_type_manager

from mpips.jit.numba_installed import TRIED

ROOT = Path(__file__).parents[2]
SIGNATURE = "f8(f8)"
PUBLIC = {"numba", "numba.extending", "numba.types"}
INTERNALS = ROOT / "mpips" / "jit" / "compiler" / "numba_internals.py"
CACHE, INCLUDED = INTERNALS.with_name("numba_cache.py"), INTERNALS.with_name("included.py")
EXTENSIONS = INTERNALS.parents[1] / ("numba_extensions.py")
INSTALLED = INTERNALS.parents[1] / ("numba_installed.py")
USED = {
    "configuration": {"_config_fname", "reload_config", "DISABLE_JIT"},
    "dispatcher": {
        "_cache", "_can_compile", "_compile_for_args", "_explain_ambiguous", "_fold_args", "_insert", "_numba_type_",
        "_search_new_conversions", "compile", "disable_compile", "get_call_template", "overloads", "targetctx",
        "typeof_pyval",
    },
    "cache": {"_cache_file", "_impl", "_impl_class", "_index_key", "_load_overload", "load_overload", "save_overload"},
    "cache implementation": {"_locator_classes", "rebuild", "reduce"},
    "cache file": {"_data_path", "_index_path", "_load_data", "_load_index", "_open_for_write", "load"},
    "target context": {"codegen", "get_dummy_value", "get_value_type", "make_array"},
    "code library": {
        "_codegen", "_final_module", "_finalize_dynamic_globals", "_finalize_final_module", "_finalized",
        "_get_module_for_linking", "_optimize_final_module", "_shared_module", "_verify_declare_only_symbols",
        "get_pointer_to_function", "name", "serialize_using_object_code",
    },
    "code generator": {"_add_module", "_engine"},
    "function descriptor": {
        "argtypes", "env_name", "llvm_cfunc_wrapper_name", "llvm_cpython_wrapper_name", "llvm_func_name", "qualname",
    },
    "environment": {"consts", "env_name"},
    "runtime": {"initialize"},
    "module of dispatchers": {"Dispatcher", "typeof_init"},
    "module of functions": {"Environment", "c_helpers", "make_function"},
    "module of helpers": {"c_helpers"},
    "module of memory": {"c_helpers"},
    "module of conversions": {"get_pointer", "new_type_manager", "set_compatible"},
}  # fmt: skip
"""By object: the attributes that `numba_internals`, `numba_extensions` and the intrinsics of mpips take for granted."""


def half(x: float) -> float:
    return x / 2


class Made:
    """One compiled and cached function, and the objects of numba that belong to it."""

    def __init__(self, folder: Path) -> None:
        before = config.CACHE_DIR  # type: ignore[attr-defined]
        config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
        try:
            jit: Any = numba.njit(SIGNATURE, cache=True)(half)
        finally:
            config.CACHE_DIR = before  # type: ignore[attr-defined]
        (result,) = jit.overloads.values()
        self.objects: dict[str, Any] = {
            "configuration": config, "dispatcher": jit, "target context": jit.targetctx, "runtime": nrt.rtsys,
            "code library": result.library, "code generator": result.library.codegen,
            "function descriptor": result.fndesc,
            "environment": environment.Environment.from_fndesc(result.fndesc),
            "module of dispatchers": _dispatcher, "module of functions": _dynfunc, "module of helpers": _helperlib,
            "module of memory": _nrt_python, "module of conversions": _typeconv,
        }  # fmt: skip
        self.objects["cache"] = cache = getattr(jit, "_cache", None)
        self.objects["cache implementation"] = getattr(cache, "_impl", None)
        self.objects["cache file"] = getattr(cache, "_cache_file", None)

    def entry(self) -> Any:
        """Return what numba has saved of the function."""
        cache, jit = self.objects["cache"], self.objects["dispatcher"]
        return cache._cache_file.load(cache._index_key(SIGNATURE, jit.targetctx.codegen()))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize(
    ("owner", "name"), [(owner, name) for owner, names in USED.items() for name in sorted(names)]
)
def test_numba_has_the_names_that_are_used(made: Made, owner: str, name: str) -> None:
    assert hasattr(made.objects[owner], name), (
        f"numba {numba.__version__}: the {owner} ({type(made.objects[owner]).__name__}) has no {name} any more, "
        f"which mpips/jit/compiler/numba_internals.py uses; it was tried with {', '.join(TRIED)}"
    )


def test_numba_still_saves_a_function_as_one_object_file_with_its_bitcode(made: Made) -> None:
    match made.entry():
        case (str(), "object", (bytes(), bytes())), funcdesc.FunctionDescriptor(), *_:
            return
        case entry:
            pytest.fail(
                f"numba {numba.__version__} saves a compiled function as something else, {entry!r:.200}: "
                f"{INTERNALS.name} then has no image of it; it was tried with {', '.join(TRIED)}"
            )


def constants(name: str) -> Any:
    """Return a constant of the module that is not to be imported beside numba."""
    tree = ast.parse(EXTENSIONS.read_text())
    (value,) = (
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    )
    return ast.literal_eval(value)


def test_scalars_are_converted_as_numba_converts_them() -> None:
    scalars, rows = constants("SCALARS"), constants("CONVERSIONS")
    kinds = [getattr(numba.types, "boolean" if name == "bool" else name) for name in scalars]
    for begin, row in zip(kinds, rows, strict=True):
        found = [default_type_manager.check_compatible(begin, end) for end in kinds]
        assert "".join("-" if each is None else each.name[0] for each in found) == row, begin


def test_the_functions_of_which_numba_has_its_own_are_known() -> None:
    assert {name for each in constants("MATH") for name in (each, f"{each}f")} == set(intrinsics.INTR_MATH)


def test_the_installed_numba_is_one_that_was_tried() -> None:
    lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    first, last = ([int(part) for part in each.split(".")[:2]] for each in TRIED)
    assert f"numba>={first[0]}.{first[1]},<{last[0]}.{last[1] + 1}" in lines
    here = [int(part) for part in version("numba").split(".")[:2]]
    assert first <= here <= last, f"numba {version('numba')} was not tried: see {INTERNALS.name}"


def test_few_modules_use_private_names_of_numba() -> None:
    private = re.compile(
        r"\.(_cache_file|_compile_for_args|_config_fname|_impl\.re\w+|_index_key|_load_overload|_shared_module|targetctx)\b"
    )
    for path in [*(ROOT / "mpips").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]:
        if path in (INTERNALS, CACHE, INCLUDED, EXTENSIONS, INSTALLED):
            continue
        text = path.read_text(encoding="utf-8")
        assert not private.search(text), (
            f"{path} uses what is private to numba: that belongs to {INTERNALS.name}"
        )
        for node in ast.walk(ast.parse(text)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [each.name for each in node.names] if isinstance(node, ast.Import) else []
            inner = {name for name in names if name.split(".")[0] == "numba"} - PUBLIC
            assert not inner, f"{path} imports {inner}: that belongs to {INTERNALS.name}"
