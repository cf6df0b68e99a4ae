"""Errors in one line."""

from __future__ import annotations

from mpips.errors import InputError, in_a_line


class Odd(Exception):
    """A program's exception, whose text fails."""

    def __str__(self) -> str:
        raise ZeroDivisionError


def test_an_error_is_one_line_also_if_its_text_fails() -> None:
    assert in_a_line(ValueError("two\nlines:")) == "ValueError: two lines"
    assert in_a_line(InputError("a.svm:3: no label")) == "a.svm:3: no label"
    assert in_a_line(FileNotFoundError(2, "No such file", "a.svm")) == "a.svm: No such file"
    assert in_a_line(Odd()) == "Odd: (its text cannot be made: ZeroDivisionError)"
