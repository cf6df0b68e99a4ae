"""Files with random changes: each reader raises an error of one line or returns a valid result, and never crashes.

`test_fuzzed.py` runs each function here in a process of its own, since a kernel that reads or writes out of bounds
may take it along.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mpips.checkpoint.checkpoint import begin, commit
from mpips.checkpoint.loading import load_range, vectors
from mpips.checkpoint.writing import write_shard
from mpips.data import DataSpec, read
from mpips.data.examples import Examples, concatenate
from mpips.data.matrix import load_columns
from mpips.errors import CheckpointError, DataError, InputError
from mpips.jobs.lda import sampler as samplers
from mpips.jobs.lda.corpus import Block
from mpips.jobs.lda.model import read_model
from mpips.jobs.lda.sampler import Gibbs, Metropolis, Prior
from mpips.jobs.sketch import results
from mpips.jobs.sparse_lr.blocks import Blocks
from mpips.ranges import ALL, KeyRange
from mpips.storage.segment import Segment
from mpips.storage.updates import VectorSpec

Arrays = dict[str, NDArray[Any]]
HARD = [0, 1, -1, 2, 7, 2**31 - 1, 2**31, -(2**31), 2**62 + 1, 3 * 2**62 - 2**64, 2**63 - 1, -(2**63)]
FOLDER = Path(tempfile.mkdtemp(prefix="mpips-fuzzed-"))


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[str, float, int, float]]:
    """Draw what is done to arrays: a kind, which array (a share), a number, and where (a share)."""
    kind = st.sampled_from(["number", "number", "number", "near", "cut", "longer", "dtype", "shape", "drop"])
    share = st.floats(0, 1, exclude_max=True)
    one = st.tuples(kind, share, st.sampled_from(HARD) | st.integers(-3, 40), share)
    return draw(st.lists(one, min_size=1, max_size=3))


def changed(arrays: Arrays, todo: list[tuple[str, float, int, float]]) -> Arrays:
    made = {name: array.copy() for name, array in arrays.items()}
    for kind, which, number, where in todo:
        names = sorted(made)
        name = names[int(which * len(names))]
        array = made[name]
        place = int(where * array.size)
        if kind == "drop":
            del made[name]
            if not made:
                return made
        elif kind == "dtype":
            made[name] = array.astype([np.float64, np.int16, np.uint64, np.int64][number % 4])
        elif kind == "shape":
            made[name] = array.reshape(1, *array.shape)
        elif kind == "longer":
            made[name] = np.concatenate([array, array[:1]]) if array.ndim else array
        elif kind == "cut":
            made[name] = array[:-1] if array.ndim else array
        elif array.size and array.dtype.kind in "iuf":
            with np.errstate(all="ignore"):
                value = np.array(number if kind == "number" else number % 40, np.int64).astype(array.dtype)
            array.reshape(-1)[place] = value
    return made


def write_h5(path: Path, arrays: Arrays, **about: Any) -> None:
    with h5py.File(path, "w") as file:
        file.attrs.update(about)
        for name, array in arrays.items():
            file[name] = array


ROWS = {
    "labels": np.int8([1, 0, 1, 1]),
    "indptr": np.int64([0, 2, 2, 5, 6]),
    "keys": np.uint64([3, 9, 1, 5, 7, 4]),
    "values": np.float32([1, 2, 3, 1, 1, 2]),
}


@given(changes())
def examples(todo: Any) -> None:
    """Data in HDF5."""
    write_h5(FOLDER / "a.h5", changed(ROWS, todo))
    try:
        found = concatenate(read([str(FOLDER / "a.h5")], DataSpec()))
    except DataError:
        return
    assert found.indptr[0] == 0 and found.indptr[-1] == len(found.keys) and (np.diff(found.indptr) >= 0).all()


MODEL = {
    "alpha": np.array([0.1, 0.2, 0.3]),
    "n_k": np.int64([3, 4, 1]),
    "indptr": np.int64([0, 1, 1, 3, 4]),
    "topics": np.int32([0, 1, 2, 1]),
    "counts": np.int32([3, 3, 1, 1]),
}


@given(changes(), st.sampled_from([4, 4, 4, 0, -1, 5, 2**40]))
def model(todo: Any, vocabulary: int) -> None:
    """A model of lda."""
    write_h5(FOLDER / "m.h5", changed(MODEL, todo), program="lda", beta=0.1, vocabulary=vocabulary)
    try:
        found = read_model(FOLDER / "m.h5")
    except InputError:
        return
    rows = found.rows(np.arange(found.vocabulary, dtype=np.int32))
    assert rows.min() >= 0 and rows.shape == (4, len(found.alpha))
    found.top(2)


@given(changes())
def sketch(todo: Any) -> None:
    """The table of a sketch."""
    whole = {
        "table": np.arange(12),
        "depth": np.array(3),
        "width": np.array(4),
        "seed": np.array(7),
        "text": np.array(0),
    }
    with (FOLDER / results.FILE).open("wb") as file:
        np.savez(file, **changed(whole, todo))
    try:
        found = results.load(FOLDER)
    except InputError:
        return
    assert found.estimate(np.arange(50, dtype=np.uint64)).shape == (50,)


SHARD = {
    "keys": np.uint64([2, 3, 5, 8]),
    "values": np.arange(8.0).reshape(4, 2),
}


@given(
    changes(),
    st.booleans(),
    st.lists(st.sampled_from([0, 1, 4, 5, 10, -1, 2**63]), min_size=4, max_size=4) | st.none(),
)
def checkpoint(todo: Any, dense: bool, run: list[int] | None) -> None:
    """The rows of a shard, and where a manifest says that they are."""
    directory = Path(tempfile.mkdtemp(dir=FOLDER))
    folder = begin(directory, 1)
    spec = VectorSpec("w", "float64", 2, 10, dense=dense)
    entry = write_shard(folder, 0, {"w": Segment(spec, [KeyRange(0, 10)])})
    path = folder / "server-0000.h5"
    with h5py.File(path, "r+") as file:
        group = file["vectors/w"]
        for name in ("keys", "values"):
            del group[name]
        for name, array in changed(SHARD, todo).items():
            group[name] = array
    entry["vectors"]["w"] |= {"rows": 4, "ranges": [run or [0, 10, 0, 4]]}
    try:
        commit(folder, [entry])
        rows = load_range(folder, "w", [ALL])
        segment = Segment(vectors(folder)["w"], [KeyRange(0, 10)])
        segment.import_state(load_range(folder, "w", segment.ranges))
    except (CheckpointError, ValueError):
        return
    assert segment.pull(rows.keys).shape == rows.values.shape


def block() -> tuple[Block, NDArray[np.int32]]:
    rng = np.random.default_rng(1)
    ptr = np.cumsum([0, 3, 0, 9, 5]).astype(np.int64)
    return Block(ptr, rng.integers(0, 6, 17).astype(np.int32)), rng.integers(0, 4, 17).astype(np.int32)


@given(changes(), st.sampled_from([Gibbs, Metropolis]))
def sampler(todo: Any, kind: Callable[..., samplers.Sampler]) -> None:
    """What a sampler of lda keeps in a checkpoint."""
    docs, z = block()
    made = kind(docs, z, 4, 6)
    try:
        made.take(changed(made.state(), todo))
    except (ValueError, KeyError, TypeError, IndexError):
        return
    z = made.topics()
    assert z.min() >= -1 and z.max() < 4
    rows, prior = np.zeros((6, 4), np.int32), Prior(np.full(4, 0.1), 0.1, 6)
    placed = z >= 0
    np.add.at(rows, (docs.words[placed], z[placed]), 1)
    for _ in range(3):
        made.begin()
        totals = rows.sum(axis=0, dtype=np.int64)
        made.sample((0, 6), rows.reshape(-1), totals, prior, samplers.random_state(1, 0, 0))
    assert made.topics().max() < 4 and rows.min() >= 0


@given(changes())
def blocks(todo: Any) -> None:
    """What a worker of sparse_lr keeps in a checkpoint."""
    given_rows = Examples(
        np.float32([1, -1, 1]),
        np.int64([0, 2, 3, 5]),
        np.uint64([1, 4, 2, 1, 2]),
        np.float32([1, 2, 3, 1, 1]),
    )
    made = Blocks(load_columns([given_rows]))
    made.begin_period()
    try:
        made.take(changed(made.arrays(), todo))
    except CheckpointError:
        return
    assert made.full_gradient(np.arange(len(made.keys))).shape == (len(made.keys),)
    made.set_radius(np.arange(1), np.ones(1, np.float32))


if __name__ == "__main__":
    settings.register_profile(
        "fuzzed", deadline=None, max_examples=int(sys.argv[2]), derandomize=True, database=None
    )
    settings.load_profile("fuzzed")
    settings(settings.get_profile("fuzzed"))(globals()[sys.argv[1]])()
