"""Every public name, and every public method that programs call, has an example that is run.

Names of `mpips` itself: `tests/test_api.py`, which runs their docstrings and docs/api.md. Those of `mpips.torch`:
`tests/pytorch`, where PyTorch is installed; those of `mpips.jax`: `tests/embedding`.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import mpips
import mpips.data
import mpips.embedding
import mpips.testing

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / "docs" / f"{name}.md" for name in ("api", "python", "programs")),
    *(ROOT / "docs" / "tutorials").glob("*.md"),
]
"""Their Python is run, too."""
CALLED_BY_MPIPS = {
    "Cluster": "close hosts last_checkpoint leads lineage note notify regroup save_vectors settle shards_by_host "
    "worker_is_lost",
    "Column": "fits",
    "Group": "ranks",
    "Job": "digest tables to_toml",
    "RemoteError": "from_meta to_meta",
    "Segment": "advance apply begins_otherwise checked cut export export_state import_state in_slot_order "
    "index_addresses keep listed pull_slots push push_slots scale shaped slots_of taken",
    "Task": "answer finish settled",
}
"""Public methods of classes that programs use, which only mpips itself calls."""
MODULES = {
    "mpips.data": mpips.data.__all__,
    "mpips.embedding": ["Bags", "Dense", "Embedding", "Fetched", "field_keys"],
    "mpips.estimators": ["FactorizationMachine", "LatentDirichletAllocation", "SparseLogisticRegression"],
    "mpips.testing": ["simulate"],
}  # fmt: skip


def found(name: str, module: ModuleType) -> list[doctest.DocTest]:
    """Find the examples of a name of a module."""
    thing = getattr(module, name)
    home = importlib.import_module(getattr(thing, "__module__", module.__name__))
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return []
    return doctest.DocTestFinder().find(thing, name, home)


def methods(of: type) -> set[str]:
    """Name the public methods and properties of a class, and of those of mpips that it is derived from."""
    own = [each for each in of.__mro__ if each.__module__.startswith("mpips.")]
    return {
        name for each in own for name, value in vars(each).items()
        if not name.startswith("_") and isinstance(value, property | classmethod | staticmethod | type(methods))
    }  # fmt: skip


def check_shown(name: str, of: type, examples: str) -> None:
    """Fail if a method that programs call is in no example."""
    called = methods(of) - set(CALLED_BY_MPIPS.get(name, "").split())
    assert not {each for each in called if not re.search(rf"\.{each}\b", examples)}, name


@cache
def shown() -> str:
    """Return the examples of all names of mpips itself, and of the pages."""
    own = [test for name in mpips.__all__ for test in found(name, mpips)]
    texts = [text for page in PAGES for text in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)]
    return "\n".join([*(each.source for test in own for each in test.examples), *texts])


@pytest.mark.parametrize("module", MODULES)
def test_examples_of_a_module_are_correct_and_have_its_names(module: str) -> None:
    if module == "mpips.estimators":
        pytest.importorskip("sklearn")
    loaded = importlib.import_module(module)
    tests = {name: found(name, loaded) for name in MODULES[module]}
    for each in (each for some in tests.values() for each in some):
        assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(each).failed == 0
    sources = {
        name: "".join(each.source for test in some for each in test.examples) for name, some in tests.items()
    }
    for name, source in sources.items():
        thing: Any = getattr(loaded, name)
        whole = source + "".join(sources.values())
        assert re.search(rf"\b{name}\b", whole), f"{module}.{name} is in no example"
        if inspect.isclass(thing):
            check_shown(name, thing, whole)


@pytest.mark.parametrize("name", [name for name in mpips.__all__ if inspect.isclass(getattr(mpips, name))])
def test_methods_of_public_classes_have_examples(name: str) -> None:
    check_shown(name, getattr(mpips, name), shown())


@pytest.mark.parametrize("module", ["torch", "jax"])
def test_names_for_frameworks_have_examples(module: str) -> None:
    """By their text: PyTorch is not installed everywhere, and after JAX this process could not fork."""
    tree = ast.parse((ROOT / "mpips" / f"{module}.py").read_text())
    public = [
        node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)
        if node.name == "_Rows" or not node.name.startswith("_")
    ]  # fmt: skip
    docs = "\n".join(ast.get_docstring(node) or "" for node in public)
    lines = "\n".join(re.findall(r"^ *(?:>>>|\.\.\.) .*$", docs, re.M))
    for node in public:
        assert node.name == "_Rows" or re.search(rf"\b{node.name}\b", lines), node.name
        for each in node.body if isinstance(node, ast.ClassDef) else []:
            # A module is called, which calls `forward`.
            if isinstance(each, ast.FunctionDef) and not each.name.startswith("_") and each.name != "forward":
                assert re.search(rf"\.{each.name}\b", lines), f"{node.name}.{each.name}"
