"""The files, packages and sections that docs/architecture.md, push.md and glossary.md name exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = "\n".join((ROOT / "docs" / f"{name}.md").read_text() for name in ("architecture", "push", "glossary"))
DIAGRAMS = set(re.findall(r"\b((?:\w+/)?\w+\.py)\b", "".join(PAGE.split("```")[1::2])))


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:mpips|jobs)/[\w/.]+)`", PAGE))))
def test_the_files_that_it_names_are_there(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("name", sorted(DIAGRAMS))
def test_the_files_of_its_diagrams_are_there(name: str) -> None:
    assert list((ROOT / "mpips").glob(f"**/{name}"))


NUMBER = r"[345]\.\d\b"
SECTIONS = set(re.findall(NUMBER, PAGE.partition("The paper's sections:")[2].partition("|")[0]))
ROWS = [
    (set(re.findall(NUMBER, row)), set(re.findall(r"`((?:mpips|jobs)/[\w/]+\.py)`", files)))
    for row, files in re.findall(r"^\| ([\d., ]+) \|.*?\| (.*) \|$", PAGE, re.M)
]
SOURCES = sorted(path for folder in ("mpips", "jobs") for path in (ROOT / folder).rglob("*.py"))


def cited(text: str) -> set[str]:
    """Find the numbers of the paper's sections in a text: "sections 3.1 to 3.3" has two."""
    lists = re.findall(r"sections?\s((?:[\d.]+|to|and|,|\s)+)", text)
    return {number for each in lists for number in re.findall(NUMBER, each)}


def test_it_lists_the_sections_of_the_paper() -> None:
    assert {section[0] for section in SECTIONS} == {"3", "4", "5"}
    assert set().union(*(sections for sections, _ in ROWS)) <= SECTIONS


def test_files_cite_the_sections_that_there_are_and_where_the_page_has_them() -> None:
    for path in SOURCES:
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
        assert cited(text) <= SECTIONS, name
        said = cited(ast.get_docstring(ast.parse(text)) or "")
        there = set().union(*(sections for sections, files in ROWS if name in files))
        assert not (said and there) or said & there, f"{name} cites {said}, the page {there}"


def test_it_lists_every_package() -> None:
    (table,) = re.findall(r"## The packages\n(.*?)\n# ", PAGE, re.S)
    there = {path.parent.name for path in (ROOT / "mpips").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == there


def test_its_glossary_is_short() -> None:
    terms = re.findall(r"^\| ([a-z ]+) \|", PAGE.partition("# Glossary")[2], re.M)
    assert 0 < len(terms) - 1 <= 25  # without the heading
    assert terms[1:] == sorted(terms[1:])
