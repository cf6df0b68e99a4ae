"""Escapes control characters in untrusted text before it is printed on a terminal.

Names, manifests, metrics and remote errors may have any content. Printed raw, an escape sequence can overwrite the
screen, set the window's title, or paste into a shell; a right-to-left override can disguise a name.
"""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

_ALLOWED = "\n\t"
_KEPT_ENDS = 150
_LONG_WORD, _LONG_LINE = re.compile(r"\S{401,}"), re.compile(r"[^\n]{4001,}")
_CONTROL_CATEGORIES = ("Cc", "Cs", "Co", "Zl", "Zp")
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Control(str):
    """Text of mpips with control characters for the terminal: streams that escape such characters do not change it."""

    __slots__ = ()

    def __str__(self) -> str:
        """Return itself, so that `print` keeps the type."""
        return self


def printable(text: object, keep: str = _ALLOWED) -> str:
    r"""Return a text in which every control character but those in `keep` is escaped, such as ``\x1b``.

    >>> printable("name\x1b[2J.svm")
    'name\\x1b[2J.svm'
    """
    text = str(text)
    if text.translate(dict.fromkeys(map(ord, keep))).isprintable():
        return text
    return "".join(
        each if each in keep or not _is_control(each) else each.encode("unicode_escape").decode("ascii")
        for each in text
    )


def brief(text: str) -> str:
    """Return a text in which words of over 400 characters, then lines of over 4000, are their beginning and end.

    For messages about names, keys and values of any length; logs and results keep the whole text.

    >>> len(brief(f"{'x' * 100_000}: no such file"))
    339
    """
    for pattern, ends in ((_LONG_WORD, _KEPT_ENDS), (_LONG_LINE, 10 * _KEPT_ENDS)):
        text = pattern.sub(
            lambda found, ends=ends: (  # type: ignore[misc]
                f"{found[0][:ends]}...[{len(found[0]):,} characters]...{found[0][-ends:]}"
            ),
            text,
        )
    return text


def one_line(text: object) -> str:
    """Return a text as one line for people: `printable`, and `brief`."""
    return brief(printable(text, keep=""))


def printable_in(value: Any) -> Any:
    """Return a JSON value with all of its strings, keys included, `printable`."""
    if isinstance(value, dict):
        return {printable(key): printable_in(item) for key, item in value.items()}
    if isinstance(value, list):
        return [printable_in(item) for item in value]
    return printable(value) if isinstance(value, str) else value


def json_text(value: Any) -> str:
    r"""Return indented JSON without control characters; `json` escapes only those below 0x20.

    >>> print(json_text("\x7f"))
    "\u007f"
    """
    return json.dumps(value, indent=2).replace("\x7f", "\\u007f")


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in _CONTROL_CATEGORIES or character in _DIRECTIONS
