"""Ranks make no tuples that Python keeps, after they are freed, and does not use again: they grow for hours.

CPython 3.11 makes a tuple from an iterator of unknown length with ten places, and then changes its size. A freed tuple
is kept for the next one of its size, if one is made with that size at once: up to 2,000 of each size to 20, 5 MB in
all. Those of 20 are kept, but none is taken.
"""

from __future__ import annotations

import ast

import pytest

from tests.test_structure import MODULES

PACKAGES = (
    "checkpoint", "cluster", "filters", "history", "membership", "rank", "scheduler", "server", "storage", "tasks",
    "tracing", "transport", "worker",
)  # fmt: skip
"""What a rank executes again and again."""
UNSIZED = {"map", "zip", "filter"}


def of_unknown_length(node: ast.AST) -> bool:
    """Return whether an expression in a program makes a tuple from an iterator whose length is unknown."""
    if not (isinstance(node, ast.Call) and ast.unparse(node.func) == "tuple" and node.args):
        return False
    made = node.args[0]
    return isinstance(made, ast.GeneratorExp) or (
        isinstance(made, ast.Call) and ast.unparse(made.func) in UNSIZED
    )


def found(text: str) -> list[int]:
    """Return the lines of a module's functions that make such tuples."""
    functions = (each for each in ast.walk(ast.parse(text)) if isinstance(each, ast.FunctionDef))
    return sorted(
        {node.lineno for each in functions for node in ast.walk(each) if of_unknown_length(node)}  # type: ignore[attr-defined]
    )


@pytest.mark.parametrize(
    ("made", "is_found"),
    [("i for i in x", True), ("map(f, x)", True), ("[i for i in x]", False), ("sorted(i for i in x)", False)],
)
def test_of_tuples_in_functions(made: str, is_found: bool) -> None:
    assert bool(found(f"def f(x):\n    return tuple({made})")) == is_found
    # At import they are made once.
    assert not found(f"x = tuple({made})")


def test_ranks_make_tuples_from_lists() -> None:
    of_ranks = (name for name in MODULES if name.split(".")[1:2] and name.split(".")[1] in PACKAGES)
    lines = {name: found(MODULES[name].read_text(encoding="utf-8")) for name in of_ranks}
    assert len(lines) > 100
    assert {name: at for name, at in lines.items() if at} == {}


def test_no_kernel_takes_twenty_arguments() -> None:
    """Python passes a kernel its arguments in a tuple."""
    parsed = [
        (name, ast.parse(path.read_text(encoding="utf-8")))
        for name, path in MODULES.items()
        if "@kernel" in path.read_text(encoding="utf-8")
    ]
    counts = {
        f"{name}.{each.name}": len(each.args.args)
        for name, module in parsed
        for each in ast.walk(module)
        if isinstance(each, ast.FunctionDef)
        and any("kernel" in ast.unparse(by) for by in each.decorator_list)
    }
    assert len(counts) > 50
    # A kernel without types is called by other kernels only, without a tuple.
    assert [name for name, count in counts.items() if count == 20] == []
