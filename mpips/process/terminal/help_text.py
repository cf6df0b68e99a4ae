"""Texts of `--help`, for the width of a terminal.

They are written for 120 columns. On a narrower terminal paragraphs are filled again, and the meanings of examples and
of entries keep their column. Commands are not broken: they are copied.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Iterator, Sequence

LEAST = 24
"""Characters that a column of meanings needs; else the meanings stand below."""
_ENTRY = re.compile(r"( *\S.*?)( {2,})(\S.*)")


class Formatter(argparse.RawDescriptionHelpFormatter):
    """A formatter of help that fits descriptions to the terminal."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(f"{indent}{line}\n" for line in fitted(text, self._width))


def fitted(text: str, width: int) -> list[str]:
    r"""Return the lines of a text, none longer than `width`, but for commands and words that are longer.

    >>> print(*fitted("A paragraph of two\nlines.\n\n  run JOB    start the ranks of a job", 34), sep="\n")
    A paragraph of two
    lines.
    <BLANKLINE>
      run JOB
          start the ranks of a job
    """
    lines: list[str] = []
    for block in _blocks(text.splitlines()):
        lines += block if all(len(line) <= width for line in block) else list(_narrowed(block, width))
    return lines


def _blocks(lines: Sequence[str]) -> Iterator[list[str]]:
    """Yield paragraphs, and blocks of indented lines; blank lines are blocks of their own."""
    block: list[str] = []
    for line in lines:
        if block and (
            not line.strip() or not block[0].strip() or line[:1].isspace() is not block[0][:1].isspace()
        ):
            yield block
            block = []
        block.append(line)
    if block:
        yield block


def _narrowed(block: Sequence[str], width: int) -> Iterator[str]:
    if not block[0][:1].isspace():
        yield from _wrapped(" ".join(block), width, "", "")
        return
    entries = [_ENTRY.fullmatch(line) for line in block]
    columns = [len(found[1] + found[2]) for found in entries if found is not None]
    column = max(set(columns), key=columns.count, default=0)
    below = width - column < LEAST
    indent = " " * (6 if below else column)
    head, meaning = "", ""
    for line, found in zip(block, entries, strict=True):
        # A meaning may go on in the next line, and have a line of its own.
        if head and not line[:column].strip():
            meaning = f"{meaning} {line.strip()}".strip()
            continue
        if head:
            yield from _entry(head, meaning, width, indent, below)
        head, meaning = (found[1], found[3]) if found is not None else (line, "")
    if head:
        yield from _entry(head, meaning, width, indent, below)


def _entry(head: str, meaning: str, width: int, indent: str, below: bool) -> Iterator[str]:
    if not meaning:
        yield head
    elif below or len(head) + 2 > len(indent):
        yield head
        yield from _wrapped(meaning, width, indent, indent)
    else:
        yield from _wrapped(meaning, width, head.ljust(len(indent)), indent)


def _wrapped(text: str, width: int, first: str, others: str) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=others,
        break_long_words=False,
        break_on_hyphens=False,
    )
