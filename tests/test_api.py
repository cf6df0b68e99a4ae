"""The public names: docs/api.md lists the names of `mpips`, and programs import nothing else."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

import mpips
from mpips.config.program import built_in, load_program
from mpips.filters.filter import known
from mpips.storage import updates

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "api.md"
NAMES = [name for name in mpips.__all__ if name != "__version__"]
PROGRAMS = [*(ROOT / "jobs").rglob("*.py"), *(ROOT / "tests" / "jobs" / "programs").glob("*.py")]
TEXTS = {
    f"{path.name}:{number}": text
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "jobs").glob("*/*.md")]
    for number, text in enumerate(re.findall(r"```python\n(?!>>>)(.*?)```", path.read_text(), re.S))
}
SOURCES = {str(path.relative_to(ROOT)): path.read_text() for path in PROGRAMS} | TEXTS
OWN_TESTS = {"mpips.bench.scaling._requesting"}
"""What programs of the tests use besides: it watches the mechanism itself."""


def test_the_page_lists_every_public_name_once_and_no_other() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), re.M)
    assert sorted(listed) == sorted(NAMES)


def test_type_checkers_see_the_names_that_there_are() -> None:
    (block,) = [
        node for node in ast.parse(Path(mpips.__file__).read_text()).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]  # fmt: skip
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for each in node.names:
            assert each.asname == each.name
            seen[each.name] = f"{node.module}.{each.name}"
    homes = mpips._MODULES | {name: f"{home}.{name}" for name, home in mpips._HOME.items()}  # type: ignore[attr-defined]
    assert seen == homes


@pytest.mark.parametrize("source", SOURCES)
def test_programs_import_public_names_only(source: str) -> None:
    for node in ast.walk(ast.parse(SOURCES[source])):
        if isinstance(node, ast.Import):
            assert not [each.name for each in node.names if each.name.partition(".")[0] == "mpips"]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            module = node.module
            if module == "mpips":
                assert {each.name for each in node.names} <= set(NAMES)
            elif module.startswith("mpips.") and not (source.startswith("tests") and module in OWN_TESTS):
                assert re.match(r"mpips\.(data|embedding|jax|jobs|testing|torch)(\.|$)", module)


@pytest.mark.parametrize("name", NAMES)
def test_each_public_name_has_a_docstring(name: str) -> None:
    thing: Any = getattr(mpips, name)
    if inspect.isclass(thing):
        own = [
            each
            for each, value in vars(thing).items()
            if not each.startswith("_") and inspect.isroutine(value)
        ]
        assert thing.__doc__
        assert not [each for each in own if not getattr(thing, each).__doc__]
    elif inspect.isroutine(thing) or inspect.ismodule(thing):
        assert thing.__doc__


@pytest.fixture
def registered() -> Iterator[None]:
    """Forget the updates, calls and filters that examples register; not those of programs that they load."""
    for program in built_in():
        if program != "ctr" or find_spec("torch"):
            load_program(program, Path())
    with patch.dict(updates._updates), patch.dict(updates._calls), patch.dict(known):
        yield


def examples(name: str) -> list[doctest.DocTest]:
    """Find the examples in the docstrings of a public name."""
    thing: Any = getattr(mpips, name)
    if not (inspect.isclass(thing) or inspect.isfunction(thing) or inspect.ismodule(thing)):
        return []
    return doctest.DocTestFinder().find(thing, name, extraglobs={"mpips": mpips})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("registered")
def test_the_examples_of_docstrings_are_correct(name: str) -> None:
    for test in examples(name):
        assert doctest.DocTestRunner().run(test).failed == 0


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_used_in_an_example_of_its_own_or_of_the_page(name: str) -> None:
    page = doctest.DocTestParser().get_examples(PAGE.read_text())
    tried = [*page, *(example for test in examples(name) for example in test.examples)]
    assert any(re.search(rf"\b{name}\b", example.source) for example in tried)


@pytest.mark.usefixtures("registered")
def test_the_examples_of_the_page_are_correct() -> None:
    failed, tried = doctest.testfile(str(PAGE), module_relative=False)
    assert tried
    assert not failed
