"""Differences of parameters, compared with dictionaries."""

from __future__ import annotations

import math
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.checkpoint import checkpoint
from mpips.checkpoint.writing import Saved, write_shard
from mpips.errors import InputError
from mpips.ranges import KeyRange
from mpips.report import table_diff
from mpips.report.table_diff import Table, compare, of_checkpoint, of_model, tables_differ
from mpips.storage.segment import Rows
from mpips.storage.updates import VectorSpec


def table(rows: dict[int, list[float]], width: int = 1, dtype: Any = np.float64) -> Table:
    keys = np.array(sorted(rows), np.uint64)
    values = np.array([rows[key] for key in sorted(rows)], dtype).reshape(len(keys), width)
    return Table(len(keys), width, values.dtype, lambda b, e: keys[b:e], lambda b, e: values[b:e])


NUMBERS = st.sampled_from([0.0, -0.0, 1.0, 1.5, -3.0, math.nan, math.inf])
ROWS = st.dictionaries(
    st.integers(0, 40), st.lists(NUMBERS, min_size=2, max_size=2), max_size=30
)  # keys that often meet


def bits(row: list[float]) -> bytes:
    return np.array(row).tobytes()


@given(ROWS, ROWS, st.integers(1, 7))
def test_differences_are_those_of_dictionaries(
    a: dict[int, list[float]], b: dict[int, list[float]], piece: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table_diff, "PIECE", piece)
        found = compare("w", table(a, 2), table(b, 2))
    zeros = [0.0, 0.0]
    differing_keys, gaps = [], []
    for key in sorted(a.keys() | b.keys()):
        left, right = a.get(key, zeros), b.get(key, zeros)
        if bits(left) != bits(right) and (any(left) or any(right)):
            differing_keys.append(key)
            gaps += [
                abs(x - y) for x, y in zip(left, right, strict=True) if not (x == y or (x != x and y != y))
            ]
    numbers = [gap for gap in gaps if not math.isnan(gap)]
    assert found.differing == len(differing_keys)
    assert found.first_key == (differing_keys[0] if differing_keys else None)
    assert found.keys == (len(a), len(b))
    assert found.maximum == max(numbers, default=0.0)
    assert found.mean == pytest.approx(sum(numbers) / len(numbers) if numbers else 0.0)
    assert found.same == (not differing_keys)
    assert ("NaN" in found.note) == (len(numbers) < len(gaps))


def test_whole_numbers_are_subtracted_exactly() -> None:
    big = 2**60
    found = compare("n", table({1: [big]}, dtype=np.int64), table({1: [big + 1]}, dtype=np.int64))
    assert (found.differing, found.maximum) == (1, 1.0)


def test_other_types_and_widths_are_not_the_same() -> None:
    narrow = compare("w", table({1: [1.0]}), table({1: [1.0]}, dtype=np.float32))
    assert (narrow.same, narrow.differing, narrow.note) == (False, 0, "float64 and float32")
    wide = compare("w", table({1: [1.0]}), table({1: [1.0, 2.0]}, 2))
    assert (wide.same, wide.note) == (False, "rows of 1 numbers and of 2")


def written(folder: Path, cuts: list[int], rows: dict[int, float]) -> Path:
    """Write a checkpoint of a vector with state, on so many servers."""
    spec = VectorSpec("w", update="assign")
    folder.mkdir()
    entries = []
    for server, (begin, end) in enumerate(zip([0, *cuts], [*cuts, 2**64], strict=True)):
        keys = np.array([key for key in sorted(rows) if begin <= key < end], np.uint64)
        values = np.array([[rows[int(key)]] for key in keys]).reshape(len(keys), 1)
        part = Rows(keys, values, {"sum": values * values})
        saved = Saved(spec, {}, [KeyRange(begin, end)], part)
        entries.append(write_shard(folder, server, {"w": saved}))
    checkpoint.commit(folder, entries, {"step": 1})
    return folder


def test_checkpoints_of_other_layouts_are_compared_key_by_key(tmp_path: Path) -> None:
    rows = {3: 1.0, 2**40: 2.0, 2**63 + 5: -1.0}
    one = written(tmp_path / "a", [], rows)
    three = written(tmp_path / "b", [10, 2**50], rows)
    other = written(tmp_path / "c", [2**62], rows | {2**40: 2.5, 7: 0.5})
    same = tables_differ(one, three, of_checkpoint)
    assert [each.name for each in same] == ["w", "w.sum"]
    assert all(each.same for each in same)
    w, state = tables_differ(one, other, of_checkpoint)
    assert (state.first_key, state.maximum) == (7, 2.25)
    assert (w.keys, w.differing, w.first_key, w.first) == ((3, 4), 2, 7, ([0.0], [0.5]))
    assert (w.maximum, w.mean) == (0.5, 0.5)


def test_model_files_are_compared_by_their_arrays(tmp_path: Path) -> None:
    keys = np.array([1, 5], np.uint64)
    np.savez(
        tmp_path / "a.npz", keys=keys, values=np.array([1.0, 2.0]), name=np.array("text"), seed=np.int64(4)
    )
    np.savez(tmp_path / "b.npz", keys=keys[1:], values=np.array([2.0]), extra=np.arange(3), seed=np.int64(4))
    found = {each.name: each for each in tables_differ(tmp_path / "a.npz", tmp_path / "b.npz", of_model)}
    assert sorted(found) == ["extra", "seed", "values"]
    assert (found["values"].differing, found["values"].first_key) == (1, 1)
    assert found["seed"].same
    assert found["extra"].note == "only B has it"
    assert not found["extra"].same


def test_hdf5_models_are_read_by_name(tmp_path: Path) -> None:
    import h5py

    for name, last in (("a.h5", 3), ("b.h5", 4)):
        with h5py.File(tmp_path / name, "w") as file:
            file["group/counts"] = np.array([[1, 2], [3, last]])
            file["words"] = "x"
    (found,) = tables_differ(tmp_path / "a.h5", tmp_path / "b.h5", of_model)
    assert (found.name, found.differing, found.first_key, found.maximum) == ("group/counts", 1, 1, 1.0)
    assert found.first == ([3.0, 3.0], [3.0, 4.0])
    assert all(each.same for each in tables_differ(tmp_path / "a.h5", tmp_path / "a.h5", of_model))


def test_an_invalid_model_is_bad_input(tmp_path: Path) -> None:
    for name in ("a.npz", "a.h5"):
        (tmp_path / name).write_text("nonsense")
        with ExitStack() as closing, pytest.raises(InputError, match="the model cannot be read"):
            of_model(tmp_path / name, closing)


def test_a_model_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"do not tell")
    with h5py.File(tmp_path / "model.h5", "w") as file:
        file.create_dataset("values", (11,), "u1", external=[("secret", 0, 11)])
    np.savez(tmp_path / "real.npz", keys=[1], values=[2.0])
    for suffix in (".npz", ".h5"):
        (tmp_path / f"link{suffix}").symlink_to(f"real{suffix}")
        os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / "empty.npz").touch()
    for name, said in (
        ("model.h5", "'values' keeps its data in another file"),
        ("link.npz", "is a symbolic link"), ("link.h5", "is a symbolic link"),
        ("pipe.npz", "is a named pipe"), ("pipe.h5", "is a named pipe"),
        ("empty.npz", "the model cannot be read"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said), ExitStack() as closing:
            of_model(tmp_path / name, closing)


def test_keys_that_do_not_ascend_are_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a piece, and from one piece to the next."""
    monkeypatch.setattr(table_diff, "PIECE", 2)
    path = tmp_path / "a.npz"
    for keys in ([5, 4, 3, 2, 1], [1, 2, 2, 3], [3, 4, 1, 2]):
        np.savez(path, keys=np.array(keys, np.uint64), values=np.zeros((len(keys), 1)))
        with pytest.raises(InputError, match=r"a\.npz: is damaged: its keys do not ascend"):
            tables_differ(path, path, of_model)


def test_numbers_of_16_bytes_are_compared(tmp_path: Path) -> None:
    for name, last in (("a.h5", 2), ("b.h5", 3)):
        with h5py.File(tmp_path / name, "w") as file:
            file["x"] = np.array([1, last], np.longdouble)
    assert tables_differ(tmp_path / "a.h5", tmp_path / "a.h5", of_model)[0].same
    assert tables_differ(tmp_path / "a.h5", tmp_path / "b.h5", of_model)[0].differing == 1
