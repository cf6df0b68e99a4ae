"""Vectors with keys of 128 bits: every operation, on any layout, with failures, checkpoints and a replay."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import simulate

from mpips import KEY128, KeyRange, Uniform, VectorSpec, keys, text_keys
from mpips.checkpoint.checkpoint import begin, commit
from mpips.checkpoint.inspection import verify
from mpips.checkpoint.loading import load_range, vectors
from mpips.checkpoint.writing import save, save_note, write_shard
from mpips.cli.main import main
from mpips.errors import CheckpointError, ProtocolError, UsageError
from mpips.filters import named
from mpips.ranges import ALL
from mpips.scheduler.scheduler import Cluster
from mpips.server.shard_snapshot import pack, unpack
from mpips.storage.segment import Segment
from mpips.transport.network_faults import Fault, random_delays
from mpips.worker.worker import Context

HALVES = np.array([0, 1, 2**61, 2**62 + 5, 2**63, 2**64 - 1], np.uint64)
EVERY = np.unique(
    np.concatenate(
        [
            np.array([(high, low) for high in HALVES for low in (0, 1, 2, 2**63, 2**64 - 1)], KEY128),
            text_keys(f"user={i}" for i in range(300)),
        ]
    )
)
"""Keys of which many share a half."""
SPECS = {
    "add": VectorSpec("add", "float64", 2, key_bits=128),
    "ftrl": VectorSpec("ftrl", "float32", update="ftrl", settings={"l1": 0.1}, key_bits=128),
    "drawn": VectorSpec("drawn", "float32", 3, init=Uniform(-1.0, 1.0, seed=3), key_bits=128),
    "summed": VectorSpec("summed", "float64", aggregate=True, key_bits=128),
}
ROUNDS = 6


def picked(worker: int, round_: int) -> Any:
    """Keys of a worker's push in a round."""
    rng = np.random.default_rng([worker, round_])
    return EVERY[np.flatnonzero(rng.random(len(EVERY)) < 0.3)]


class Worker:
    """Pushes to all vectors, by arrays of both forms and by lists, and pulls what it has pushed."""

    def __init__(self, context: Context) -> None:
        self.context, self.node = context, context.node

    def go(self, filtered: bool = False) -> dict[str, Any]:
        vectors, me = self.context.vectors, self.context.index
        again = vectors["add"].key_list(picked(me, 0))
        for round_ in range(ROUNDS):
            mine = picked(me, round_)
            form: Any = mine if round_ % 2 else mine.view(np.uint64).reshape(-1, 2)
            ones = np.ones(len(mine))
            tasks = [
                vectors["add"].push(form, np.ones((len(mine), 2))),
                vectors["add"].push(again, np.ones((len(again), 2))),
                vectors["drawn"].push(form, np.ones((len(mine), 3), np.float32)),
            ]
            summed = vectors["summed"].push_pull(form, ones, round=round_)
            if me == 0:
                tasks.append(vectors["ftrl"].push(form, ones.astype(np.float32)))
            self.node.wait_all([*tasks, summed])
            others = sum(
                np.isin(mine, picked(each, earlier)) for each in (0, 1) for earlier in range(round_ + 1)
            )
            assert summed.result().tolist() == others.tolist()
        return {}


def expected(keys_of: Any) -> np.ndarray[Any, Any]:
    """How often the two workers have pushed each key, by `keys_of(worker, round)`."""
    return sum(np.isin(EVERY, keys_of(worker, round_)) for worker in (0, 1) for round_ in range(ROUNDS))  # type: ignore[no-any-return]


def schedule(cluster: Cluster) -> dict[str, Any]:
    for spec in SPECS.values():
        cluster.create_vector(spec)
    cluster.workers.call("go")
    w = cluster.vectors
    add = w["add"].pull(EVERY).result()[:, 0]
    assert add.tolist() == (expected(picked) + expected(lambda worker, _: picked(worker, 0))).tolist()
    drawn = w["drawn"].pull(EVERY).result() - w["drawn"].spec.initial(EVERY)
    np.testing.assert_allclose(drawn, np.repeat(expected(picked)[:, None], 3, axis=1), atol=1e-5)
    exported = [np.concatenate(parts) for parts in zip(*cluster.export(w["summed"]), strict=True)]
    touched = expected(picked) > 0
    assert np.array_equal(exported[0], EVERY[touched])
    assert exported[1][:, 0].tolist() == expected(picked)[touched].tolist()
    return {name: cluster.digest(w[name]) for name in SPECS}


def test_any_layout_any_failure_and_any_lossless_filter_gives_the_same_bits() -> None:
    alone = simulate(schedule, Worker, servers=1, workers=2)
    chain = [{"name": "zeros", "least": 0}, {"name": "zstd", "least": 64}]
    runs: list[dict[str, Any]] = [
        {"servers": 3},
        {"servers": 3, "replicas": 2, "filters": lambda: (named.chain_of(chain), named.chain_of(chain))},
        {"servers": 3, "replicas": 1, "faults": [Fault("kill", 2, after_messages=60)]},
        {"servers": 2, "replicas": 1, "delays": random_delays(7, delay=0.01, drop=0.1, duplicate=0.1)},
    ]
    for how in runs:
        assert simulate(schedule, Worker, workers=2, **how) == alone, how


def test_what_filters_hold_back_of_such_keys_is_flushed() -> None:
    class Holding(Worker):
        def push(self) -> None:
            for round_ in range(ROUNDS):
                mine = picked(self.context.index, round_)
                self.node.wait(self.context.vectors["add"].push(mine, np.ones((len(mine), 2))))

        def flush(self) -> None:
            self.node.wait(self.context.vectors["add"].flush())

    def run(cluster: Cluster) -> Any:
        w = cluster.create_vector(SPECS["add"])
        cluster.workers.call("push")
        before = w.pull(EVERY).result()
        cluster.workers.call("flush")
        return before, w.pull(EVERY).result()

    chain = [{"name": "significant", "threshold": 2.5}]
    before, after = simulate(
        run, Holding, servers=2, workers=2, filters=lambda: (named.chain_of(chain), named.chain_of([]))
    )
    assert (before < after).any() and after[:, 0].tolist() == expected(picked).tolist()


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_keys", "text"),
    [
        (
            np.arange(3, dtype=np.uint64),
            r"must be an array of KEY128, or uint64 of shape \[n, 2\], not uint64 of",
        ),
        (np.zeros((3, 3), np.uint64), r"not uint64 of shape \[3, 3\]"),
        (np.ones((1, 2)), r"not float64 of shape \[1, 2\]"),
        (EVERY[::-1], "must be sorted and unique"),
        (EVERY[[0, 0]], "must be sorted and unique"),
        (KeyRange(0, 9), "must be listed, not given as a range"),
    ],
)
def test_other_keys_are_refused(given_keys: Any, text: str) -> None:
    def run(cluster: Cluster) -> None:
        w = cluster.create_vector(SPECS["add"])
        with pytest.raises(UsageError, match=text):
            w.pull(given_keys)
        with pytest.raises(UsageError, match=r"are not all in \[0, 1\)"):
            w.pull(EVERY, within=KeyRange(0, 1))

    simulate(run, Worker)


@pytest.mark.parametrize("fields", [{"key_bits": 65}, {"dense": True, "extent": 9}, {"extent": 9}])
def test_a_specification_that_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"key_bits 65 is neither|neither dense nor of"):
        VectorSpec("v", **{"key_bits": 128, **fields})


def test_a_segment_takes_keys_of_its_size_only() -> None:
    with pytest.raises(ProtocolError, match="has keys of 128 bits, not 64"):
        Segment(SPECS["add"]).resolve(np.arange(3, dtype=np.uint64), create=True)
    with pytest.raises(ProtocolError, match="has keys of 64 bits, not 128"):
        Segment(VectorSpec("v")).resolve(EVERY)
    with pytest.raises(ProtocolError, match="not all owned"):
        Segment(SPECS["add"], [KeyRange(0, 2**63)]).resolve(EVERY, create=True)


# --- segments, snapshots, checkpoints ----------------------------------------------------------------------


def filled(spec: VectorSpec, ranges: list[KeyRange]) -> Segment:
    """A segment with the keys of some ranges, in no order."""
    segment = Segment(spec, ranges)
    mine = [any(piece.begin <= high < piece.end for piece in ranges) for high in keys.upper(EVERY).tolist()]
    order = np.random.default_rng(1).permutation(np.flatnonzero(mine))
    for at in np.array_split(order, 3):
        at.sort()
        segment.push(EVERY[at], np.repeat(at[:, None], spec.width, axis=1).astype(spec.dtype) - 50)
    return segment


@given(
    st.lists(st.sampled_from([1, 2**61, 2**61 + 1, 2**63, 2**64 - 1]), unique=True).map(sorted),
    st.integers(1, 50),
)
@settings(max_examples=20)
def test_ranges_are_cut_between_upper_halves(cuts: list[int], count: int) -> None:
    whole, at, found = filled(SPECS["add"], [ALL]), 0, []
    for stop in [*cuts, 2**64]:
        while at < stop:
            cut = whole.cut(KeyRange(at, stop), count)
            assert cut > at
            got, slots = whole.select(KeyRange(at, cut))
            assert len(got) <= count or len(np.unique(got["high"])) == 1
            assert np.array_equal(whole.keys_of(slots), got)
            found += got.tolist()
            at = cut
    assert found == EVERY.tolist()


@pytest.mark.parametrize("spec", [SPECS["ftrl"], SPECS["drawn"]])
def test_a_checkpoint_is_read_on_any_layout(spec: VectorSpec, tmp_path: Path) -> None:
    def cut_at(*cuts: int) -> list[list[KeyRange]]:
        bounds = [0, *cuts, 2**64]
        return [[KeyRange(*piece)] for piece in itertools.pairwise(bounds)]

    folder = begin(tmp_path, 1)
    parts = [filled(spec, ranges) for ranges in cut_at(2**61 + 1, 2**63)]
    files = []
    for number, part in enumerate(parts):
        noted = np.arange(len(part), dtype=np.int32), np.arange(len(part), dtype=np.int32)[:, None]
        files.append(write_shard(folder, number, {spec.name: part, "note": save_note(part, "n", noted)}))
    commit(folder, files, {"step": 1})
    assert verify(folder) == [] and vectors(folder)[spec.name].key_bits == 128
    whole = filled(spec, [ALL]).export_state()
    with h5py.File(folder / "parameters.h5") as view:
        assert np.array_equal(keys.from_pairs(view[spec.name]["keys"][()]), EVERY)
        assert np.array_equal(view[spec.name]["values"][()], whole.values)
    read = [load_range(folder, spec.name, ranges) for ranges in cut_at(1, 2**62, 2**64 - 1)]
    assert np.concatenate([rows.keys for rows in read]).tolist() == EVERY.tolist()
    assert np.array_equal(np.concatenate([rows.values for rows in read]), whole.values)
    for name, column in whole.state.items():
        assert np.array_equal(np.concatenate([rows.state[name] for rows in read]), column)
    restored = Segment(spec, [ALL])
    for rows in read:
        restored.import_state(rows)
    assert np.array_equal(restored.pull(EVERY), filled(spec, [ALL]).pull(EVERY))


def test_checkpoints_are_exported_and_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, folders = SPECS["add"], []
    for step, skipped in enumerate((EVERY[:0], EVERY[7:9])):
        folder = begin(tmp_path, step)
        segment = filled(spec, [ALL])
        segment.push(skipped, np.ones((len(skipped), 2)))
        commit(folder, [write_shard(folder, 0, {"add": segment})], {"step": step})
        folders.append(str(folder))
    assert main(["export", folders[0], "--out", str(tmp_path / "w.npz")]) == 0
    with np.load(tmp_path / "w.npz") as file:
        assert np.array_equal(keys.from_pairs(file["keys"]), EVERY)
    assert main(["export", folders[0], "--out", str(tmp_path / "w.tsv")]) == 0
    lines = (tmp_path / "w.tsv").read_text().splitlines()
    assert [int(line.split("\t")[0]) for line in lines] == keys.numbers(EVERY)
    capsys.readouterr()
    assert main(["diff", folders[0], folders[0]]) == 0
    assert main(["diff", *folders]) == 1
    out = capsys.readouterr().out
    assert "2 of which differ" in out and f"first: key {keys.numbers(EVERY)[7]}: -43.0" in out


def test_a_file_with_keys_of_another_size_is_damaged(tmp_path: Path) -> None:
    folder = begin(tmp_path, 1)
    said = save(filled(SPECS["add"], [ALL]))._replace(spec=VectorSpec("add", "float64", 2))
    commit(folder, [write_shard(folder, 0, {"add": said})], {"step": 1})
    with pytest.raises(CheckpointError, match="'add' are not what its specification says"):
        load_range(folder, "add", [ALL])


def test_a_shard_snapshot_keeps_128_bit_keys() -> None:
    from server.test_shard import make

    shard, copy = make(), make()
    hosted = shard.create(1, SPECS["drawn"])
    mine = hosted.segment.ranges[0]
    high = keys.upper(EVERY)
    owned = EVERY[(high >= mine.begin) & (high <= mine.end - 1)]
    hosted.segment.push(owned, np.ones((len(owned), 3), np.float32))
    unpack(pack(shard), copy)
    assert np.array_equal(copy.hosted(1).segment.pull(owned), hosted.segment.pull(owned)) and len(owned)
    assert np.array_equal(copy.hosted(1).segment.resolve(owned), hosted.segment.resolve(owned))
