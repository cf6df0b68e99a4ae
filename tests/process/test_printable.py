"""Others' text on a terminal."""

from __future__ import annotations

import pytest

from mpips.process.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, größer, 数", "plain, größer, 数"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b]0;title\x07\x9b2J\r", r"\x1b]0;title\x07\x9b2J\r"),
        ("a\u202egnp.exe", r"a\u202egnp.exe"),
        ("\u2028\x7f\udc80", r"\u2028\x7f\udc80"),
        (3, "3"),
    ],
)
def test_control_characters_are_escapes(text: object, shown: str) -> None:
    assert printable(text) == shown


def test_one_line_keeps_no_line_end() -> None:
    assert printable("a\nb\tc", keep="") == r"a\nb\tc"
