"""Sweeps: lists of values and their combinations, or a file with a task on each line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.config.overrides import override_value
from mpips.config.toml_text import write_toml
from mpips.errors import InputError
from mpips.launch.job_array import from_file, product, split


def test_every_combination_comes_once_and_the_last_varies_fastest() -> None:
    assert product(["a.b=1,2", "c.d=x,y"]) == (
        ("a.b=1", "c.d=x"), ("a.b=1", "c.d=y"), ("a.b=2", "c.d=x"), ("a.b=2", "c.d=y"),
    )  # fmt: skip
    assert product([]) == ()


VALUES = st.one_of(
    st.integers(), st.booleans(), st.text(st.characters(codec="ascii", exclude_characters='\\"'))
)


@given(st.lists(st.one_of(VALUES, st.lists(VALUES, max_size=3)), min_size=1, max_size=4))
def test_lists_of_toml_values_are_cut_between_them_only(values: list[object]) -> None:
    texts = [write_toml({"t": {"v": value}}).split(" = ", 1)[1].strip() for value in values]
    assert [override_value(part) for part in split(",".join(texts))] == values


@pytest.mark.parametrize("sweep", ["a.b", "=1,2", "a.b=", "a.b=1,,2"])
def test_invalid_lists_are_refused(sweep: str) -> None:
    with pytest.raises(InputError, match=r"--sweep .*: write table\.key=A,B,C"):
        product([sweep])


def test_too_many_are_refused() -> None:
    with pytest.raises(InputError, match="1000000 combinations; an array has at most 10000"):
        product([f"a.{key}={','.join(map(str, range(100)))}" for key in "bcd"])


def test_a_list_that_is_given_twice_is_refused() -> None:
    with pytest.raises(InputError, match=r"--sweep a\.b: is given twice"):
        product(["a.b=1,2", "a.c=1", " a.b =3"])


def test_a_file_has_a_task_on_each_line(tmp_path: Path) -> None:
    path = tmp_path / "tasks"
    path.write_text("# first\na.b=1 'c.d=x y'\n\na.b=2 c.d=\"it's\" # last\n")
    assert from_file(path) == (("a.b=1", "c.d=x y"), ("a.b=2", "c.d=it's"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a.b=1\na.b=2 c.d=3\n", ":2: every task must set as many keys (1), this one 2"),
        ("a.b=1\nx\n", ":2: 'x': write table.key=value"),
        ("a.b='1\n", ":1: No closing quotation"),
        ("# nothing\n", "the file has no task"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "tasks"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        from_file(path)
    assert said in str(caught.value) and str(path) in str(caught.value)


def test_no_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        from_file(tmp_path / "none")


def test_a_byte_order_mark_and_line_ends_of_windows_are_no_part_of_a_key(tmp_path: Path) -> None:
    (tmp_path / "tasks").write_bytes(b"\xef\xbb\xbfa.b=1\r\na.b=2\r\n")
    assert from_file(tmp_path / "tasks") == (("a.b=1",), ("a.b=2",))
