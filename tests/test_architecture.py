"""What docs/architecture.md says of files and packages is so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text()
DIAGRAMS = set(re.findall(r"\b((?:\w+/)?\w+\.py)\b", "".join(PAGE.split("```")[1::2])))


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:mpips|jobs)/[\w/.]+)`", PAGE))))
def test_the_files_that_it_names_are_there(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("name", sorted(DIAGRAMS))
def test_the_files_of_its_diagrams_are_there(name: str) -> None:
    assert list((ROOT / "mpips").glob(f"**/{name}"))


def test_it_lists_every_package() -> None:
    (table,) = re.findall(r"## The packages\n(.*?)\n## ", PAGE, re.S)
    there = {path.parent.name for path in (ROOT / "mpips").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == there


def test_its_glossary_is_short() -> None:
    terms = re.findall(r"^\| ([a-z ]+) \|", PAGE.partition("## Glossary")[2], re.M)
    assert 0 < len(terms) - 1 <= 25  # without the heading
    assert terms[1:] == sorted(terms[1:])
