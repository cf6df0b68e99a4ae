"""HDF5 files of examples, conversion between formats, and damaged files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpips.data import DataSpec, Examples, Tally, concatenate, read
from mpips.data.convert import convert, svmlight_lines
from mpips.data.csr import read_csr, write_csr
from mpips.errors import DataError, InputError

quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def random_rows(seed: int, n: int = 200, ones: bool = False) -> Examples:
    rng = np.random.default_rng(seed)
    rows = [np.unique(rng.integers(0, 2**64 - 1, rng.integers(0, 9), np.uint64)) for _ in range(n)]
    keys = np.concatenate(rows)
    values = None if ones else rng.standard_normal(len(keys)).astype(np.float32)
    indptr = np.cumsum([0] + [len(row) for row in rows])
    return Examples(rng.choice(np.float32([-1, 1]), n), indptr, keys, values)


def same(a: Examples, b: Examples) -> bool:
    ones = np.ones(len(a.keys), np.float32)
    left, right = (ones if e.values is None else e.values for e in (a, b))
    return all(
        np.array_equal(x, y)
        for x, y in [(a.labels, b.labels), (a.indptr, b.indptr), (a.keys, b.keys), (left, right)]
    )


def write(path: Path, **arrays: Any) -> str:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return str(path)


SOUND: dict[str, Any] = {
    "labels": np.float32([1, 0, -1]), "indptr": [0, 2, 2, 4], "keys": np.uint64([3, 2**64 - 1, 1, 5]),
    "values": np.float32([1, 0.5, 2, -1]),
}  # fmt: skip


@pytest.mark.parametrize("ones", [False, True])
@pytest.mark.parametrize("parts", [1, 3])
def test_written_rows_read_back_in_parts_and_pieces(tmp_path: Path, ones: bool, parts: int) -> None:
    rows = random_rows(1, ones=ones)
    path = str(tmp_path / "a.h5")
    write_csr(path, [rows.rows(0, 50), rows.rows(50, 50), rows.rows(50, 200)])
    for part in range(parts):
        for nonzeros in (1, 37, 1 << 18):
            found = concatenate(read_csr(path, DataSpec(), 0, part, parts, Tally(), nonzeros))
            assert same(found, concatenate([rows.rows(i, i + 1) for i in range(part, 200, parts)]))
            assert (found.values is None) == ones


def test_values_that_start_late(tmp_path: Path) -> None:
    first, second = random_rows(1, ones=True), random_rows(2)
    write_csr(str(tmp_path / "a.h5"), [first, second, first])
    assert same(concatenate(read([str(tmp_path / "a.h5")], DataSpec())), concatenate([first, second, first]))


@pytest.mark.parametrize("names", [("keys", "values"), ("indices", "data")])
@pytest.mark.parametrize("dtype", [np.int32, np.uint16, np.int64])
def test_other_tools_names_and_types(tmp_path: Path, names: tuple[str, str], dtype: type) -> None:
    arrays = {"labels": np.int8([1, 0]), "indptr": np.int32([0, 1, 3]), names[0]: np.array([7, 1, 2], dtype)}
    arrays[names[1]] = np.float64([1, 0.25, 3])
    found = concatenate(read([write(tmp_path / "a.hdf5", **arrays)], DataSpec()))
    assert found.keys.tolist() == [7, 1, 2] and found.labels.tolist() == [1, -1]
    assert found.values is not None and found.values.tolist() == [1, 0.25, 3]


@pytest.mark.parametrize(
    "change, wanted",
    [
        ({"labels": [1, 2, 0]}, "row 1: label is not one of"),
        ({"labels": [1, np.nan, 0]}, "row 1: label is not one of"),
        ({"keys": np.uint64([3, 3, 1, 5])}, "row 0: keys are not ascending"),
        ({"keys": np.uint64([3, 9, 5, 1])}, "row 2: keys are not ascending"),
        ({"keys": np.int64([3, 9, -5, 1])}, "row 2: has a negative key"),
        ({"values": [1, 2, np.nan, 1]}, "row 2: has a value that is not finite"),
        ({"values": [1, 1e39, 1, 1]}, "row 0: has a value that is not finite"),
        ({"values": [1.0, 2.0]}, "has 2 values for 4 keys"),
        ({"indptr": [0, 2, 4]}, "indptr has 3 entries"),
        ({"indptr": [0, 3, 2, 4]}, "row 1: indptr decreases"),
        ({"indptr": [0, 2**40, 2, 4]}, "row 0: indptr decreases, or exceeds the 4 keys"),
        # All differences wrap to above 0.
        ({"indptr": [0, 2**62 + 1, -(2**62), 4]}, "row 0: indptr decreases"),
        ({"indptr": [0, -5, 2, 4]}, "row 0: indptr decreases"),
        ({"indptr": [0, 2, 2, 9]}, "indptr goes from 0 to 9"),
        ({"indptr": [1, 2, 2, 4]}, "indptr goes from 1 to 4"),
        ({"labels": [], "indptr": [0], "keys": np.uint64([]), "values": []}, "holds no examples"),
        ({"labels": None}, "has no data set labels"),
        ({"keys": None}, "has no data set keys"),
        ({"keys": np.float32([1, 2, 3, 4])}, "keys must be a one-dimensional data set"),
        ({"labels": [[1, 1, 1]]}, "labels must be a one-dimensional data set"),
        ({"labels": [b"a", b"b", b"c"]}, "labels must be a one-dimensional data set"),
    ],
)
def test_errors_of_bad_files(tmp_path: Path, change: dict[str, Any], wanted: str) -> None:
    arrays = {name: array for name, array in {**SOUND, **change}.items() if array is not None}
    with pytest.raises(DataError) as caught:
        list(read([write(tmp_path / "a.h5", **arrays)], DataSpec()))
    assert wanted in str(caught.value) and str(tmp_path / "a.h5") in str(caught.value)


def test_bad_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", **{**SOUND, "values": np.float32([1, np.inf, 2, -1])})
    tally = Tally()
    found = concatenate(read([path], DataSpec(on_error="skip"), tally=tally))
    assert (len(found), tally.examples, tally.skipped) == (2, 2, 1)
    assert found.keys.tolist() == [1, 5] and found.labels.tolist() == [-1, -1]


@quick
@given(st.integers(0, 10**9), st.integers(1, 255), st.booleans())
def test_damaged_hdf5_gives_an_error_or_a_sound_parse(
    tmp_path: Path, place: int, flip: int, cut: bool
) -> None:
    path = tmp_path / "a.h5"
    write_csr(str(path), [random_rows(3, 40)])
    content = bytearray(path.read_bytes())
    place %= len(content)
    if cut:
        content = content[: max(8, place)]
    else:
        content[place] ^= flip
    path.write_bytes(content)
    try:
        found = concatenate(read([str(path)], DataSpec(format="hdf5")))
    except DataError as error:
        message = str(error)
    else:
        message = "a.h5"
        assert found.indptr[-1] == len(found.keys) and set(found.labels.tolist()) <= {-1, 1}
    assert "a.h5" in message and "\n" not in message


# -- conversion --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ones", [False, True])
def test_round_trips_are_exact(tmp_path: Path, ones: bool) -> None:
    rows = random_rows(5, ones=ones)
    source = tmp_path / "a.svm"
    source.write_bytes(svmlight_lines(rows))
    for target in ("b.h5", "c.svm.gz", "d.svm.xz", "e.svm.bz2", "f.hdf5", "g.svm"):
        tally = convert(str(source), str(tmp_path / target))
        assert tally.examples == len(rows)
        source = tmp_path / target
        assert same(concatenate(read([str(source)], DataSpec())), rows)
    assert source.read_bytes() == (tmp_path / "a.svm").read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_categories_keep_their_keys(tmp_path: Path) -> None:
    source = tmp_path / "a.tsv"
    source.write_text("label\tx\ty\n1\ta\tb\n0\t\tb\n")
    spec = DataSpec(crosses=[["x", "y"]])
    wanted = concatenate(read([str(source)], spec))
    for target in ("a.svm", "a.h5"):
        convert(str(source), str(tmp_path / target), spec)
        assert same(concatenate(read([str(tmp_path / target)], DataSpec())), wanted)


@quick
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=30))
def test_every_value_is_written_to_the_bit(tmp_path: Path, numbers: list[float]) -> None:
    values = np.array(numbers, np.float32)
    keys = np.arange(len(values), dtype=np.uint64)
    line = svmlight_lines(Examples(np.float32([1]), np.array([0, len(values)]), keys, values))
    (tmp_path / "a.svm").write_bytes(line)
    found = concatenate(read([str(tmp_path / "a.svm")], DataSpec()))
    back = np.ones(len(keys), np.float32) if found.values is None else found.values
    assert np.array_equal(back.view(np.uint32), values.view(np.uint32))
    words = [float(word.split(b":")[1]) for word in line.split()[1:]]
    assert np.array_equal(np.array(words, np.float32).view(np.uint32), values.view(np.uint32))


@pytest.mark.parametrize(
    "number, word", [(0.1, "0.1"), (1, "1"), (-2.5, "-2.5"), (1e-5, "0.00001"), (1e20, "1e+20")]
)
def test_values_are_written_short(number: float, word: str) -> None:
    row = Examples(np.float32([-1]), np.array([0, 1]), np.uint64([2**64 - 1]), np.float32([number]))
    assert svmlight_lines(row) == f"-1 18446744073709551615:{word}\n".encode()


def test_a_refused_conversion_does_not_change_the_target(tmp_path: Path) -> None:
    source = tmp_path / "a.svm"
    source.write_text("1 1:1\n")
    with pytest.raises(InputError, match="cannot convert to columns: keys are hashes"):
        convert(str(source), str(tmp_path / "b.tsv.gz"))
    with pytest.raises(InputError, match=r"must end in \.svm"):
        convert(str(source), str(tmp_path / "b.parquet"))
    with pytest.raises(InputError, match=r"must end in \.svm"):
        convert(str(source), str(tmp_path / "b.h5.gz"))
    with pytest.raises(InputError, match="no such file"):
        convert(str(tmp_path / "gone.svm"), str(tmp_path / "b.svm"))
    with pytest.raises(DataError, match="cannot be written"):
        convert(str(source), str(tmp_path / "no" / "b.svm"))
    target = tmp_path / "b.svm"
    target.write_text("old")
    source.write_text("1 1:1\n1 x\n")
    with pytest.raises(DataError, match=r"a\.svm:2"):
        convert(str(source), str(target), force=True)
    assert target.read_text() == "old" and sorted(tmp_path.iterdir()) == [source, target]


def test_the_ending_of_the_target_determines_its_compression(tmp_path: Path) -> None:
    source = tmp_path / "a.svm"
    source.write_text("1 1:1\n")
    convert(str(source), str(tmp_path / "b.svm.gz"))
    assert gzip.decompress((tmp_path / "b.svm.gz").read_bytes()) == b"+1 1:1\n"
