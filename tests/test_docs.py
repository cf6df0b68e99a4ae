"""The documentation: lengths of pages, what the code says of them, and that the site has all of them.

`make docs` builds the site, with each warning an error; that takes longer than all of this.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from mpips.exit_codes import ExitCode
from mpips.rundir.folder import RESULT

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
MOST_WORDS = 1500
PAGES = [*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *ROOT.glob("[!.]*/README.md"), *ROOT.glob("jobs/*/*.md")]
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}
REFERENCE = {
    "docs/api.md",
    "checkpoints/README.md",
    "CHANGELOG.md",
} | {name for name in TEXTS if name.startswith("docs/reference/")}

spec = importlib.util.spec_from_file_location("generated", DOCS / "generated.py")
assert spec is not None and spec.loader is not None
generated = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generated)


@pytest.mark.parametrize("page", sorted(set(TEXTS) - REFERENCE))
def test_a_page_that_is_no_reference_is_short(page: str) -> None:
    assert len(TEXTS[page].split()) <= MOST_WORDS


@pytest.mark.parametrize("part", generated.PARTS)
def test_what_the_code_says_is_on_a_page(part: str) -> None:
    marked = [name for name, text in TEXTS.items() if f"<!-- generated: {part} -->" in text]
    assert len(marked) == 1
    assert marked[0].startswith("docs/reference/")
    assert len(generated.PARTS[part]().splitlines()) > 5


def test_markers_have_a_part() -> None:
    named = re.findall(r"<!-- generated: (\w+) -->", "".join(TEXTS.values()))
    assert sorted(named) == sorted(generated.PARTS)


def test_the_reference_has_every_key_of_a_result() -> None:
    table = TEXTS["docs/reference/files.md"].partition("## result.json")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.M)) == {name.rstrip("?") for name in RESULT}


def test_the_reference_has_every_exit_code_once() -> None:
    assert re.findall(r"^\| (\d+) \|", generated.codes(), re.M) == [str(code.value) for code in ExitCode]


def test_the_reference_has_every_variable_that_only_mpips_reads() -> None:
    # Those of a parent process for its children are no user's.
    internal = {"MPIPS_SUPERVISED", "MPIPS_KERNEL_CACHE"}
    sources = [path.read_text() for path in (ROOT / "mpips").rglob("*.py") if "jobs" not in path.parts]
    read = set(re.findall(r"\"(MPIPS_[A-Z_]+)\"", "".join(sources))) - internal
    page = TEXTS["docs/reference/environment.md"] + generated.batch_variables()
    assert not {name for name in read if f"`{name}`" not in page}


def test_each_page_is_in_the_site() -> None:
    listed = {"docs/index.md"}
    for name, text in TEXTS.items():
        for block in re.findall(r"```\{toctree\}\n(.*?)```", text, re.S):
            for entry in block.split("\n\n", 1)[-1].split():
                listed.add(((ROOT / name).parent / f"{entry}.md").resolve().relative_to(ROOT).as_posix())
    assert listed == set(TEXTS) - {"README.md"}
