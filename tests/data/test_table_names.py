"""Keys of tables have the names of their columns and texts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpips.data import DataSpec, read
from mpips.data.read import encoding_of, format_of
from mpips.data.tables.names import key_names
from mpips.errors import DataError
from mpips.keys import numbers, text_keys

pytest.importorskip("pyarrow")

ROWS = [
    ("age", "city", "job", "pay", "y"),
    ("20", '"New York, NY"', "cook", "1.5", "1"),
    ("31", "Rome", "", "3.5", "0"),
    ("", "Rome", "cook", "", "0"),
    ("40", "\"two\nlines\"", "smith", "0.5", "1"),
]  # fmt: skip


def expected(row: tuple[str, ...], edges: tuple[float, ...]) -> set[str]:
    """Name the keys of a row that have a value."""
    age, city, job, pay, _ = row
    named = {"constant", "pay" if pay else "pay is missing"}
    bounds = [-math.inf, *edges, math.inf]
    at = next((at for at in range(len(bounds) - 1) if age and bounds[at] <= float(age) < bounds[at + 1]), -1)
    low, high = (
        (f"age >= {bounds[at]:g}" if at else ""),
        (f"age < {bounds[at + 1]:g}" if at < len(edges) else ""),
    )
    years = (
        "age is missing"
        if at < 0
        else " and ".join(filter(None, [low, high.removeprefix("age ") if low else high]))
    )
    named |= {years, f"city={city.strip(chr(34)).replace(chr(10), '?')}"}
    if job:
        named |= {f"job={job}", f"{next(each for each in named if each.startswith('city='))} & job={job}"}
    return named


@pytest.mark.parametrize("key_bits", [64, 128])
def test_each_key_of_a_row_is_named_after_what_it_is(tmp_path: Path, key_bits: int) -> None:
    path = tmp_path / "a.csv"
    path.write_text("".join(",".join(row) + "\n" for row in ROWS))
    how: dict[str, Any] = {"numeric": {"age": "quantiles", "pay": "standard"}, "crosses": [["city", "job"]]}
    spec = DataSpec(train=[str(path)], label="y", key_bits=key_bits, **how)
    encoding = encoding_of(spec.train, spec)
    assert encoding is not None
    (batch,) = read(spec.train, spec, encoding=encoding)
    files = [(str(path), format_of(str(path), spec))]
    for row, begin, end in zip(ROWS[1:], batch.indptr, batch.indptr[1:], strict=False):
        names = key_names(files, spec, encoding, batch.keys[begin:end])
        assert set(names) == expected(row, encoding.numeric[0].edges) and len(names) == end - begin
    foreign = text_keys(["foreign"])
    foreign = foreign if key_bits == 128 else foreign["high"].copy()
    assert key_names(files, spec, encoding, foreign) == [""] and len(numbers(foreign)) == 1
    assert len(np.unique(batch.keys)) == len({*key_names(files, spec, encoding, np.unique(batch.keys))})


def test_names_of_any_columns_and_files_that_have_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('"ci\tty",job,y\nRome,cook,1\nOslo,smith,0\n')
    spec = DataSpec(train=[str(path)], label="y", crosses=[["ci\tty", "job"]])
    encoding = encoding_of(spec.train, spec)
    (batch,) = read(spec.train, spec, encoding=encoding)
    assert encoding is not None
    named = key_names([(str(path), "csv")], spec, encoding, batch.keys)
    assert "ci?ty=Rome" in named
    assert "ci?ty=Oslo & job=smith" in named
    path.write_text("job,y\ncook,1\n")
    with pytest.raises(DataError, match=r"has no column 'ci.tty'"):
        key_names([(str(path), "csv")], spec, encoding, batch.keys)
