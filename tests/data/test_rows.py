"""The reader of delimited categories: the documented hash, header, crosses, missing fields, bad rows."""

from __future__ import annotations

import itertools
import lzma
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpips.data import DataSpec, Examples, Tally, concatenate, read, text
from mpips.data.convert import convert
from mpips.errors import DataError, InputError, JobError

quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
MASK = 2**64 - 1


def mix(word: int) -> int:
    word = (word + 0x9E3779B97F4A7C15) & MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & MASK
    return word ^ (word >> 31)


def key_of(column: int, field: bytes) -> int:
    """The formula as the kernels' text gives it, in plain integers."""
    hashed = mix(column)
    full = len(field) // 8
    for i in range(full):
        hashed = mix(hashed ^ int.from_bytes(field[8 * i : 8 * i + 8], "little"))
    return mix(hashed ^ int.from_bytes(field[8 * full :], "little") ^ ((len(field) & 255) << 56))


def cross_of(keys: list[int], start: int = 0) -> int:
    hashed = mix(start + (1 << 32) + len(keys))
    for key in keys:
        hashed = mix(hashed ^ key)
    return hashed


def loads(
    path: Path, content: str | bytes, spec: DataSpec | None = None, part: int = 0, parts: int = 1
) -> Examples:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return concatenate(read([str(path)], spec or DataSpec(), part, parts))


@pytest.fixture
def tsv(tmp_path: Path) -> Path:
    return tmp_path / "data.tsv"


fields = st.one_of(
    st.sampled_from([b"", b"0", b"1", b"68fd1e64"]),
    st.binary(max_size=20).map(lambda word: bytes(byte for byte in word if byte not in b"\t\r\n")),
    st.binary(min_size=250, max_size=270).map(
        lambda word: bytes(byte for byte in word if byte not in b"\t\r\n")
    ),
)


@quick
@given(
    st.integers(1, 5).flatmap(
        lambda columns: st.lists(
            st.tuples(
                st.sampled_from([b"0", b"1", b"-1", b"+1"]),
                st.lists(fields, min_size=columns, max_size=columns),
            ),
            min_size=1,
            max_size=8,
        )
    ),
    st.sampled_from([b"\n", b"\r\n"]),
    st.integers(1, 3),
    st.integers(3, 60),
)
def test_keys_are_those_of_the_documented_hash(
    tsv: Path, rows: list[tuple[bytes, list[bytes]]], newline: bytes, parts: int, size: int
) -> None:
    columns = len(rows[0][1])
    crosses: list[list[str | int]] = [[0, 1], [columns - 1, 0]] if columns > 1 else []
    tsv.write_bytes(newline.join(b"\t".join([label, *row]) for label, row in rows) + newline)
    spec = DataSpec(crosses=crosses, header=False)
    wanted = []
    for _, row in rows:
        keys = [key_of(i, field) if field else 0 for i, field in enumerate(row)]
        crossed = [
            cross_of([keys[int(i)] for i in cross]) for cross in crosses if all(keys[int(i)] for i in cross)
        ]
        wanted.append(sorted({key for key in keys if key} | set(crossed)))
    found = concatenate(read([str(tsv)], spec))
    assert found.values is None
    assert [found.keys[a:b].tolist() for a, b in zip(found.indptr, found.indptr[1:], strict=False)] == wanted
    assert found.labels.tolist() == [1.0 if label in (b"1", b"+1") else -1.0 for label, _ in rows]
    for part in range(parts):
        # the first line gives the number of columns, so a block must hold it whole
        mine = concatenate(text.read_rows(str(tsv), spec, 0, part, parts, Tally(), max(size, 300 * columns)))
        assert [mine.rows(i, i + 1).keys.tolist() for i in range(len(mine))] == wanted[part::parts]


@quick
@given(
    st.lists(st.lists(fields, min_size=3, max_size=3), min_size=1, max_size=8),
)
def test_keys_of_128_bits_have_another_hash_below_the_same(tsv: Path, rows: list[list[bytes]]) -> None:
    tsv.write_bytes(b"\n".join(b"\t".join([b"1", *row]) for row in rows) + b"\n")
    lower, wanted = 1 << 40, []
    for row in rows:
        keys = [(key_of(i, field), key_of(lower + i, field)) for i, field in enumerate(row)]
        crossed = [tuple(cross_of([keys[i][half] for i in (2, 0)], half * lower) for half in (0, 1))]
        listed = [key for key, field in zip(keys, row, strict=True) if field]
        wanted.append(sorted({*listed, *(crossed if row[2] and row[0] else [])}))
    found = concatenate(read([str(tsv)], DataSpec(crosses=[[2, 0]], header=False, key_bits=128)))
    assert [found.keys[a:b].tolist() for a, b in itertools.pairwise(found.indptr)] == wanted


def test_files_that_are_not_hashed_have_64_bits(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.svm: \[data\] key_bits = 128 needs columns that are hashed"):
        loads(tmp_path / "a.svm", "1 3:1\n", DataSpec(key_bits=128))
    with pytest.raises(JobError, match="key_bits = 96: must be 64 or 128"):
        DataSpec(key_bits=96)
    (tmp_path / "a.tsv").write_text("1\tx\n")
    with pytest.raises(InputError, match="keys of converted examples have 64 bits"):
        convert(str(tmp_path / "a.tsv"), str(tmp_path / "a.h5"), DataSpec(key_bits=128))


def test_a_wide_row_is_sorted(tsv: Path) -> None:
    row = [f"v{i}" for i in range(3000)]
    found = loads(tsv, "\t".join(["1", *row]) + "\n")
    assert found.keys.tolist() == sorted(key_of(i, field.encode()) for i, field in enumerate(row))


def test_header_is_found_and_names_columns_for_crosses(tsv: Path) -> None:
    spec = DataSpec(crosses=[["site", "hour"]])
    found = loads(tsv, "label\thour\tsite\n1\t7\ta\n0\t\tb\n", spec)
    hour, site = key_of(0, b"7"), key_of(1, b"a")
    assert found.keys[:3].tolist() == sorted([hour, site, cross_of([site, hour])])
    assert found.keys[3:].tolist() == [key_of(1, b"b")]
    assert found.labels.tolist() == [1, -1]


def test_header_can_be_declared(tsv: Path) -> None:
    assert len(loads(tsv, "0\t1\n1\ta\n", DataSpec(header=True))) == 1
    with pytest.raises(DataError, match=r"data.tsv:1: label 'y' is not one of"):
        loads(tsv, "y\ta\n1\tb\n", DataSpec(header=False))


def test_separator(tmp_path: Path) -> None:
    comma = loads(tmp_path / "a.csv", "1,x,y\n", DataSpec(separator=","))
    tab = loads(tmp_path / "a.tsv", "1\tx\ty\n")
    assert comma.keys.tolist() == tab.keys.tolist()
    with pytest.raises(DataError, match=r"found one column.*separator.*needs \[data\] label"):
        loads(tmp_path / "a.csv", "1,x,y\n")


@pytest.mark.parametrize("word", ["0", "1", "2", "3", "17", "1e3", "123456789", "-1", "2.5"])
def test_log_buckets(tsv: Path, word: str) -> None:
    found = loads(tsv, f"1\t{word}\tx\n", DataSpec(log_buckets=[0]))
    if float(word) > 2:
        bucket = math.floor(math.log(float(word)) ** 2)
        wanted = mix(mix(0) ^ (bucket | 255 << 56))
    else:
        wanted = key_of(0, word.encode())
    assert sorted(found.keys.tolist()) == sorted([wanted, key_of(1, b"x")])


@pytest.mark.parametrize(
    "line, wanted",
    [
        ("1\ta", "found 2 columns where the first line has 3"),
        ("1\ta\tb\tc", "found 4 columns where the first line has 3"),
        ("1", "found 1 columns"),
        ("2\ta\tb", "label '2'"),
        ("\ta\tb", "label ''"),
        (" ", "label ' '"),
        ("1 \ta\tb", "label '1 '"),
    ],
)
def test_bad_row_is_named_or_skipped(tsv: Path, line: str, wanted: str) -> None:
    content = f"label\tx\ty\n1\tp\tq\n\n{line}\n0\tr\ts\n"
    with pytest.raises(DataError) as caught:
        loads(tsv, content)
    assert str(caught.value).startswith(f"{tsv}:4: ") and wanted in str(caught.value)
    tally = Tally()
    kept = concatenate(read([str(tsv)], DataSpec(on_error="skip"), tally=tally))
    assert (len(kept), tally.examples, tally.skipped) == (2, 2, 1)
    assert set(kept.keys.tolist()) == {key_of(0, b"p"), key_of(1, b"q"), key_of(0, b"r"), key_of(1, b"s")}


def test_bad_number_in_a_bucket_column(tsv: Path) -> None:
    with pytest.raises(
        DataError, match=r":2: 'x7' in a column of \[data\] log_buckets is not a finite number"
    ):
        loads(tsv, "1\t5\n1\tx7\n", DataSpec(log_buckets=[0]))


def test_unknown_columns(tsv: Path) -> None:
    with pytest.raises(JobError, match=r"column 'z' is not in .*its columns are x, y"):
        loads(tsv, "label\tx\ty\n1\t1\t2\n", DataSpec(crosses=[["x", "z"]]))
    with pytest.raises(JobError, match=r"it has no header"):
        loads(tsv, "1\t1\t2\n", DataSpec(crosses=[["x", "z"]]))
    with pytest.raises(JobError, match=r"column 7: .* columns 0 to 1"):
        loads(tsv, "1\t1\t2\n", DataSpec(log_buckets=[7]))


@pytest.mark.parametrize("content", ["label\tx\n", "\n\n", "\n1\tx\n"])
def test_no_rows(tsv: Path, content: str) -> None:
    with pytest.raises(DataError, match=r"holds no examples|is blank"):
        loads(tsv, content)


@settings(quick, max_examples=100)
@given(
    st.lists(st.sampled_from(b"1|0|\t|\t\t|\n|\r|\r\n|x|long field|\xff\x00".split(b"|")), max_size=40).map(
        b"".join
    )
)
def test_garbage_is_counted_row_by_row(tsv: Path, content: bytes) -> None:
    content = b"label\ta\tb\n" + content
    tally = Tally()
    tsv.write_bytes(content)
    found = concatenate(text.read_rows(str(tsv), DataSpec(on_error="skip"), 0, 0, 1, tally, 16))
    lines = [line.removesuffix(b"\r") for line in content.split(b"\n")[1:]]
    rows = [line.split(b"\t") for line in lines if line]
    good = [row for row in rows if len(row) == 3 and is_label(row[0])]
    assert (len(found), tally.skipped) == (len(good), len(rows) - len(good))
    assert len(found.keys) == sum(len([field for field in row[1:] if field]) for row in good)


def is_label(label: bytes) -> bool:
    return set(label) <= set(b"01") and label != b"" and int(label) in (0, 1)


def test_flights_counts() -> None:
    folder = os.environ.get("MPIPS_TEST_DATA", "")
    path = os.path.join(folder, "flights.test.tsv.xz")
    if not folder or not os.path.exists(path):
        pytest.skip("flights: set MPIPS_TEST_DATA to the folder that holds it")
    found = concatenate(read([path], DataSpec()))
    assert len(found) == 500_000 and int((found.labels > 0).sum()) == 104_026
    with lzma.open(path, "rt") as file:
        next(file)
        distinct = {
            (i, word) for line in file for i, word in enumerate(line.rstrip("\n").split("\t")[1:]) if word
        }
    assert np.array_equal(np.unique(found.keys), sorted(key_of(i, word.encode()) for i, word in distinct))
