"""Docstrings: the errors that a function raises, and the shapes and dtypes of arrays.

Only packages that programs meet are held to it. A method's class may say it for all its methods, and a module for all
its functions.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent / "mpips"
FILES = [ROOT / "consistency.py", ROOT / "ranges.py"]
FILES += [path for name in ("filters", "storage", "worker") for path in sorted((ROOT / name).glob("*.py"))]
ARRAYS = re.compile(r"\b(NDArray|Rows|Array|Keys)\b")
SHAPES = re.compile(r"\w*\[[a-z0-9_+*,: ]+\]|\b(float|u?int)\d+\b|dtype")
CALLED = ("__call__", "__init__", "__post_init__")


class Function(NamedTuple):
    """A public function or method, with its own docstring, and with those of what it is in, without examples."""

    name: str
    node: ast.FunctionDef
    own: str
    around: str


def functions(node: ast.Module | ast.ClassDef, name: str, around: str) -> Iterator[Function]:
    around += (ast.get_docstring(node) or "").partition(">>>")[0]
    for each in node.body:
        if isinstance(each, ast.ClassDef) and not each.name.startswith("_"):
            yield from functions(each, f"{name}.{each.name}", around)
        elif isinstance(each, ast.FunctionDef) and (not each.name.startswith("_") or each.name in CALLED):
            marks = " ".join(map(ast.unparse, each.decorator_list))
            if "kernel(" not in marks and ".setter" not in marks:
                own = (ast.get_docstring(each) or "").partition(">>>")[0]
                yield Function(f"{name}.{each.name}", each, own, around)


def all_functions() -> list[Function]:
    found: list[Function] = []
    for path in FILES:
        found += functions(ast.parse(path.read_text(encoding="utf-8")), str(path.relative_to(ROOT)), "")
    return found


FUNCTIONS = all_functions()


def test_a_function_names_the_errors_that_it_raises() -> None:
    for name, node, own, around in FUNCTIONS:
        raised = {
            each.exc.func.id for each in ast.walk(node)
            if isinstance(each, ast.Raise) and isinstance(each.exc, ast.Call) and isinstance(each.exc.func, ast.Name)
        }  # fmt: skip
        text = own + around if node.name in CALLED else own
        missing = {each for each in raised if each not in text}
        assert not missing, f"{name} raises {missing}, which its docstring does not say"


def test_a_function_that_takes_or_gives_arrays_says_of_what_shape_or_dtype() -> None:
    for name, node, own, around in FUNCTIONS:
        if node.name in CALLED:
            continue
        given = [each.annotation for each in (*node.args.args, *node.args.kwonlyargs)]
        types = " ".join(ast.unparse(each) for each in (*given, node.returns) if each is not None)
        if ARRAYS.search(types):
            assert SHAPES.search(own + around), f"{name} does not say the shape or dtype of its arrays"
