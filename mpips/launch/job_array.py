"""Parameter sweeps: the settings of each task of a job array, from lists of values or from a file."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from mpips.errors import InputError
from mpips.files.safe_open import read_text

MOST = 10000
"""Largest number of tasks of one array; Slurm's own bound (MaxArraySize) is often 1,001."""


def product(sweeps: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return every combination of lists of values; the last list varies fastest.

    Args:
        sweeps: ``table.key=A,B,C`` each; a comma within brackets, braces or quotes is part of a value.

    Raises:
        InputError: a malformed list, or too many combinations.
    """
    if not sweeps:
        return ()
    lists = []
    for sweep in sweeps:
        key, equals, values = sweep.partition("=")
        found = [f"{key.strip()}={value}" for value in split(values)]
        if not equals or not key.strip() or not all(split(values)):
            raise InputError(f"--sweep {sweep}: write table.key=A,B,C, as in sparse_lr.l1=0.1,1,10")
        lists.append(found)
    keys = [found[0].partition("=")[0] for found in lists]
    if twice := next((key for key in keys if keys.count(key) > 1), ""):
        raise InputError(f"--sweep {twice}: is given twice; give all its values in one list")
    number = 1
    for found in lists:
        number *= len(found)
    if number > MOST:
        raise InputError(f"--sweep: {number} combinations; an array has at most {MOST}")
    return tuple(itertools.product(*lists))


def split(text: str) -> list[str]:
    """Split a text at its commas, except within brackets, braces or quotes."""
    parts, depth, quote = [""], 0, ""
    for each in text:
        if quote:
            quote = "" if each == quote else quote
        elif each in "\"'":
            quote = each
        else:
            depth += (each in "[{") - (each in "]}")
        if each == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += each
    return [part.strip() for part in parts]


def from_file(path: str | Path) -> tuple[tuple[str, ...], ...]:
    """Read a task from each line: words ``table.key=value``, quoted as in a shell; `#` starts a comment.

    Raises:
        InputError: names the line.
    """
    try:
        lines = read_text(path, follow=True).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--sweep-file {path}: {getattr(error, 'strerror', None) or error}") from None
    found = tuple(_tasks(path, lines))
    if not found:
        raise InputError(f"--sweep-file {path}: the file has no task")
    if len(found) > MOST:
        raise InputError(f"--sweep-file {path}: {len(found)} tasks; an array has at most {MOST}")
    return found


def _tasks(path: str | Path, lines: Sequence[str]) -> Iterator[tuple[str, ...]]:
    width = 0
    for number, line in enumerate(lines, 1):
        try:
            words = tuple(shlex.split(line, comments=True))
        except ValueError as error:
            raise InputError(f"{path}:{number}: {error}") from None
        if not words:
            continue
        if bad := [word for word in words if "=" not in word]:
            raise InputError(f"{path}:{number}: {bad[0]!r}: write table.key=value")
        width = width or len(words)
        if len(words) != width:
            raise InputError(
                f"{path}:{number}: every task must set as many keys ({width}), this one {len(words)}"
            )
        yield words
