"""Whole vectors in a file: of a dense one row i is that of key i."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from simulated import simulate

from mpips.checkpoint.checkpoint import begin, commit
from mpips.checkpoint.writing import write_shard
from mpips.client.rows import rows_of
from mpips.scheduler.export import save
from mpips.scheduler.scheduler import Cluster
from mpips.storage.initial import Initial, Uniform
from mpips.storage.segment import Segment
from mpips.storage.updates import VectorSpec

INITIAL: list[Initial] = [0.0, 0.5, Uniform(-1.0, 1.0, seed=3)]


def spec_of(init: Initial) -> VectorSpec:
    return VectorSpec("w", "float32", 2, extent=20, update="assign", dense=True, init=init)


@pytest.mark.parametrize("init", INITIAL)
@pytest.mark.parametrize("servers", [1, 3])
def test_each_row_of_a_dense_vector_is_at_the_place_of_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: Initial, servers: int
) -> None:
    monkeypatch.setattr("mpips.scheduler.export.EXPORT_ROWS", 3)
    spec, pushed = spec_of(init), np.array([0, 7, 8, 13], np.uint64)
    rows = np.array([[1, 2], [0, 0], [3, 4], [0, 0]], np.float32)

    def schedule(cluster: Cluster) -> None:
        vectors = [cluster.create_vector(each) for each in (spec, VectorSpec("sparse"))]
        vectors[0].push_wait(pushed, rows)
        vectors[1].push_wait(np.array([5, 9], np.uint64), np.array([0.0, 2.0]))
        assert save(cluster.node, vectors, tmp_path / "a.h5") == ""

    simulate(schedule, lambda context: None, servers=servers)
    wanted = spec.initial(np.arange(20, dtype=np.uint64))
    wanted[pushed] = rows
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["w/keys"][:].tolist() == list(range(20))
        assert file["w/values"].dtype == np.float32 and (file["w/values"][:] == wanted).all()
        assert file["sparse/keys"][:].tolist() == [9]


@pytest.mark.parametrize("init", INITIAL)
def test_a_checkpoint_has_the_untouched_rows_of_a_dense_vector(tmp_path: Path, init: Initial) -> None:
    spec = spec_of(init)
    folder = begin(tmp_path, 1)
    commit(folder, [write_shard(folder, 0, {"w": Segment(spec)})], {"step": 1})
    rows = rows_of(folder, "w")
    assert rows.keys.tolist() == list(range(20)) and (rows.values == spec.initial(rows.keys)).all()
