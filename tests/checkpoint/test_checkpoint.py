"""Checkpoints: any layout can read them, a crash at any write leaves the previous one, and damage is detected."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpips.checkpoint.checkpoint import abandon, begin, check_directory, commit, prune
from mpips.checkpoint.inspection import describe, verify
from mpips.checkpoint.loading import load_range, load_server, load_worker, vectors
from mpips.checkpoint.manifest import latest, read_manifest
from mpips.checkpoint.writing import merge, save, save_note, write_shard, write_worker
from mpips.errors import CheckpointError, MpipsError
from mpips.ranges import ALL, KeyRange
from mpips.storage.segment import Segment
from mpips.storage.updates import VectorSpec

SPARSE = VectorSpec("w", "float32", update="ftrl", settings={"l1": 0.1})
DENSE = VectorSpec("counts", "int64", width=3, extent=50, dense=True)
KEYS = np.unique(np.random.default_rng(0).integers(0, 2**64, 200, dtype=np.uint64))
KEYS[[0, -1]] = 0, 2**64 - 1


def cut_up(extent: int, cuts: list[int], servers: int) -> list[list[KeyRange]]:
    """Distribute the pieces between the cuts over the servers, like virtual servers."""
    bounds = [0, *sorted({cut for cut in cuts if 0 < cut < extent}), extent]
    pieces = list(itertools.starmap(KeyRange, itertools.pairwise(bounds)))
    return [pieces[i::servers] for i in range(servers)]


def segment_of(path: Path, name: str, ranges: list[KeyRange]) -> Segment:
    """Return a server's segment of one vector, read from a checkpoint of any layout."""
    segment = Segment(vectors(path)[name], ranges)
    segment.import_state(load_range(path, name, ranges))
    return segment


def filled(spec: VectorSpec, ranges: list[KeyRange]) -> Segment:
    """Return a segment as pushes would have left it: the same rows for a key in any layout."""
    segment = Segment(spec, ranges)
    if spec.dense:
        keys = segment.listed(ALL)
    else:
        mine = [bool(np.any([r.begin <= k < r.end for r in ranges])) for k in KEYS.tolist()]
        keys = np.random.default_rng(1).permutation(KEYS[mine])
    rows = np.stack([(keys * np.uint64(7 + j)) % np.uint64(11) for j in range(spec.width)], axis=1)
    for scale in (1, 2):
        segment.push(keys, (rows.astype(spec.dtype) - 5) * scale)
    return segment


def write(directory: Path, step: int, layout: int = 2, workers: int = 1) -> Path:
    folder = begin(directory, step)
    cuts = [10, 20, 2**62, 2**63, 2**63 + 5]
    parts = zip(cut_up(2**64, cuts, layout), cut_up(50, cuts, layout), strict=True)
    files = [
        write_shard(folder, n, {"w": filled(SPARSE, a), "counts": filled(DENSE, b)}, {"clock": [n, 2**40]})
        for n, (a, b) in enumerate(parts)
    ]
    files += [
        write_worker(folder, n, {"dual": np.arange(5.0) + n, "order": np.arange(6).reshape(2, 3)}, {"n": n})
        for n in range(workers)
    ]
    commit(folder, files, {"step": step, "program": "test", "random": {"state": [1, 2]}})
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sound"), 120)


def test_a_folder_is_named_by_its_step(sound: Path) -> None:
    assert sound.name == "step-000120"
    names = ["manifest.json", "parameters.h5", "server-0000.h5", "server-0001.h5", "worker-0000.h5"]
    assert sorted(path.name for path in sound.iterdir()) == names
    assert verify(sound) == []
    assert latest(sound.parent) == sound
    assert read_manifest(sound)["about"] == {"step": 120, "program": "test", "random": {"state": [1, 2]}}


def test_what_was_written_is_read_back(sound: Path) -> None:
    assert load_server(sound, 1) == {"clock": [1, 2**40]}
    arrays, meta = load_worker(sound, 0)
    assert meta == {"n": 0}
    assert arrays["dual"].tolist() == [0, 1, 2, 3, 4]
    assert arrays["order"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert arrays["order"].dtype == np.int64
    specs = vectors(sound)
    assert specs["counts"] == DENSE
    assert specs["w"].settings == {"alpha": 0.1, "beta": 1.0, "l1": 0.1, "l2": 0.0}


cut = st.one_of(st.integers(0, 60), st.integers(0, 2**64))


@given(st.lists(cut, max_size=6), st.integers(1, 4))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_new_layout_has_the_same_parameters(sound: Path, cuts: list[int], servers: int) -> None:
    for spec in (SPARSE, DENSE):
        whole = filled(spec, [ALL])
        parts = [segment_of(sound, spec.name, mine) for mine in cut_up(spec.extent, cuts, servers)]
        rows = sorted(
            pair for part in parts for pair in zip(*map(np.ndarray.tolist, part.export()), strict=True)
        )
        assert rows == list(zip(*map(np.ndarray.tolist, whole.export()), strict=True))
        for part, mine in zip(parts, cut_up(spec.extent, cuts, servers), strict=True):
            for piece in mine:
                keys, values, state = whole.export_state(piece)
                again = part.export_state(piece)
                assert again.keys.tolist() == keys.tolist()
                assert again.values.tobytes() == values.tobytes()
                assert {k: v.tobytes() for k, v in again.state.items()} == {
                    k: v.tobytes() for k, v in state.items()
                }
            assert len(part) == sum(len(whole.export_state(piece).keys) for piece in mine)


@given(st.lists(cut, max_size=5), st.integers(1, 3), st.lists(cut, max_size=5))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_old_layout_is_read_whole(
    tmp_path: Path, cuts: list[int], servers: int, wanted: list[int]
) -> None:
    folder = begin(tmp_path, 1)
    layout = cut_up(2**64, cuts, servers)
    commit(folder, [write_shard(folder, n, {"w": filled(SPARSE, mine)}) for n, mine in enumerate(layout)])
    whole = filled(SPARSE, [ALL])
    for piece in itertools.starmap(KeyRange, itertools.pairwise([0, *sorted(wanted), 2**64])):
        rows = load_range(folder, "w", [piece])
        expected = whole.export_state(piece)
        assert rows.keys.tolist() == expected.keys.tolist()
        assert rows.values.tobytes() == expected.values.tobytes()
        assert rows.state["z"].tobytes() == expected.state["z"].tobytes()


def test_training_may_continue_while_a_saved_copy_is_written(tmp_path: Path) -> None:
    segment = filled(SPARSE, [ALL])
    before = segment.export_state()
    saved = save(segment)
    segment.push(KEYS, np.ones((len(KEYS), 1), np.float32))
    folder = begin(tmp_path, 1)
    commit(folder, [write_shard(folder, 0, {"w": saved})])
    assert load_range(folder, "w", [ALL]).values.tobytes() == before.values.tobytes()
    assert segment.export_state().values.tobytes() != before.values.tobytes()


@given(st.lists(cut, max_size=8), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_the_parts_of_several_shards_are_joined_in_key_order(cuts: list[int], shards: int) -> None:
    """However the ranges are dealt out, joining gives what one segment with all of them would have saved."""
    for spec in (SPARSE, DENSE):
        layout = cut_up(spec.extent, cuts, shards)
        one = merge([save(filled(spec, mine)) for mine in layout])
        whole = save(filled(spec, [ALL] if spec is SPARSE else [KeyRange(0, 50)]))
        assert one.spec == whole.spec and one.settings == whole.settings
        assert one.ranges == whole.ranges
        assert one.rows.keys.tolist() == whole.rows.keys.tolist()
        assert one.rows.values.tobytes() == whole.rows.values.tobytes()
        assert {k: v.tobytes() for k, v in one.rows.state.items()} == {
            k: v.tobytes() for k, v in whole.rows.state.items()
        }


def test_joined_parts_are_a_servers_file(tmp_path: Path) -> None:
    layout = cut_up(2**64, [10, 2**62, 2**63, 2**63 + 5], 3)
    parts = [save(filled(SPARSE, mine)) for mine in layout]
    notes = [save_note(filled(SPARSE, [ALL]), "tau", (np.array([2, 0], np.int32), np.array([[1], [2]])))]
    folder = begin(tmp_path, 1)
    files = [write_shard(folder, 0, {"w": merge(parts[:2])}), write_shard(folder, 1, {"w": parts[2]})]
    commit(folder, files)
    assert verify(folder) == []
    assert load_range(folder, "w", [ALL]).keys.tolist() == KEYS.tolist()
    assert merge(notes) is notes[0]
    with pytest.raises(CheckpointError, match="of vector 'w' is in two shards of one server"):
        merge([parts[0], parts[1], parts[0]])


def test_the_same_state_is_the_same_bytes(tmp_path: Path) -> None:
    first = write(tmp_path / "a", 1)
    now = int(time.time())
    while int(time.time()) == now:  # HDF5 knows whole seconds
        time.sleep(0.01)
    second = write(tmp_path / "b", 1)
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_h5py_alone_reads_it(sound: Path, tmp_path: Path) -> None:
    """The virtual file shows all shards as one vector, from any working directory and after a move."""
    moved = tmp_path / "elsewhere"
    shutil.copytree(sound, moved)
    script = (
        "import h5py, json, sys\n"
        "f = h5py.File(sys.argv[1] + '/parameters.h5')\n"
        "w = f['w/keys'][()].tolist(), f['w/values'][:, 0].tolist()\n"
        "print(json.dumps([*w, f['counts/values'].shape]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(moved)], cwd="/", check=True, capture_output=True, text=True
    )
    keys, values, shape = json.loads(done.stdout)
    whole = filled(SPARSE, [ALL]).export_state()
    assert keys == whole.keys.tolist()
    assert values == whole.values[:, 0].tolist()
    assert shape == [50, 3]
    with h5py.File(sound / "server-0000.h5") as shard:
        assert shard["vectors/w/values"].fletcher32
        assert sorted(shard["vectors/w/state"]) == ["n", "z"]


# Crashes.


class Killed(BaseException):
    """The process was killed: no code runs after this."""


def test_a_crash_at_any_write_leaves_the_former_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any call that touches the disk may be the last one, and files that were not yet synced may be cut."""
    former = write(tmp_path / "former", 100)
    done, limit = 0, 0
    synced: set[str] = set()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            done += 1
            if done > limit:
                raise Killed
            return function(*args, **kwargs)

        return wrapped

    fsync = os.fsync

    def noted(handle: int) -> None:
        fsync(handle)
        synced.add(os.readlink(f"/proc/self/fd/{handle}"))

    monkeypatch.setattr(os, "fsync", counted(noted))
    monkeypatch.setattr(os, "replace", counted(os.replace))
    monkeypatch.setattr(h5py.Group, "create_dataset", counted(h5py.Group.create_dataset))
    monkeypatch.setattr(Path, "write_text", counted(Path.write_text))
    outcomes = []
    while True:
        directory = tmp_path / f"{limit}"
        shutil.copytree(former.parent, directory)
        done = 0
        try:
            write(directory, 120)
        except Killed:
            pass
        else:
            break
        finally:
            calls, done = done, -(10**9)
        for file in (directory / "step-000120").glob("*.h5"):
            if str(file) not in synced:
                file.write_bytes(file.read_bytes()[:-100])
        found = latest(directory)
        assert found is not None
        assert verify(found) == []
        outcomes.append(found.name)
        limit += 1
    assert calls == limit > 30
    # only the last sync, that of the folder after the rename, finds the new checkpoint in place
    assert outcomes == ["step-000100"] * (limit - 1) + ["step-000120"]


def test_an_incomplete_folder_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    former = write(tmp_path, 1)
    folder = begin(tmp_path, 2)
    write_shard(folder, 0, {"w": filled(SPARSE, [ALL])})
    write_shard(folder, 7, {"w": filled(SPARSE, [ALL])})
    assert latest(tmp_path) == former
    assert latest(tmp_path / "nowhere") is None
    assert write(tmp_path, 2) == folder
    assert latest(tmp_path) == folder
    assert not (folder / "server-0007.h5").exists()
    assert verify(folder) == []


def test_a_complete_checkpoint_stays_while_another_of_its_step_is_made(tmp_path: Path) -> None:
    """A run that was resumed from a step may well make a checkpoint of that step, and die in the middle."""
    former = write(tmp_path, 20)
    torn = begin(tmp_path, 20)
    assert torn.name == "step-000020-2" and latest(tmp_path) == former
    write_shard(torn, 7, {"w": filled(SPARSE, [ALL])})
    second = write(tmp_path, 20)
    assert second == torn and not (torn / "server-0007.h5").exists()
    assert latest(tmp_path) == second and verify(former) == []
    assert prune(tmp_path, 1) == [former]
    third = write(tmp_path, 20)
    assert third.name == "step-000020-3" and latest(tmp_path) == third
    assert write(tmp_path, 21).name == "step-000021"
    assert [path.name for path in prune(tmp_path, 1)] == ["step-000020-2", "step-000020-3"]


def test_abandon_removes_incomplete_folders_only(tmp_path: Path) -> None:
    sound = write(tmp_path, 1)
    torn = begin(tmp_path, 2)
    write_shard(torn, 0, {"w": filled(SPARSE, [ALL])})
    (torn / "left").mkdir()
    (torn / ".manifest.json").write_text("{")
    (tmp_path / "notes").mkdir()
    for path in (sound, torn, torn, tmp_path / "notes", tmp_path / "step-000009" / "step-000001"):
        abandon(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "step-000001"]
    assert verify(sound) == []


def test_prune_keeps_the_newest_and_what_is_being_written(tmp_path: Path) -> None:
    for step in (1, 2, 4, 1_000_000):
        write(tmp_path, step)
    begin(tmp_path, 3)
    begin(tmp_path, 1_000_001)
    (tmp_path / "step-000002" / "worker-0000.h5").unlink()
    (tmp_path / "notes").mkdir()
    removed = prune(tmp_path, 2)
    assert [path.name for path in removed] == ["step-000001", "step-000002", "step-000003"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "notes",
        "step-000004",
        "step-1000000",
        "step-1000001",
    ]
    assert latest(tmp_path) == tmp_path / "step-1000000"
    assert prune(tmp_path, 0) == [tmp_path / "step-000004"]
    assert prune(tmp_path / "nowhere", 1) == []


# Invalid and empty checkpoints.


def test_shards_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    folder = begin(tmp_path, 1)
    low, high = KeyRange(0, 2**63), KeyRange(2**63, 2**64)
    first = write_shard(folder, 0, {"w": filled(SPARSE, [low])})
    with pytest.raises(
        CheckpointError, match=r"no shard holds the keys of vector 'w' in \[9223372036854775808"
    ):
        commit(folder, [first])
    both = write_shard(folder, 1, {"w": filled(SPARSE, [ALL])})
    with pytest.raises(CheckpointError, match="more than one shard holds the keys of vector 'w' at 0"):
        commit(folder, [first, both])
    other = write_shard(folder, 1, {"w": filled(VectorSpec("w"), [high])})
    with pytest.raises(CheckpointError, match="differ in its specification"):
        commit(folder, [first, other])
    first["vectors"]["w"]["ranges"][0][3] = -1
    with pytest.raises(CheckpointError, match=r"server-0000.h5: vector 'w': .* is not a range"):
        commit(folder, [first])
    assert latest(tmp_path) is None


def test_empty_vectors_and_arrays(tmp_path: Path) -> None:
    folder = begin(tmp_path, 0)
    entries = [write_shard(folder, 0, {"w": Segment(SPARSE)})]
    entries.append(write_worker(folder, 0, {"none": np.empty((0, 2)), "one": np.array(3, np.int32)}))
    commit(folder, entries)
    rows = load_range(folder, "w", [ALL])
    assert (rows.keys.shape, rows.values.shape, rows.values.dtype) == ((0,), (0, 1), np.float32)
    assert sorted(rows.state) == ["n", "z"]
    assert len(segment_of(folder, "w", [])) == 0
    arrays, meta = load_worker(folder, 0)
    assert (arrays["none"].shape, arrays["one"].item(), meta) == ((0, 2), 3, {})
    with h5py.File(folder / "parameters.h5") as view:
        assert view["w/keys"].shape == (0,)


def test_unsupported_arrays_and_invalid_checkpoints(tmp_path: Path, sound: Path) -> None:
    folder = begin(tmp_path, 1)
    with pytest.raises(CheckpointError, match="'names' of <U1 cannot be saved"):
        write_worker(folder, 0, {"names": np.array(["a"])})
    with pytest.raises(CheckpointError, match="is not a complete checkpoint"):
        read_manifest(folder)
    with pytest.raises(CheckpointError, match="cannot write"):
        write_worker(tmp_path / "nowhere", 0, {})
    with pytest.raises(CheckpointError, match=r"has no vector 'v'; it has: counts, w"):
        load_range(sound, "v", [ALL])
    (folder / "manifest.json").write_text('{"format": "mpips checkpoint", "version": 3}')
    with pytest.raises(CheckpointError, match="format version 3, this mpips reads 1 and 2"):
        read_manifest(folder)
    for text, message in (("{", "not JSON"), ("[]", "not a manifest"), ("{}", "not a manifest")):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(CheckpointError, match=message):
            describe(folder)


@pytest.mark.parametrize(
    ("state", "read"),
    [
        ({"counts": {2: 1, 10: 2}}, {"counts": {"2": 1, "10": 2}}),
        ({"counts": {2: 1, "a": 2}}, {"counts": {"2": 1, "a": 2}}),
        ({"loss": np.float64(0.5), "at": np.int64(3)}, {"loss": 0.5, "at": 3}),
        ({"order": np.arange(3), "seen": (1, 2)}, {"order": [0, 1, 2], "seen": [1, 2]}),
    ],
)
def test_a_state_that_json_writes_in_another_way_is_read_back(tmp_path: Path, state: Any, read: Any) -> None:
    folder = commit(begin(tmp_path, 1), [], {"step": 1, "state": state}).parent
    assert read_manifest(folder)["about"]["state"] == read


@pytest.mark.parametrize(
    ("about", "why"),
    [
        ({"step": 1, "state": {"blob": b"x"}}, r"about\.state\.blob is a bytes"),
        ({"step": 1, "state": {"huge": 10**5000}}, r"about.state.huge is an integer beyond 2\*\*1000"),
        ({"step": 1.5}, "cannot write .*manifest.json: about.step is a number, and should be an integer"),
    ],
)
def test_a_manifest_that_could_not_be_read_back_is_not_written(tmp_path: Path, about: Any, why: str) -> None:
    folder = begin(tmp_path, 1)
    with pytest.raises(MpipsError, match=why):
        commit(folder, [], about)
    assert not (folder / "manifest.json").exists()


def test_describe(sound: Path) -> None:
    lines = describe(sound).splitlines()
    assert "complete" in lines[0]
    assert "shards 2, worker states 1" in lines[0]
    assert "  step: 120" in lines
    settings_text = "alpha = 0.1, beta = 1.0, l1 = 0.1, l2 = 0.0"
    assert f"  vector w: {len(KEYS)} keys, float32, sparse, update ftrl, {settings_text}" in lines
    assert "  vector counts: 50 keys, int64 x 3, dense, update add" in lines


def test_a_shard_that_refers_to_another_file_is_not_read(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["keys"] = np.arange(3, dtype=np.uint64)
    with h5py.File(folder / "server-0000.h5", "r+") as file:
        del file["vectors/w/keys"]
        file["vectors/w/keys"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "keys")
    with pytest.raises(CheckpointError, match=r"'vectors/w/keys' is an external link.*refused"):
        load_range(folder, "w", [ALL])


def test_a_folder_whose_name_has_a_zero_byte_is_refused_before_the_run() -> None:
    with pytest.raises(CheckpointError, match=r"cannot be written to 'a\\x00b': it is not a file name"):
        check_directory(Path("a\0b"))


def test_rows_of_another_kind_than_a_caller_expects_are_refused(tmp_path: Path) -> None:
    folder = begin(tmp_path, 1)
    wide = Segment(VectorSpec("w", "float32", width=2, key_bits=128))
    commit(folder, [write_shard(folder, 0, {"w": wide})], {"step": 1})
    assert load_range(folder, "w", [ALL], dtype="float32", width=2, key_bits=128).values.shape == (0, 2)
    for other, said in (
        ({"dtype": "float64"}, "has the dtype float32, not float64"),
        ({"width": 1}, "has the width 2, not 1"),
        ({"key_bits": 64}, "has the key_bits 128, not 64"),
    ):
        with pytest.raises(CheckpointError, match=f"step-000001: vector 'w' {said}"):
            load_range(folder, "w", [ALL], **other)  # type: ignore[arg-type]


def test_a_manifest_is_not_written_through_a_link(tmp_path: Path) -> None:
    """As another user of a folder of a group may make it: the name that is written first cannot be foreseen."""
    (tmp_path / "theirs").write_text("kept")
    folder = begin(tmp_path, 1)
    (folder / ".manifest.json").symlink_to(tmp_path / "theirs")
    (folder / "manifest.json").symlink_to(tmp_path / "theirs")
    commit(folder, [write_shard(folder, 0, {"w": filled(SPARSE, [ALL])})], {"step": 1})
    assert verify(folder) == [] and (tmp_path / "theirs").read_text() == "kept"
