"""Fields of keys: lines of libffm, columns of text and tables, crosses, and HDF5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpips import DataError
from mpips.data import DataSpec, Examples, concatenate, format_of, read
from mpips.data.convert import convert

cells = st.dictionaries(
    st.integers(0, 2**64 - 1),
    st.tuples(st.integers(0, 9), st.sampled_from(["1", "0.5", "-2e3", "1.0000000596046448", "1e-40"])),
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["1", "0", "-1"]), cells), min_size=1, max_size=5), st.randoms())
def test_lines_of_libffm_in_any_order(tmp_path_factory: Any, lines: list[Any], random: Any) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.ffm"
    text = []
    for label, row in lines:
        words = [f"{field}:{key}:{value}" for key, (field, value) in row.items()]
        random.shuffle(words)
        text.append(" ".join([label, *words]))
    path.write_text("\n".join(text) + "\n")
    found = concatenate(read([str(path)], DataSpec()))
    assert found.fields is not None
    assert found.labels.tolist() == [1.0 if label == "1" else -1.0 for label, _ in lines]
    values = np.ones(len(found.keys), np.float32) if found.values is None else found.values
    for at, (_, row) in enumerate(lines):
        part = slice(found.indptr[at], found.indptr[at + 1])
        expected = [(key, field, np.float32(float(value))) for key, (field, value) in sorted(row.items())]
        rows = zip(found.keys[part].tolist(), found.fields[part].tolist(), values[part], strict=True)
        assert list(rows) == expected


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("1 1:2", r"'1:2' is not of the form field:id:value, as in 2:7:0.5"),
        ("1 1:2:1 3:2:1", r"id in '3:2:1' comes twice in the line"),
        ("1 1048576:2:1", r"with a field below 1,048,576"),
        ("1 a:2:1", r"'a:2:1' is not of the form field:id:value"),
        ("1 1:2:x", r"value in '1:2:x' is not a number; expected field:id:value, as in 2:7:0.5"),
        ("3 1:2:1", r"label '3' is not one of"),
    ],
)
def test_wrong_lines_of_libffm(tmp_path: Path, line: str, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"1 1:2:1\n{line}\n")
    assert format_of(str(path), DataSpec()) == "libffm"
    with pytest.raises(DataError, match=rf"a.txt:2: .*{text}"):
        list(read([str(path)], DataSpec()))


def test_a_long_line_is_sorted_within_a_bound(tmp_path: Path) -> None:
    """Moving each id to the beginning of a line of 16 MB takes hours, in which no signal is heeded."""
    path = tmp_path / "a.ffm"
    for n in (4000, 100_000):
        path.write_text("1 " + " ".join(f"0:{key}:1" for key in range(n, 0, -1)) + "\n")
        if n == 4000:
            assert concatenate(read([str(path)], DataSpec())).keys.tolist() == list(range(1, n + 1))
        else:
            with pytest.raises(
                DataError, match=r"a.ffm:1: id in '0:\d+:1' is too far out of order: sort the ids"
            ):
                list(read([str(path)], DataSpec()))
    # An id that is out of place costs its distance only.
    path.write_text("1 " + " ".join(f"0:{key}:1" for key in (*range(1, n), 0)) + "\n")
    assert concatenate(read([str(path)], DataSpec())).keys.tolist() == list(range(n))


def fields_by_column(found: Examples) -> list[dict[int, int]]:
    assert found.fields is not None
    return [
        dict(zip(found.keys[a:b].tolist(), found.fields[a:b].tolist(), strict=True))
        for a, b in zip(found.indptr[:-1], found.indptr[1:], strict=True)
    ]


def test_a_column_or_a_cross_is_a_field(tmp_path: Path) -> None:
    """The keys with fields are those without; the key of one column alone tells which is which."""
    rows = tmp_path / "a.tsv"
    rows.write_text("1\tx\t\tz\n0\tx\ty\tq\n")
    spec = DataSpec(crosses=[[0, 2], [1, 2]])
    plain, found = (concatenate(read([str(rows)], spec, fields=with_them)) for with_them in (False, True))
    assert np.array_equal(plain.keys, found.keys) and plain.fields is None
    assert [sorted(row.values()) for row in fields_by_column(found)] == [[0, 2, 3], [0, 1, 2, 3, 4]]
    only = tmp_path / "b.tsv"
    only.write_text("1\tx\t\t\n")
    ((key,),) = [each.keys.tolist() for each in read([str(only)], DataSpec())]
    assert all(row[key] == 0 for row in fields_by_column(found))


def test_columns_of_a_table_are_fields(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("y,a,n,b\n1,x,2,\n0,x,,v\n1,w,4,v\n")
    spec = DataSpec(train=str(table), label="y", numeric=["n"], crosses=[["a", "b"]])
    plain, found = (concatenate(read([str(table)], spec, fields=with_them)) for with_them in (False, True))
    assert np.array_equal(plain.keys, found.keys) and plain.values is not None and found.values is not None
    assert np.array_equal(plain.values, found.values)
    # Numbers first, then categories, the column of ones, and the cross.
    all_of = [0, 1, 2, 3, 4]
    assert [sorted(row.values()) for row in fields_by_column(found)] == [[0, 1, 3], all_of, all_of]


def test_hdf5_keeps_fields(tmp_path: Path) -> None:
    lines, packed, plain = tmp_path / "a.ffm", tmp_path / "a.h5", tmp_path / "b.h5"
    lines.write_text("1 3:9:2 0:1:1\n-1 1:4:1\n0\n")
    convert([str(lines)], str(packed), DataSpec())
    one, other = (concatenate(read([str(path)], DataSpec(), fields=True)) for path in (lines, packed))
    for name in ("labels", "indptr", "keys", "values", "fields"):
        assert np.array_equal(getattr(one, name), getattr(other, name))
    (tmp_path / "a.svm").write_text("1 3:1\n")
    convert([str(tmp_path / "a.svm")], str(plain), DataSpec())
    with pytest.raises(DataError, match=r"b.h5: has no data set fields"):
        list(read([str(plain)], DataSpec(), fields=True))
