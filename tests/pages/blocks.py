"""The documents, their fenced blocks, and the code in their text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
TUTORIALS = "docs/tutorials/"
"""Their blocks are run as they are printed: `tests/tutorials`."""
FENCE = re.compile(r"(?:`([\w.]+)`:\n\n)?^```([^\n]*)\n(.*?)^```$", re.S | re.M)
FORMER = "CHANGELOG.md"
"""What it names need not be there any more."""


class Block(NamedTuple):
    """A fenced block: its page, the file that it is if the line before says so, its language, and the text."""

    page: str
    file: str
    language: str
    text: str

    @property
    def title(self) -> str:
        """Its page, and its first line."""
        return f"{self.page}: {self.text.splitlines()[0] if self.text else ''}"


def texts() -> dict[str, str]:
    """Read all documents, by their path below the root."""
    folders = ("docs", "jobs", "examples", "packaging", "checkpoints", "slurm")
    found = [*ROOT.glob("*.md"), *(path for each in folders for path in (ROOT / each).rglob("*.md"))]
    names = {path.relative_to(ROOT).as_posix(): path for path in found}
    return {name: names[name].read_text() for name in sorted(names) if name != FORMER}


TEXTS = texts()
BLOCKS = [Block(page, *each.groups("")) for page, text in TEXTS.items() for each in FENCE.finditer(text)]


def blocks(language: str) -> list[Block]:
    """Return the blocks of a language."""
    return [each for each in BLOCKS if each.language == language]


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command of a block, without comments."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


def inline(page: str) -> list[str]:
    """Return the code in a page's text, without its blocks."""
    text = FENCE.sub("", TEXTS[page])
    return [re.sub(r"\s+", " ", each) for each in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]
