"""Data written from Python are read back as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import coo_array, csr_array

from mpips.data import DataSpec, Examples, concatenate, read, write
from mpips.errors import InputError

X = np.array([[0.5, 0.0, -2.0], [0.0, 0.0, 0.0], [1.0, 3.0, 0.0]])
Y = [1, 0, -1]


def load(path: Path, **keys: Any) -> Examples:
    return concatenate(read([str(path)], DataSpec(**keys)))


@pytest.mark.parametrize("name", ["a.svm", "a.svm.gz", "a.libsvm.xz", "a.h5"])
@pytest.mark.parametrize(
    "rows",
    [
        X,
        X.tolist(),
        csr_array(X),
        coo_array(([1.0, 2.0, 0.5, -2.0, 1.0], ([2, 2, 0, 0, 2], [1, 1, 0, 2, 0])), (3, 3)),
    ],
)
def test_matrices(tmp_path: Path, name: str, rows: Any) -> None:
    write(tmp_path / name, rows, Y)
    found = load(tmp_path / name)
    assert found.labels.tolist() == [1, -1, -1] and found.values is not None
    dense = csr_array((found.values, found.keys.astype(int), found.indptr), shape=X.shape).toarray()
    assert (dense == X).all()


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow", "dict"])
@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_frames(tmp_path: Path, name: str, library: str) -> None:
    pytest.importorskip("pyarrow")
    columns = {"city": ["Rome, old", 'a "b"', "x\ny"], "age": [1.5, 2.5, 3.5], "y": ["yes", "no", "yes"]}
    rows: Any = columns
    if library == "pyarrow":
        rows = pytest.importorskip("pyarrow").table(columns)
    elif library != "dict":
        rows = pytest.importorskip(library).DataFrame(columns)
    write(tmp_path / name, rows)
    found = load(tmp_path / name, label="y", positive="yes", numeric={"age": "plain"})
    assert found.labels.tolist() == [1, -1, 1] and found.values is not None
    assert sorted(value for value in found.values.tolist() if value != 1) == [1.5, 2.5, 3.5]


def test_mistakes_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a.svm", X, Y)
    for arguments, message in (
        ((tmp_path / "a.svm", X, Y), "exists"),
        ((tmp_path / "b.txt", X, Y), "the name must end in"),
        ((tmp_path / "b.h5.gz", X, Y), "the name must end in"),
        ((tmp_path / "b.svm", X), "a matrix needs labels"),
        ((tmp_path / "b.svm", X, [1, 2, 0]), "label 2 is not one of -1, 0, 1"),
        ((tmp_path / "b.svm", X, [1, 0]), "need"),
        ((tmp_path / "b.svm", X * 1e39, Y), "not finite in 32-bit"),
        ((tmp_path / "b.svm", np.ma.masked_array(X, X > 0), Y), "rows are a masked array"),
        ((tmp_path / "b.svm", X, np.ma.masked_array(Y, Y != 0)), "labels are a masked array"),
        ((tmp_path / "b.svm", X * 1j, Y), "rows must have numbers, not complex128"),
        ((tmp_path / "b.parquet", X, Y), "leave out labels"),
        ((tmp_path / "b.parquet", 3), "are no table"),
    ):
        if "parquet" in arguments[0].name:
            pytest.importorskip("pyarrow")
        with pytest.raises(InputError) as caught:
            write(*arguments)
        assert message in str(caught.value).replace("np.int64(2)", "2") and "\n" not in str(caught.value)
    assert not (tmp_path / "b.svm").exists() and not list(tmp_path.glob("*.tmp*"))
    write(tmp_path / "a.svm", X[:1], Y[:1], force=True)
    assert len(load(tmp_path / "a.svm")) == 1


def test_the_index_of_a_frame_is_no_column(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"city": ["Rome", "Oslo", "Bonn"], "y": [1, 0, 1]})
    write(tmp_path / "a.csv", frame)
    for rows in (frame.iloc[[0, 1, 2]], frame.set_index(pandas.Index([7, 3, 5], name="id"))):
        write(tmp_path / "b.csv", rows, force=True)
        assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()


def test_columns_that_a_file_cannot_hold_are_named(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(InputError, match=r"a\.csv: rows do not fit in a csv file: Unsupported Type"):
        write(tmp_path / "a.csv", {"x": [[1], [2]]})
    assert not list(tmp_path.iterdir())
