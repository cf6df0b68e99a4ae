"""Deltas: read after their base, they are what a whole checkpoint would be, whatever happened in between."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpips.checkpoint import loading
from mpips.checkpoint.checkpoint import begin, commit, prune
from mpips.checkpoint.delta import Delta, digest, merged, since, then
from mpips.checkpoint.inspection import describe, verify
from mpips.checkpoint.lineage import Lineage
from mpips.checkpoint.loading import HeldRows, load_range, vectors
from mpips.checkpoint.manifest import complete, damaged, from_base, latest, read_manifest
from mpips.checkpoint.shard_writer import ShardWriter, without
from mpips.checkpoint.writing import Saved, save_note, write_shard
from mpips.errors import CheckpointError
from mpips.keys import from_pairs
from mpips.ranges import ALL, KeyRange, coalesce
from mpips.report.table_diff import of_checkpoint, tables_differ
from mpips.storage.segment import Rows, Segment, one_by_one
from mpips.storage.updates import VectorSpec

NARROW = VectorSpec("w", "float64", update="ftrl")
WIDE = VectorSpec("v", "float32", width=3, update="adagrad", key_bits=128)
DENSE = VectorSpec("d", "int64", width=2, extent=5, dense=True)
SPECS = (NARROW, WIDE, DENSE)
KEYS = np.array([0, 1, 2, 3, 4, 2**63, 2**64 - 1], np.uint64)


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes most of the time, and is tested elsewhere."""
    monkeypatch.setattr(os, "fsync", lambda file: None)


def keys_of(spec: VectorSpec, numbers: list[int]) -> Any:
    """Return keys by their places in KEYS; of 128-bit ones some share an upper half."""
    found = KEYS[sorted(numbers)]
    if spec.dense:
        return found[found < 5]
    if spec.key_bits == 64:
        return found
    return from_pairs(np.stack([found // np.uint64(2), found], axis=1))


def same(a: Rows, b: Rows) -> bool:
    columns = [a.state.keys() == b.state.keys(), np.array_equal(a.keys, b.keys), a.keys.dtype == b.keys.dtype]
    pairs = [(a.values, b.values), *((a.state[name], b.state[name]) for name in a.state)]
    return all(columns) and all(x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in pairs)


class Store:
    """A store that is saved as deltas and, beside them, whole; its layout may change at any time."""

    def __init__(self, place: Path) -> None:
        self.segments = {spec.name: Segment(spec) for spec in SPECS}
        self.deltas, self.whole = place / "deltas", place / "whole"
        self.writers = [ShardWriter() for _ in range(2)]
        self.cuts, self.step = [2**62], 0
        self.held = HeldRows()

    def push(self, numbers: list[int], by: int) -> None:
        for segment in self.segments.values():
            keys = keys_of(segment.spec, numbers)
            rows = np.full((len(keys), segment.spec.width), by, segment.spec.dtype)
            segment.push(keys, rows)

    def evict(self, numbers: list[int]) -> None:
        for segment in self.segments.values():
            if not segment.spec.dense:
                gone = one_by_one(segment.resolve(keys_of(segment.spec, numbers)))
                kept = np.ones(len(segment), bool)
                kept[gone[gone >= 0]] = False
                segment.keep(kept)

    def note(self, numbers: list[int]) -> None:
        segment = self.segments["w"]
        slots = one_by_one(segment.resolve(keys_of(NARROW, numbers)))
        slots = slots[slots >= 0]
        if len(slots):
            segment.notes["n"] = slots, np.full((len(slots), 1 + self.step // 2 % 2), float(self.step))
        else:
            segment.notes.pop("n", None)

    def lose(self, number: int) -> None:
        self.writers[number] = ShardWriter()

    def parts(self, server: int) -> dict[str, Saved]:
        """Copy what one of two servers holds, as pieces of the ring."""
        found = {}
        for name, segment in self.segments.items():
            bounds = [
                0,
                *sorted({cut for cut in self.cuts if 0 < cut < segment.spec.extent}),
                segment.spec.extent,
            ]
            mine = list(itertools.starmap(KeyRange, itertools.pairwise(bounds)))[server::2]
            pieces = [segment.export_state(piece) for piece in mine]
            empty = segment.export_state(KeyRange(0, 0))
            rows = joined([empty, *pieces])
            found[name] = Saved(segment.spec, dict(segment.settings), coalesce(mine), rows)
            for note, noted in segment.notes.items():
                saved = save_note(segment, note, noted)
                which = np.array(
                    [any(r.begin <= k < r.end for r in mine) for k in saved.rows.keys.tolist()], bool
                )
                if which.any():
                    rows = Rows(saved.rows.keys[which], saved.rows.values[which], {})
                    found[saved.spec.name] = saved._replace(ranges=coalesce(mine), rows=rows)
        return found

    def checkpoint(self, most: int) -> None:
        self.step += 1
        folder = begin(self.deltas, self.step)
        links = from_base(last) if (last := latest(self.deltas)) else []
        follows = None
        if 0 < len(links) <= most:
            follows = {"checkpoint": links[-1][0].name, "sha256": links[-1][1]["sha256"]}
        name = follows and follows["checkpoint"]
        files = [
            writer.write(folder, n, self.parts(n), {"server": n}, name)
            for n, writer in enumerate(self.writers)
        ]
        commit(folder, files, {"step": self.step}, follows=follows)
        whole = begin(self.whole, self.step)
        commit(
            whole,
            [write_shard(whole, n, self.parts(n), {"server": n}) for n in range(2)],
            {"step": self.step},
        )
        self.last = folder, whole
        for name in vectors(whole):
            with self.held.used():
                assert same(load_range(folder, name, [ALL]), load_range(whole, name, [ALL]))

    def check(self) -> None:
        """Compare the last checkpoints in all ways."""
        folder, whole = self.last
        assert verify(folder) == []
        assert vectors(folder) == vectors(whole)
        for name in vectors(whole):
            for ranges in ([ALL], [KeyRange(1, 3), KeyRange(2**63, 2**64)], [KeyRange(9, 10)]):
                assert same(load_range(folder, name, ranges), load_range(whole, name, ranges))
        assert not any(each.differing or each.note for each in tables_differ(folder, whole, of_checkpoint))


def joined(parts: list[Rows]) -> Rows:
    state = {name: np.concatenate([part.state[name] for part in parts]) for name in parts[0].state}
    return Rows(np.concatenate([p.keys for p in parts]), np.concatenate([p.values for p in parts]), state)


some = st.lists(st.integers(0, len(KEYS) - 1), unique=True, min_size=1)
acts = st.one_of(
    st.tuples(st.just("push"), some, st.integers(-2, 2)),
    st.tuples(st.just("evict"), some),
    st.tuples(st.just("note"), some),
    st.tuples(st.just("lose"), st.integers(0, 1)),
    st.tuples(st.just("layout"), st.lists(st.sampled_from([2, 3, 2**62, 2**63, 2**64 - 1]), max_size=3)),
    st.tuples(st.just("checkpoint")),
    st.tuples(st.just("checkpoint")),
)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(acts=st.lists(acts, min_size=4, max_size=9), most=st.integers(1, 3))
def test_deltas_are_what_whole_checkpoints_are(
    tmp_path_factory: pytest.TempPathFactory, acts: list[Any], most: int
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    for name, *arguments in [("push", [1, 5], 1), ("checkpoint",), *acts, ("checkpoint",)]:
        if name == "layout":
            store.cuts = arguments[0]
        elif name == "checkpoint":
            store.checkpoint(most)
        else:
            getattr(store, name)(*arguments)
    store.check()


values = st.dictionaries(st.integers(0, 9), st.integers(-1, 1), max_size=8)


def rows_of(model: dict[int, int], wide: bool) -> Rows:
    numbers = np.array(sorted(model), np.uint64)
    keys = from_pairs(np.stack([numbers // np.uint64(3), numbers], axis=1)) if wide else numbers
    column = np.array([model[key] for key in sorted(model)], np.int8).reshape(-1, 1)
    return Rows(keys, column.astype(np.float32), {"n": column})


@given(models=st.lists(values, min_size=1, max_size=5), wide=st.booleans(), cut=st.integers(0, 5))
def test_deltas_add_up_in_any_grouping(models: list[dict[int, int]], wide: bool, cut: int) -> None:
    states = [rows_of(model, wide) for model in models]
    base = Delta(states[0], states[0].keys[:0])
    steps = [since(digest(a), b, digest(b)) for a, b in itertools.pairwise(states)]
    for step, (a, b) in zip(steps, itertools.pairwise(models), strict=True):
        assert len(step.rows.keys) == sum(a.get(key) != value for key, value in b.items())
        assert len(step.deleted) == len(a.keys() - b.keys())
    one_by_one = base
    for step in steps:
        one_by_one = then(one_by_one, step)
    last = None
    for step in reversed([base, *steps]):
        last = step if last is None else then(step, last)
    assert last is not None and same(last.rows, states[-1]) and same(one_by_one.rows, states[-1])
    middle = states[-1].keys[:cut], states[-1].keys[cut:]
    whole = digest(states[-1])
    halves = [type(whole)(keys, whole.hashes[np.isin(whole.keys, keys)]) for keys in middle]
    assert np.array_equal(merged(halves[::-1]).hashes, whole.hashes)


def test_each_byte_of_a_row_counts() -> None:
    rng = np.random.default_rng(0)
    for dtype, width in (("f4", 1), ("f4", 4), ("i1", 3), ("f8", 2)):
        values = rng.integers(0, 100, (1, width)).astype(dtype)
        rows = Rows(np.array([7], np.uint64), values, {"n": values[:, :1].copy()})
        hashes = {int(digest(rows).hashes[0])}
        for column in (rows.values, rows.state["n"]):
            raw = column.view(np.uint8).reshape(-1)
            for at in range(len(raw)):
                raw[at] ^= 1
                hashes.add(int(digest(rows).hashes[0]))
                raw[at] ^= 1
        assert len(hashes) == 1 + values.nbytes + values[:, :1].nbytes


@given(
    a=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))),
    b=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))),
)
def test_what_lies_in_no_other_range(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    ranges, others = (coalesce(itertools.starmap(KeyRange, each)) for each in (a, b))
    inside = lambda key, them: any(each.begin <= key < each.end for each in them)  # noqa: E731
    left = without(ranges, others)
    assert coalesce(left) == sorted(left)
    assert [inside(key, left) for key in range(9)] == [
        inside(key, ranges) and not inside(key, others) for key in range(9)
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Store(tmp_path_factory.mktemp("made"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        for number in range(4):
            store.push([number, 5], 1)
            if number == 2:
                store.evict([0])
            store.checkpoint(3)
    store.check()
    return store.deltas


@pytest.fixture
def deltas(made: Path, tmp_path: Path) -> Path:
    """Return a folder with a base and three deltas, steps 1 to 4."""
    return shutil.copytree(made, tmp_path / "deltas")


def step(folder: Path, number: int) -> Path:
    return folder / f"step-{number:06d}"


def test_a_delta_says_what_it_is(deltas: Path) -> None:
    manifests = [read_manifest(path) for path in complete(deltas)]
    assert [each["version"] for each in manifests] == [1, 2, 2, 2]
    assert ["parameters.h5" in {file["name"] for file in each["files"]} for each in manifests] == [
        True,
        False,
        False,
        False,
    ]
    assert manifests[2]["follows"] == {"checkpoint": "step-000002", "sha256": manifests[1]["sha256"]}
    text = describe(step(deltas, 3))
    assert "  delta 2 of the base step-000001: what has changed since step-000002\n" in text
    assert "vector w: 2 changed keys, 1 deleted, float64" in text
    with h5py.File(next(path for path in step(deltas, 3).glob("server-*.h5") if path.stat().st_size)) as file:
        assert file.attrs["version"] == 2 and "deleted" in file["vectors/w"]


def tampered(folder: Path, how: str) -> str:
    """Leave out, repeat, or exchange deltas; return what is said of the last one."""
    second, third = step(folder, 2), step(folder, 3)
    if how == "gap":
        shutil.rmtree(third)
        return f"{step(folder, 4)} is a delta: it has what changed after step-000003, which is missing in {folder}"
    if how == "repeat":
        shutil.rmtree(third)
        shutil.copytree(second, third)
    else:
        third.rename(folder / "x")
        second.rename(third)
        (folder / "x").rename(second)
    last = step(folder, 4)
    return f"{last} is a delta: it has what changed after another step-000003 than the one in {folder}: the sha256"


@pytest.mark.parametrize("how", ["gap", "repeat", "swap"])
def test_what_is_out_of_order_is_refused(deltas: Path, how: str) -> None:
    said = tampered(deltas, how)
    with pytest.raises(CheckpointError) as found:
        load_range(step(deltas, 4), "w", [ALL])
    assert str(found.value).startswith(said) and "\n" not in str(found.value)
    assert verify(step(deltas, 4)) == [str(found.value)]
    assert step(deltas, 4) not in complete(deltas)
    assert any(line.startswith(said) for line in damaged(deltas))


def test_a_delta_whose_base_lost_a_byte_is_damaged(deltas: Path) -> None:
    file = next(step(deltas, 1).glob("server-0000.h5"))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    (problem,) = verify(step(deltas, 4))
    assert problem == f"{file}: damaged: its sha256 is not the manifest's"
    # By size alone it is complete.
    assert step(deltas, 4) in complete(deltas)
    file.write_bytes(data[:-1])
    assert complete(deltas) == []
    assert len(damaged(deltas)) == 2, "the base, and the first delta of it for all"


def renamed(deltas: Path, base: str) -> Path:
    """Have the last delta follow another checkpoint; return its manifest."""
    from mpips.checkpoint.manifest import _own_hash

    path = step(deltas, 4) / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["follows"]["checkpoint"] = base
    path.write_text(json.dumps(manifest | {"sha256": _own_hash(manifest)}))
    return path


def test_a_delta_of_a_name_that_no_file_can_have_is_damaged(deltas: Path) -> None:
    path = renamed(deltas, "step-" + "1" * 300)
    (problem,) = verify(path.parent)
    assert f"which is missing in {deltas}" in problem and damaged(deltas) == [problem]


def test_a_delta_follows_a_checkpoint_beside_it_only(deltas: Path) -> None:
    path = renamed(deltas, "../step-000003")
    with pytest.raises(CheckpointError, match=r"'\.\./step-000003' is not named as a checkpoint's folder"):
        read_manifest(path.parent)


def test_what_a_kept_delta_needs_is_kept(deltas: Path) -> None:
    lineage = Lineage()
    for path in complete(deltas):
        assert prune(deltas, 4, lineage) == [] and path.exists()
    assert prune(deltas, 1, lineage) == []
    store = Store(deltas.parent / "more")
    store.deltas, store.step = deltas, 4
    store.checkpoint(0)
    # The delta of step 4 is kept, and with it all.
    assert prune(deltas, 2, lineage) == []
    store.checkpoint(3)
    assert prune(deltas, 2, lineage, [step(deltas, 2)]) == [step(deltas, 3), step(deltas, 4)]
    assert prune(deltas, 2, lineage) == [step(deltas, 1), step(deltas, 2)]
    assert complete(deltas) == [step(deltas, 5), step(deltas, 6)]


def test_what_cannot_be_removed_keeps_what_it_needs(deltas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(deltas.parent / "more")
    store.deltas, store.step = deltas, 4
    store.checkpoint(0)
    from mpips.checkpoint import checkpoint

    remove = checkpoint._remove

    def refuse(path: Path, lineage: Lineage) -> None:
        if path == step(deltas, 3):
            raise PermissionError(13, "Permission denied")
        remove(path, lineage)

    monkeypatch.setattr(checkpoint, "_remove", refuse)
    with pytest.raises(CheckpointError, match=r"cannot remove .*step-000003: Permission denied"):
        prune(deltas, 1, Lineage())
    assert complete(deltas) == [step(deltas, n) for n in (1, 2, 3, 5)]


def test_a_follower_reads_only_what_has_changed(deltas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    stored = loading._stored

    def watched(path: Path, *rest: Any) -> Delta:
        read.append(path.name)
        return stored(path, *rest)

    monkeypatch.setattr(loading, "_stored", watched)
    held = HeldRows()

    def names(number: int) -> list[str]:
        read.clear()
        with held.used():
            load_range(step(deltas, number), "w", [ALL])
        return read

    assert names(2) == ["step-000002", "step-000001"]
    assert names(2) == []
    assert names(4) == ["step-000004", "step-000003"]
    # Backwards, as after a resume from an earlier one.
    assert names(3) == ["step-000003", "step-000002", "step-000001"]


NOTED = VectorSpec("w.n", "float64", update="assign")
LOW, HIGH = KeyRange(0, 2**63), KeyRange(2**63, 2**64)


def saved(spec: VectorSpec, piece: KeyRange, rows: dict[int, float]) -> Saved:
    keys = np.array(sorted(rows), np.uint64)
    values = np.array([rows[key] for key in sorted(rows)]).reshape(-1, 1)
    return Saved(spec, {}, [piece], Rows(keys, values, {}))


def written(place: Path, *files: tuple[ShardWriter, list[Saved]]) -> Path:
    """Write a checkpoint after the last one."""
    last = latest(place)
    folder = begin(place, len(complete(place)) + 1)
    follows = {"checkpoint": last.name, "sha256": read_manifest(last)["sha256"]} if last else None
    entries = [
        writer.write(folder, n, {each.spec.name: each for each in parts}, {"server": n}, last and last.name)
        for n, (writer, parts) in enumerate(files)
    ]
    commit(folder, entries, {}, follows=follows)
    return folder


PLAIN = VectorSpec("w", "float64")


def test_files_of_equal_bytes_may_follow_others(tmp_path: Path) -> None:
    """The deltas without changes of two servers, of which one got the number of the other."""
    a, b, key = ShardWriter(), ShardWriter(), 2**63 + 1
    for _ in range(2):
        written(tmp_path, (a, [saved(PLAIN, ALL, {key: 1.0})]))
    for value in (2.0, 1.0):
        last = written(tmp_path, (b, [saved(PLAIN, LOW, {})]), (a, [saved(PLAIN, HIGH, {key: value})]))
        assert load_range(last, "w", [ALL]).values.tolist() == [[value]]


def test_a_follower_drops_what_is_in_no_range_any_more(tmp_path: Path) -> None:
    writers = ShardWriter(), ShardWriter()
    low = [saved(PLAIN, LOW, {1: 1.0}), saved(NOTED, LOW, {1: 5.0})]
    high = [saved(PLAIN, HIGH, {2**63: 1.0}), saved(NOTED, HIGH, {2**63: 6.0})]
    held = HeldRows()
    for parts, keys in ((high, [1, 2**63]), (high[:1], [1]), (high, [1, 2**63])):
        last = written(tmp_path, (writers[0], low), (writers[1], parts))
        with held.used():
            found = load_range(last, "w.n", [ALL])
        assert found.keys.tolist() == keys and same(found, load_range(last, "w.n", [ALL]))
        with pytest.raises(ValueError, match="read-only"):
            found.values[:] = 2.0


def test_a_note_without_ranges_has_no_rows(tmp_path: Path) -> None:
    nothing = saved(NOTED, KeyRange(0, 0), {})
    last = written(tmp_path, (ShardWriter(), [saved(PLAIN, ALL, {1: 1.0}), nothing]))
    assert load_range(last, "w.n", [ALL]).keys.tolist() == []


@pytest.mark.parametrize("missing", [None, 1, 2])
def test_each_manifest_is_read_once_also_where_a_base_is_missing(
    deltas: Path, monkeypatch: pytest.MonkeyPatch, missing: int | None
) -> None:
    from mpips.checkpoint import manifest

    if missing:
        shutil.rmtree(step(deltas, missing))
    read: list[Path] = []
    whole = manifest._read_if_whole
    monkeypatch.setattr(manifest, "_read_if_whole", lambda path: [read.append(path), whole(path)][1])
    there = [step(deltas, n) for n in (1, 2, 3, 4) if n != missing]
    assert complete(deltas) == [each for each in there if not missing or each < step(deltas, missing)]
    assert sorted(read) == there
    first = step(deltas, (missing or 0) + 1)
    said = f"{first} is a delta: it has what changed after step-00000{missing}, which is missing"
    read.clear()
    assert [line.split(" in ")[0] for line in damaged(deltas)] == ([said] if missing else [])
    assert sorted(read) == there


def test_a_commit_after_what_was_removed_is_refused(deltas: Path) -> None:
    last = read_manifest(step(deltas, 4))
    folder = begin(deltas, 5)
    files = [write_shard(folder, 0, {})]
    shutil.rmtree(step(deltas, 4))
    with pytest.raises(CheckpointError, match="step-000004, which it follows, was removed or replaced"):
        commit(folder, files, {}, follows={"checkpoint": "step-000004", "sha256": last["sha256"]})


def test_a_base_is_what_is_written_without_deltas(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.push([0, 3, 5], 2)
    entries = []
    for number, write in enumerate((write_shard, ShardWriter().write)):
        more: tuple[None, ...] = (None,) * number
        entries.append(write(begin(tmp_path, number), 0, store.parts(0), {"server": 0}, *more))  # type: ignore[operator]
    assert entries[0] == entries[1] and "deleted" not in entries[0]["vectors"]["w"]


def test_a_note_may_have_other_rows_than_before(tmp_path: Path) -> None:
    """Such as those of a round's history, of which another part is kept."""
    store = Store(tmp_path)
    store.push([0, 1, 5], 2)
    for _ in range(4):
        store.note([0, 5])
        store.checkpoint(9)
    store.check()
    notes = [vectors(path)["w.n"].width for path in complete(store.deltas)]
    assert notes == [1, 1, 2, 2]
