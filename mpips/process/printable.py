"""Text of others made fit for a terminal: control characters are shown as escapes, not obeyed.

Names, manifests, metrics and remote errors may hold anything. Printed raw, an escape sequence can overwrite what stands
on the screen, set the window's title, or paste into a shell; a right-to-left override can show a name that is another.
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any

_KEPT = "\n\t"
_BAD = ("Cc", "Cs", "Co", "Zl", "Zp")
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Control(str):
    """Text of our own that is to act on a terminal: streams that show control characters leave it as it is."""

    __slots__ = ()

    def __str__(self) -> str:
        """Give itself, so that it is still known by `print`."""
        return self


def printable(text: object, keep: str = _KEPT) -> str:
    r"""Give a text in which every control character but those in `keep` is an escape such as ``\x1b``.

    >>> printable("name\x1b[2J.svm")
    'name\\x1b[2J.svm'
    """
    text = str(text)
    if text.translate(dict.fromkeys(map(ord, keep))).isprintable():
        return text
    return "".join(
        each if each in keep or not _is_bad(each) else each.encode("unicode_escape").decode("ascii")
        for each in text
    )


def printable_in(value: Any) -> Any:
    """Give what JSON can hold with all texts in it, keys too, `printable`."""
    if isinstance(value, dict):
        return {printable(key): printable_in(item) for key, item in value.items()}
    if isinstance(value, list):
        return [printable_in(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def json_text(value: Any) -> str:
    r"""Write JSON for people and programs: it has no control characters, which JSON lets stand if they are not ASCII's.

    >>> print(json_text("\x7f"))
    "\u007f"
    """
    return json.dumps(value, indent=2).replace("\x7f", "\\u007f")


def _is_bad(character: str) -> bool:
    return unicodedata.category(character) in _BAD or character in _DIRECTIONS
