"""The tutorials' files and commands, run as they are printed, with the output that the pages show.

A fenced block after a line that ends in "`NAME`:" is that file. `sh` blocks are run, one shell each, in an empty folder
with an empty home; a `text` block after one is its output, and one without a language its messages, in which `...`
stands for anything. `console` blocks need a cluster: here only their options are checked.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from mpips.cli.main import parser

if TYPE_CHECKING:
    from conftest import Started

PAGES = Path(__file__).parents[2] / "docs" / "tutorials"
FENCE = re.compile(r"(?:`([\w.]+)`:\n\n)?^```(\w*)\n(.*?)^```$", re.S | re.M)
CHAINS = [("first-run", "slurm", "rank-dies", "report"), ("own-data",), ("own-program",)]
"""Pages that continue in the folder of another one come after it."""
SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Block(NamedTuple):
    """A fenced block: the file's name if it is one, the language, and the text."""

    file: str
    language: str
    text: str


class Step(NamedTuple):
    """Commands, with the output and the messages that the page shows."""

    commands: str
    output: str = "..."
    messages: str = "..."


def blocks(page: str) -> list[Block]:
    return [Block(*found.groups("")) for found in FENCE.finditer((PAGES / f"{page}.md").read_text())]


def steps(page: str) -> Iterator[Block | Step]:
    step: Step | None = None
    for block in blocks(page):
        if step and not block.file and block.language == "text":
            step = step._replace(output=block.text)
            continue
        if step and not block.file and not block.language:
            step = step._replace(messages=f"...{block.text.rstrip()}...")
            continue
        if step:
            yield step
        step = Step(block.text) if block.language == "sh" else None
        if block.file:
            yield block
    if step:
        yield step


def test_all_pages_are_run() -> None:
    assert {page.stem for page in PAGES.glob("*.md")} - {"index"} == {
        page for chain in CHAINS for page in chain
    }


@pytest.mark.drawn(2)
@pytest.mark.ranks
@pytest.mark.once
@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: chain[0])
def test_its_commands_do_what_the_page_says(
    chain: tuple[str, ...], tmp_path: Path, start: Callable[..., Started]
) -> None:
    home, folder = tmp_path / "home", tmp_path / "empty"
    home.mkdir()
    folder.mkdir()
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environ = {"HOME": str(home), "PATH": path, "COLUMNS": "120"}
    for step in (step for page in chain for step in steps(page)):
        if isinstance(step, Block):
            (folder / step.file).write_text(step.text)
            continue
        done = start(["bash", "-e", "-c", step.commands], cwd=folder, environ=environ).finish(180)
        said = f"{step.commands}\n--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}"
        assert done.code == 0, said
        same = doctest.OutputChecker().check_output
        assert same(step.output, done.stdout, SAME), f"expected:\n{step.output}\n{said}"
        assert same(step.messages, done.stderr, SAME), f"expected:\n{step.messages}\n{said}"


@pytest.mark.parametrize("page", [page for chain in CHAINS for page in chain])
def test_commands_that_are_not_run_are_valid(page: str) -> None:
    for block in blocks(page):
        for line in block.text.splitlines() if block.language == "console" else []:
            if line.startswith("mpips "):
                _, rest = parser().parse_known_args(shlex.split(line, comments=True)[1:])
                assert not rest
