"""Specs, formats, sharding over files, minibatches, and the matrix by columns."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpips.data import (
    DataSpec,
    Examples,
    concatenate,
    expand,
    format_of,
    load_columns,
    minibatches,
    read,
    resolve,
)
from mpips.data.csr import write_csr
from mpips.errors import DataError, JobError

quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# -- the spec ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys, wanted",
    [
        (
            {"format": "orc"},
            "format = 'orc': must be one of 'auto', 'svmlight', 'libffm', 'tsv', 'hdf5', 'csv', 'parquet'",
        ),
        ({"on_error": "ignore"}, "on_error = 'ignore': must be one of 'stop', 'skip'"),
        ({"header": "yes"}, "header = 'yes': must be true, false"),
        ({"separator": ""}, "separator = ''"),
        ({"separator": "::"}, "separator = '::'"),
        ({"separator": "1"}, "separator = '1'"),
        ({"separator": "\n"}, "separator"),
        ({"separator": "é"}, "separator"),
        ({"crosses": [["a"]]}, "crosses: ['a'] must be a list of two or more"),
        ({"crosses": [["a", "a"]]}, "crosses"),
        ({"crosses": ["ab"]}, "crosses: 'ab'"),
        ({"crosses": [["a", -1]]}, "crosses: -1"),
        ({"crosses": [["a", True]]}, "crosses: True"),
        ({"log_buckets": [2.5]}, "log_buckets: 2.5"),
        ({"train": [1]}, "train = [1]"),
    ],
)
def test_spec_refuses(keys: dict[str, object], wanted: str) -> None:
    with pytest.raises(JobError) as caught:
        DataSpec(**keys)  # type: ignore[arg-type]
    assert str(caught.value).startswith("[data] ") and wanted in str(caught.value)


def test_resolve_expands_globs_from_the_base(tmp_path: Path) -> None:
    for name in ("b.svm", "a.svm", "sub/c.svm", "odd[1].svm"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    spec = resolve(DataSpec(train=["?.svm", "sub/*.svm", "odd[1].svm"], test="a.svm"), str(tmp_path))
    assert spec.train == [str(tmp_path / name) for name in ("a.svm", "b.svm", "sub/c.svm", "odd[1].svm")]
    assert spec.test == [str(tmp_path / "a.svm")]
    assert resolve(spec, "/elsewhere") == spec
    with pytest.raises(JobError, match=r"no such file: x\*\.svm \(looked for "):
        expand("x*.svm", str(tmp_path))
    with pytest.raises(JobError, match="relative to the job file's folder"):
        expand("x.svm", str(tmp_path))
    with pytest.raises(JobError, match="relative to the working folder"):
        expand("x.svm")
    with pytest.raises(JobError, match="is a folder"):
        expand("sub", str(tmp_path))
    assert expand("") == []


# -- formats -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, wanted",
    [
        ("a.svm", "1\t2", "svmlight"),
        ("a.libsvm", "", "svmlight"),
        ("a.csv", "1 2:3", "tsv"),
        ("a9a", "-1 3:1 11:1\n", "svmlight"),
        ("a9a.t", "-1\n1\n", "svmlight"),
        ("a.txt", "# comment\n\n1\t3:1\n", "svmlight"),
        ("a.txt", "label\tx\n1\t3:1\n", "tsv"),
        ("day_0", "1\t5\t\t68fd1e64\n", "tsv"),
    ],
)
def test_format_by_name_then_content(tmp_path: Path, name: str, content: str, wanted: str) -> None:
    for ending, pack in (("", bytes), (".gz", gzip.compress)):
        path = tmp_path / (name + ending)
        path.write_bytes(pack((content or "1 1:1").encode()))
        assert format_of(str(path), DataSpec()) == wanted
    assert format_of(str(path), DataSpec(format="tsv")) == "tsv"


def test_hdf5_is_known_by_its_magic(tmp_path: Path) -> None:
    path = str(tmp_path / "data")
    write_csr(path, [Examples(np.float32([1]), np.array([0, 1]), np.uint64([5]))])
    assert concatenate(read([path], DataSpec())).keys.tolist() == [5]
    with pytest.raises(DataError, match="is an HDF5 file but"):
        format_of(path, DataSpec(format="tsv"))
    (tmp_path / "fake.h5").write_text("1 1:1\n")
    with pytest.raises(DataError, match=r"fake\.h5: cannot be read as HDF5"):
        list(read([str(tmp_path / "fake.h5")], DataSpec()))


def test_an_undetectable_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("\n# nothing\n")
    with pytest.raises(DataError, match="holds no examples, only blank lines or comments"):
        list(read([str(tmp_path / "a")], DataSpec()))
    (tmp_path / "a").write_text("# nothing\n" * 10_000)
    with pytest.raises(DataError, match=r"set \[data\] format"):
        format_of(str(tmp_path / "a"), DataSpec())


# -- sharding ----------------------------------------------------------------------------------------------


@quick
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 7))
def test_parts_are_the_examples_by_index_or_whole_files(tmp_path: Path, sizes: list[int], parts: int) -> None:
    names, rows, next_key = [], [], 0
    for i, size in enumerate(sizes):
        mine = list(range(next_key, next_key + size))
        next_key += size
        rows.append(mine)
        names.append(str(tmp_path / f"{i}.{'h5' if i % 3 == 2 else 'svm'}"))
        if i % 3 == 2:
            keys = np.array(mine, np.uint64)
            write_csr(names[-1], [Examples(np.ones(size, np.float32), np.arange(size + 1), keys)])
        else:
            Path(names[-1]).write_text("# a comment\n" + "".join(f"1 {key}:1\n\n" for key in mine))
    whole = [key for mine in rows for key in mine]
    for part in range(parts):
        by_file = [key for mine in rows[part::parts] for key in mine]
        wanted = by_file if len(sizes) >= parts else whole[part::parts]
        assert concatenate(read(names, DataSpec(), part, parts)).keys.tolist() == wanted


def test_part_out_of_range() -> None:
    with pytest.raises(ValueError, match="part 2 of 2"):
        list(read(["a"], DataSpec(), 2, 2))


# -- batches -----------------------------------------------------------------------------------------------


def chain_of(lengths: list[int], seed: int) -> list[Examples]:
    """Batches of the given lengths, with and without values by turns."""
    rng = np.random.default_rng(seed)
    batches = []
    for i, n in enumerate(lengths):
        rows = [np.unique(rng.integers(0, 40, rng.integers(0, 7), np.uint64)) for _ in range(n)]
        keys = np.concatenate([np.zeros(0, np.uint64), *rows])
        values = rng.standard_normal(len(keys)).astype(np.float32) if i % 2 else None
        indptr = np.cumsum([0] + [len(row) for row in rows])
        batches.append(Examples(rng.choice(np.float32([-1, 1]), n), indptr, keys, values))
    return batches


def dense(batches: list[Examples]) -> np.ndarray:
    joined = concatenate(batches)
    values = np.ones(len(joined.keys), np.float32) if joined.values is None else joined.values
    matrix = np.zeros((len(joined), 40), np.float32)
    matrix[np.repeat(np.arange(len(joined)), np.diff(joined.indptr)), joined.keys.astype(int)] = values
    return matrix


@quick
@given(st.lists(st.integers(0, 9), max_size=6), st.integers(1, 12), st.integers(0, 99))
def test_minibatches_are_of_one_size_and_lose_nothing(lengths: list[int], size: int, seed: int) -> None:
    batches = chain_of(lengths, seed)
    cut = list(minibatches(iter(batches), size))
    total = sum(lengths)
    assert [len(batch) for batch in cut] == [size] * (total // size) + [total % size] * (total % size > 0)
    assert np.array_equal(dense(cut), dense(batches))
    assert all(batch.indptr[0] == 0 and batch.indptr[-1] == len(batch.keys) for batch in cut)


def test_a_minibatch_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least one"):
        next(minibatches([], 0))


# -- the matrix --------------------------------------------------------------------------------------------


@quick
@given(st.lists(st.integers(0, 9), max_size=6), st.integers(0, 99))
def test_columns_are_the_transposed_rows(lengths: list[int], seed: int) -> None:
    batches = chain_of(lengths, seed)
    columns = load_columns(iter(batches))
    matrix = dense(batches)
    present = np.unique(concatenate(batches).keys)
    assert np.array_equal(columns.keys, present)
    assert np.array_equal(columns.labels, concatenate(batches).labels)
    assert len(columns.colptr) == len(present) + 1 and columns.colptr[0] == 0
    values = np.ones(len(columns.rows), np.float32) if columns.values is None else columns.values
    for j, key in enumerate(present):
        own = slice(columns.colptr[j], columns.colptr[j + 1])
        column = np.zeros(len(matrix), np.float32)
        column[columns.rows[own]] = values[own]
        assert np.array_equal(column, matrix[:, int(key)])
        assert (np.diff(columns.rows[own]) > 0).all()
    assert columns.rows.dtype == np.int32 and columns.colptr.dtype == np.int64


def test_values_are_kept_only_when_one_is_not_1() -> None:
    ones, mixed = chain_of([50, 50], 1)
    assert load_columns([ones]).values is None
    both = load_columns([ones, mixed])
    assert both.values is not None and len(both.values) == len(both.rows)


@pytest.mark.parametrize("distinct", [1000, 200_000])
@pytest.mark.parametrize("valued", [False, True])
def test_building_takes_less_than_three_times_the_result(distinct: int, valued: bool) -> None:
    def batches() -> object:
        rng = np.random.default_rng(0)
        for _ in range(25):
            keys = np.sort(rng.integers(0, distinct, (2000, 20), np.uint64), axis=1).ravel()
            values = np.full(len(keys), 0.5, np.float32) if valued else None
            yield Examples(np.ones(2000, np.float32), np.arange(0, 40_001, 20), keys, values)

    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        columns = load_columns(batches())  # type: ignore[arg-type]
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert columns.colptr[-1] == 1_000_000
    assert peak < 3 * columns.nbytes
