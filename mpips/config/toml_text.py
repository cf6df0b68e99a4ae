"""TOML as text: files of it, the line of a key, and tables written as TOML."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpips import typed
from mpips.errors import InputError
from mpips.files.safe_open import read_text

_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*')"""
_DOTTED = rf"{_KEY}(?:\s*\.\s*{_KEY})*"
_HEADER = re.compile(rf"\s*(\[\[?)\s*({_DOTTED})\s*\]")
_ENTRY = re.compile(rf"\s*({_DOTTED})\s*=")


LARGEST = 1 << 24
"""Largest size of a TOML file in bytes."""


def read_toml(path: Path, what: str, kind: type[InputError] = InputError) -> tuple[str, dict[str, Any]]:
    """Read a TOML file; return its text and its tables.

    Raises:
        InputError: of that `kind`; the text names the file, the line, and `what` the file is.
    """
    try:
        text = read_text(path, follow=True, most=LARGEST)
        return text, typed.toml(text)
    except FileNotFoundError:
        raise kind(f"{path}: no such {what}") from None
    except OSError as error:
        raise kind(f"{path}: the {what} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise kind(f"{path}: the {what} is not UTF-8 text (byte {error.start})") from None
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"\(at line (\d+), column \d+\)", str(error))
        line = f":{found[1]}" if found else ""
        raise kind(f"{path}{line}: not TOML: {str(error).split(' (at ')[0]}") from None


def line_of(text: str, path: typed.Path) -> int | None:
    """Return the line (from 1) of a path of a TOML text, or of the nearest enclosing table."""
    lines: dict[typed.Path, int] = {}
    table: typed.Path = ()
    counts: dict[typed.Path, int] = {}
    quoted = False
    for number, line in enumerate(text.splitlines(), 1):
        inside, quoted = quoted, quoted ^ (max(line.count('"""'), line.count("'" * 3)) % 2 == 1)
        if inside:
            continue
        if header := _HEADER.match(line):
            table = _split(header[2])
            if header[1] == "[[":
                counts[table] = counts.get(table, -1) + 1
                lines.setdefault(table, number)
                table = (*table, counts[table])
            lines.setdefault(table, number)
        elif entry := _ENTRY.match(line):
            lines.setdefault(table + _split(entry[1]), number)
    return next((lines[path[:length]] for length in range(len(path), 0, -1) if path[:length] in lines), None)


def _split(name: str) -> typed.Path:
    return tuple(part.strip("\"'") for part in re.findall(_KEY, name))


def write_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Return tables of plain values as TOML."""
    blocks = []
    for name, table in tables.items():
        lines = [f"{_name(key)} = {toml_value(value)}" for key, value in table.items()]
        blocks.append("\n".join([f"[{_name(name)}]", *lines]) + "\n")
    return "\n".join(blocks)


def _name(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)


def toml_value(value: Any) -> str:
    """Return a plain value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_name(key)} = {toml_value(item)}" for key, item in value.items()) + "}"
    return repr(value)
