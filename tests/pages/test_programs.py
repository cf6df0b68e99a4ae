"""The Python that the documents print: names and arguments are there, examples are correct, programs run.

Those of docs/api.md are run by `tests/test_api.py`, those of docs/python.md by `tests/client`, that of docs/filters.md
by `tests/filters`, those of tutorials by `tests/tutorials`, and those of docs/embeddings.md by `tests/embedding` and
`tests/pytorch`.
"""

from __future__ import annotations

import ast
import builtins
import doctest
import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pages.blocks import ROOT, TEXTS, blocks, inline

import mpips
from mpips.cli.main import main

RUN_ELSEWHERE = {"docs/api.md", "docs/python.md"}
PROGRAMS = [each for each in blocks("python") if not each.text.startswith(">>>")]
SHOWN = {each.file.removesuffix(".py") for each in PROGRAMS if each.file}
"""Modules that are on a page themselves."""
FRAMEWORKS = {"torch", "jax"}
"""One is not installed everywhere, and after the other this process could not fork."""
MISSING = object()


def named(module: str, name: str) -> Any:
    """Return what `from module import name` imports; MISSING of a framework."""
    if module in FRAMEWORKS:
        return MISSING
    if module.removeprefix("mpips.") in FRAMEWORKS:
        tree = ast.parse((ROOT / "mpips" / f"{module.removeprefix('mpips.')}.py").read_text())
        defined = {each.name for each in tree.body if isinstance(each, ast.ClassDef | ast.FunctionDef)}
        if name not in defined:
            raise ImportError(f"{module} has no {name}")
        return MISSING
    found = importlib.import_module(module)
    return getattr(found, name) if hasattr(found, name) else importlib.import_module(f"{module}.{name}")


def dotted(name: str) -> Any:
    """Return what a dotted name of mpips means. AttributeError or ModuleNotFoundError: nothing."""
    found: Any = mpips
    for part in name.split(".")[1:]:
        found = named(found.__name__, part) if isinstance(found, ModuleType) else getattr(found, part)
    return found


def imported(tree: ast.Module) -> dict[str, Any]:
    """Return what a text imports, by the names that it gives them; MISSING of a framework, and of the page itself."""
    found: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module is not None and not node.level
            found |= {each.asname or each.name: named(node.module, each.name) for each in node.names}
        elif isinstance(node, ast.Import):
            for each in node.names:
                top = each.name.partition(".")[0]
                if top not in FRAMEWORKS | SHOWN:
                    importlib.import_module(each.name)
                    found[each.asname or top] = sys.modules[each.name if each.asname else top]
    return found


def meant(node: ast.expr, names: dict[str, Any]) -> Any:
    """Return what a dotted expression means, MISSING if it is no imported name; AttributeError: it is not there."""
    if isinstance(node, ast.Name):
        return names.get(node.id, getattr(builtins, node.id, MISSING))
    if isinstance(node, ast.Attribute):
        base = meant(node.value, names)
        return getattr(base, node.attr) if isinstance(base, ModuleType) else MISSING
    return MISSING


def check_calls(tree: ast.Module, names: dict[str, Any]) -> None:
    """Fail if an imported name does not have an attribute, or a function of mpips not an argument, that is used."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            meant(node, names)
        if isinstance(node, ast.Call):
            function = meant(node.func, names)
            starred = any(isinstance(each, ast.Starred) for each in node.args)
            if str(getattr(function, "__module__", "")).startswith("mpips.") and not starred:
                keywords = {each.arg: None for each in node.keywords if each.arg}
                inspect.signature(function).bind_partial(*node.args, **keywords)


def test_names_and_arguments_are_there() -> None:
    for block in PROGRAMS:
        tree = ast.parse(block.text)
        try:
            check_calls(tree, imported(tree))
        except (ImportError, AttributeError, TypeError) as error:
            raise AssertionError(f"{block.title}: {error}") from error


def on_the_twin(
    job: str, *, workers: int = 1, set: dict[str, Any] | None = None, on_pass: Any = None
) -> mpips.Run:
    """Run a job as `mpips.run`, in this process."""
    words = [word for key, value in (set or {}).items() for word in ("--set", f"{key}={value}")]
    assert main(["run", job, "--twin", "--workers", str(workers), *words]) == 0
    run = mpips.Run()
    for line in run.passes if on_pass else []:
        on_pass(line)
    return run


class AnyOutput(doctest.OutputChecker):
    """Accepts all output: the data are others."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return True


def tables(folder: Path) -> None:
    """Write the tables that the README's job file names."""
    rows = [f"{20 + i % 40},{1000 * (1 + i % 7)},Rome,{('yes', 'no')[i % 3 == 0]}" for i in range(90)]
    for name in ("train", "test", "new"):
        (folder / f"{name}.csv").write_text("\n".join(["age,income,city,outcome", *rows]) + "\n")


def examples(page: str) -> doctest.DocTest:
    """Return the examples of a page."""
    text = "\n\n".join(each.text for each in blocks("python") if each.page == page and each not in PROGRAMS)
    return doctest.DocTestParser().get_doctest(text, {}, page, page, 0)


@pytest.mark.parametrize(
    "page",
    sorted({each.page for each in blocks("python")} - {each.page for each in PROGRAMS} - RUN_ELSEWHERE),
)
def test_examples_are_correct(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mpips, "run", on_the_twin, raising=False)
    tables(tmp_path)
    (job,) = (each.text for each in blocks("toml") if each.page == "README.md")
    Path("job.toml").write_text(job.replace("every = 10", "every = 0"))
    # Pages that run a job have other data than those that they show.
    checker = AnyOutput() if "mpips.run(" in TEXTS[page] else doctest.OutputChecker()
    assert doctest.DocTestRunner(checker).run(examples(page)).failed == 0


def test_names_in_the_text_are_there() -> None:
    for page in TEXTS:
        for code in inline(page):
            found = re.match(r"(mpips(?:\.\w+)+)(?:\(|$)", code)
            if found and not (ROOT / found[1]).exists() and not re.match(r"mpips\.(torch|jax)", found[1]):
                dotted(found[1])
