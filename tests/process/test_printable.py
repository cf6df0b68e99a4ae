"""Untrusted text on a terminal."""

from __future__ import annotations

import pytest

from mpips.process.printable import brief, one_line, printable


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


def test_long_texts_are_shortened_to_their_ends_and_length() -> None:
    name = "a" + 99_998 * "x" + "b"
    said = one_line(f"{name} is not in\n{name}")
    assert "\n" not in said and len(said) < 1000
    assert said.startswith("axxx") and "x...[100,000 characters]...x" in said and said.endswith("xxb")
    assert brief(" ".join(20_000 * ["ab"])) == f"{500 * 'ab '}...[59,999 characters]...{500 * ' ab'}"
    path = 20 * "/0123456789"
    assert brief(f"{path}: \n {path}") == f"{path}: \n {path}"
