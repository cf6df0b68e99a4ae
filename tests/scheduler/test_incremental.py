"""Runs whose checkpoints are deltas: each is what a whole one would be, whichever rank dies, joins or leaves."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated import simulate
from synthetic import job_of

from mpips import Cluster, Column, VectorSpec, update
from mpips.checkpoint import checkpoint
from mpips.checkpoint.inspection import verify
from mpips.checkpoint.loading import load_range, vectors
from mpips.checkpoint.manifest import complete, read_manifest, step_of
from mpips.config.job_file import Job
from mpips.errors import CheckpointError
from mpips.keys import pairs
from mpips.ranges import ALL
from mpips.scheduler import checkpoint_coordinator
from mpips.transport.network_faults import Fault


@update("incremental_counted", columns=lambda spec: {"pushes": Column("int64"), "sum": Column("float64", 2)})
def counted(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> None:
    state["pushes"][slots] += 1
    state["sum"][slots] += rows
    values[slots] += rows


TABLE = VectorSpec("t", width=2, update="incremental_counted", init=0.5)
PLAIN = VectorSpec("w", "float32", update="adagrad", settings={"alpha": 0.5})
KEYS = np.sort(np.random.default_rng(3).integers(0, 2**64, 120, np.uint64))
STEPS = 10


@pytest.fixture(autouse=True, scope="module")
def no_sync() -> Iterator[None]:
    """Leave out what takes most of the time, and is tested elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


def job(place: Path, incremental: int, keep: int = 99) -> Job:
    checkpoint = {"incremental": incremental, "keep": keep, "every": 1}
    return job_of(place, {"job": {"program": "sketch"}, "data": {"train": "*.tsv"}, "checkpoint": checkpoint})


class Program:
    """Pushes to fewer and fewer keys, evicts, and saves after each step; what the digests were then."""

    def __init__(
        self, place: Path, resume: Path | None = None, stop: int = STEPS, moves: bool = False
    ) -> None:
        self.place, self.resume, self.stop, self.moves = place, resume, stop, moves
        self.digests: dict[int, tuple[str, str]] = {}
        self.said: list[str] = []

    def __call__(self, cluster: Cluster) -> dict[int, tuple[str, str]]:
        cluster.checkpoints, cluster.resume = self.place, self.resume
        cluster.coordinator._warn = self.said.append
        state = cluster.restore() or {"step": 0}
        t, w = cluster.vector(TABLE), cluster.vector(PLAIN)
        for step in range(state["step"], self.stop):
            some = KEYS[:: step + 1]
            t.push(some, np.full((len(some), 2), 0.25 + step)).result()
            w.push(some[::2], np.full(len(some[::2]), 0.5 - step, np.float32)).result()
            if step % 3 == 2:
                cluster.evict(t, 60, usage="pushes", also=[w])
            if self.moves and step == 2:
                cluster.membership.join_server()
            if self.moves and step == 6:
                cluster.membership.leave_server(cluster.node.view.servers[0])
            # A successor that repeats this step reads later rows.
            self.digests.setdefault(step + 1, (cluster.digest(t), cluster.digest(w)))
            cluster.checkpoint(step + 1, {"step": step + 1})
            cluster.coordinator.settle()
        return self.digests


def sha(path: Path, spec: VectorSpec) -> str:
    """Return what `cluster.digest` would: of (key, row) records without the rows of initial values."""
    keys, values, _ = load_range(path, spec.name, [ALL])
    some = (values != spec.initial(keys)).any(axis=1)
    keys, values = keys[some], values[some]
    record = np.empty(len(keys), [("key", keys.dtype), ("row", values.dtype, (spec.width,))])
    record["key"], record["row"] = keys, values
    return hashlib.sha256(record.tobytes()).hexdigest()


def content(path: Path) -> dict[str, Any]:
    """Return all rows of a checkpoint, state included, as bytes."""
    found = {}
    for name in vectors(path):
        rows = load_range(path, name, [ALL])
        state = {column: rows.state[column].tobytes() for column in sorted(rows.state)}
        found[name] = pairs(rows.keys).tobytes(), rows.values.tobytes(), state
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """Return the contents of whole checkpoints of the same run, by step."""
    place = tmp_path_factory.mktemp("whole")
    simulate(Program(place), lambda context: None, job=job(place / "job", 0), servers=1)
    assert all(read_manifest(path)["version"] == 1 for path in complete(place))
    return {read_manifest(path)["about"]["step"]: content(path) for path in complete(place)}


def check(program: Program, whole: dict[int, dict[str, Any]], digests: Any) -> list[bool]:
    """Compare all checkpoints with whole ones of their steps; return which of them are deltas."""
    deltas = []
    valid = set[Path]()
    for path in complete(program.place):
        manifest = read_manifest(path)
        step = manifest["about"]["step"]
        assert verify(path, valid=valid) == []
        assert content(path) == whole[step], path
        assert (sha(path, TABLE), sha(path, PLAIN)) == digests[step]
        deltas.append("follows" in manifest)
    return deltas


LAYOUTS: list[dict[str, Any]] = [
    {"servers": 3, "virtual_servers": 2},
    {"servers": 2, "spares": 1, "replicas": 1, "moves": True},
]


@pytest.mark.drawn(2)
@pytest.mark.parametrize("how", LAYOUTS)
def test_deltas_are_whole_checkpoints_on_any_layout(
    tmp_path: Path, whole: dict[int, dict[str, Any]], how: dict[str, Any]
) -> None:
    how = dict(how)
    program = Program(tmp_path / "c", moves=how.pop("moves", False))
    digests = simulate(program, lambda context: None, job=job(tmp_path / "job", 3), **how)
    assert check(program, whole, digests) == ([False, True, True, True] * 3)[:STEPS]
    assert program.said == []


KILLS = [
    pytest.param(rank, at, marks=() if (rank, at) in ((0, 150), (1, 240)) else pytest.mark.long)
    for rank in (0, 1, 2)
    for at in (90, 150, 240, 330, 420)
]


@pytest.mark.drawn(2)
@pytest.mark.parametrize(("rank", "at"), KILLS)
def test_deltas_are_whole_checkpoints_when_a_rank_is_killed(
    tmp_path: Path, whole: dict[int, dict[str, Any]], rank: int, at: int
) -> None:
    """A server whose copies take over, in between and while it writes; or the scheduler, which a successor replaces."""
    program, settings = Program(tmp_path / "c"), job(tmp_path / "job", 4)
    lost = [Fault("kill", rank, after_messages=at)]
    digests = simulate(program, lambda context: None, job=settings, servers=2, replicas=1, faults=lost)
    deltas = check(program, whole, digests)
    assert deltas.count(True) >= 5, (deltas, program.said)


def test_a_resumed_run_begins_with_a_base_on_another_layout(
    tmp_path: Path, whole: dict[int, dict[str, Any]]
) -> None:
    first = Program(tmp_path / "c", stop=4)
    simulate(first, lambda context: None, job=job(tmp_path / "job", 5), servers=2)
    last = complete(tmp_path / "c")[-1]
    assert "follows" in read_manifest(last)
    again = Program(tmp_path / "c", resume=last)
    digests = simulate(again, lambda context: None, job=job(tmp_path / "job", 5), servers=3)
    assert check(again, whole, first.digests | digests) == [
        False,
        True,
        True,
        True,
        False,
        True,
        True,
        True,
        True,
        True,
    ]


def test_after_a_delta_that_cannot_be_written_comes_a_base(
    tmp_path: Path, whole: dict[int, dict[str, Any]]
) -> None:
    """A server is killed, and its successor would read from a checkpoint that has lost bytes since."""

    class Damaging(Program):
        def __call__(self, cluster: Cluster) -> dict[int, tuple[str, str]]:
            note = cluster.note

            def noted(event: str, **facts: Any) -> None:
                note(event, **facts)
                if event == "checkpoint" and facts["step"] == 3:
                    for file in Path(facts["folder"]).with_name("step-000001").glob("server-*.h5"):
                        data = file.read_bytes()
                        file.write_bytes(b"x" * len(data))
                    cluster.membership.leave_server(cluster.node.view.servers[0])

            cluster.note = noted  # type: ignore[method-assign]
            return super().__call__(cluster)

    program = Damaging(tmp_path / "c")
    digests = simulate(program, lambda context: None, job=job(tmp_path / "job", 9), servers=2, replicas=1)
    (said,) = program.said
    assert said.startswith("warning: no checkpoint was written (") and "step-000001/server-0000.h5" in said
    assert said.endswith("; the run continues, and the next checkpoint is a whole one")
    steps = {read_manifest(path)["about"]["step"]: path for path in complete(tmp_path / "c")}
    (dropped,) = set(whole) - steps.keys()
    assert dropped in (4, 5)
    assert [step for step in steps if "follows" not in read_manifest(steps[step])] == [1, dropped + 1]
    for step in range(dropped + 1, STEPS + 1):
        assert content(steps[step]) == whole[step] and sha(steps[step], TABLE) == digests[step][0]


def test_a_base_comes_after_all_that_fails(
    tmp_path: Path, whole: dict[int, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delta that is not committed, then a folder that is not made; later, a list that is not read."""
    commit, begin, listed = checkpoint.commit, checkpoint.begin, checkpoint_coordinator.complete_checkpoints

    def committed(folder: Path, *rest: Any) -> Path:
        if step_of(folder) == 3:
            raise CheckpointError("no commit")
        return commit(folder, *rest)

    def begun(directory: Path, step: int, *rest: Any) -> Path:
        if step == 4:
            raise CheckpointError("no folder")
        return begin(directory, step, *rest)

    def found(directory: Path) -> Any:
        if (directory / "step-000007").exists() and not (directory / "step-000008").exists():
            raise CheckpointError("no list")
        return listed(directory)

    monkeypatch.setattr(checkpoint, "commit", committed)
    monkeypatch.setattr(checkpoint, "begin", begun)
    monkeypatch.setattr(checkpoint_coordinator, "complete_checkpoints", found)
    program = Program(tmp_path / "c")
    digests = simulate(program, lambda context: None, job=job(tmp_path / "job", 9), servers=2)
    monkeypatch.undo()
    # Of steps 1, 2, 5, 6, ...
    assert check(program, whole, digests) == [False, True, False, True, False, True, True, True]
    assert [said.partition("(")[2].partition(")")[0] for said in program.said] == ["no commit", "no folder"]


def test_each_attempt_has_a_folder_of_its_own(tmp_path: Path, whole: dict[int, dict[str, Any]]) -> None:
    """A server may still have to write a file for an attempt that was given up."""
    folders: list[Path] = []

    class Losing(Program):
        def __call__(self, cluster: Cluster) -> dict[int, tuple[str, str]]:
            snapshot = cluster.coordinator._snapshot

            def copied(folder: Path, about: dict[str, Any], follows: dict[str, str] | None) -> bool:
                folders.append(folder)
                return len(folders) not in (2, 3) and snapshot(folder, about, follows)

            cluster.coordinator._snapshot = copied  # type: ignore[method-assign]
            return super().__call__(cluster)

    program = Losing(tmp_path / "c", stop=3)
    digests = simulate(program, lambda context: None, job=job(tmp_path / "job", 9), servers=2)
    names = ["step-000001", "step-000002", "step-000002-2", "step-000002-3", "step-000003"]
    assert [folder.name for folder in folders] == names
    assert check(program, whole, digests) == [False, True, True]


def test_old_ones_are_removed_with_their_base(tmp_path: Path) -> None:
    simulate(Program(tmp_path / "c"), lambda context: None, job=job(tmp_path / "job", 3, keep=1), servers=2)
    names = [path.name for path in complete(tmp_path / "c")]
    assert names == ["step-000009", "step-000010"] and len(list((tmp_path / "c").iterdir())) == 2
