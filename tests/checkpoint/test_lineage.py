"""The lineage of checkpoints: runs that share a folder do not change each other's, and continue from their own."""

from __future__ import annotations

import json
import os
import resource
import threading
from pathlib import Path
from typing import Any

import pytest

from mpips.checkpoint.checkpoint import begin, commit, prune
from mpips.checkpoint.lineage import MARK, Ancestor, Lineage, newest_run, of_run, owner_of
from mpips.checkpoint.manifest import complete, order_of, read_manifest
from mpips.errors import CheckpointError
from mpips.provenance import run_json
from mpips.rundir.folder import RunFolder

A, B = Lineage("a" * 32, "/runs/a"), Lineage("b" * 32, "/runs/b")


def write(directory: Path, lineage: Lineage, step: int, **facts: Any) -> Path:
    folder = begin(directory, step, lineage)
    commit(folder, [], {"step": step}, {"id": lineage.run, **facts} if lineage.run else None, lineage.run)
    return folder


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def descendant(origin: Path, run: str, *before: tuple[Lineage, int, int], folder: str = "/runs/z") -> Lineage:
    ancestors = tuple(Ancestor(each.run, (step, attempt)) for each, step, attempt in before)
    return Lineage(run, folder, ancestors, str(origin.resolve()))


def test_a_run_removes_its_own_only(tmp_path: Path) -> None:
    """The younger run is the shorter one: by their steps alone all of its checkpoints would be the oldest."""
    for step in range(1, 7):
        write(tmp_path, A, step)
    for step in range(1, 4):
        write(tmp_path, B, step)
        prune(tmp_path, 2, B)
    assert names(B.checkpoints(tmp_path)) == ["step-000002-2", "step-000003-2"]
    assert names(A.checkpoints(tmp_path)) == [f"step-00000{step}" for step in range(1, 7)]
    assert names(prune(tmp_path, 1, A)) == [f"step-00000{step}" for step in range(1, 6)]
    assert len(B.checkpoints(tmp_path)) == 2


def test_checkpoints_without_a_run_stay_when_a_run_continues_from_one(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, Lineage(), step)  # of an earlier version, and of any run
    ours = descendant(tmp_path, "c" * 32, (Lineage(), 3, 1))
    write(tmp_path, ours, 4)
    assert prune(tmp_path, 1, ours) == [] and len(complete(tmp_path)) == 4


def test_two_runs_at_once_leave_each_others_attempts_alone(tmp_path: Path) -> None:
    theirs = begin(tmp_path, 5, A)
    (theirs / "server-0000.h5").write_bytes(b"half of it")
    ours = begin(tmp_path, 5, B)
    assert ours.name == "step-000005-2"
    commit(ours, [], {"step": 5}, None, B.run)
    write(tmp_path, B, 6)
    assert names(prune(tmp_path, 1, B)) == ["step-000005-2"]
    assert (theirs / "server-0000.h5").exists()
    commit(theirs, [], {"step": 5}, None, A.run)
    assert A.latest(tmp_path) == theirs and not (theirs / MARK).exists()


def test_no_two_runs_get_the_same_folder(tmp_path: Path) -> None:
    """However many begin at once, and whatever another one makes between the look and the making."""
    found: list[Path] = []

    def make(number: int) -> None:
        found.append(begin(tmp_path, 1, Lineage(f"{number:032x}", f"/runs/{number}")))

    threads = [threading.Thread(target=make, args=(number,)) for number in range(1, 17)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(set(found)) == len(found) == 16
    owners = {json.loads((path / MARK).read_text())["run"] for path in found}
    assert len(owners) == 16


@pytest.mark.parametrize(
    ("lineage", "gone"),
    [
        (A, True),
        (
            Lineage("c" * 32, A.folder, earlier=("d" * 32, A.run)),
            True,
        ),  # the next start but one in the same folder
        (Lineage("c" * 32, A.folder), False),  # on another node, in its own folder of the same path
        (
            Lineage("c" * 32, "/runs/copy", earlier=(A.run,)),
            False,
        ),  # a copy of the folder, while the run goes on
        (B, False),
        (descendant(Path("/"), "c" * 32, (A, 1, 1)), False),  # it may go on from a run that goes on itself
        (Lineage(), False),
    ],
)
def test_an_incomplete_attempt_is_removed_by_its_own_run_only(
    tmp_path: Path, lineage: Lineage, gone: bool
) -> None:
    torn = begin(tmp_path, 2, A)
    again = begin(tmp_path, 2, lineage)
    assert (again == torn) is gone
    commit(again, [], {"step": 2}, None, lineage.run)
    earlier = begin(tmp_path, 1, A)
    prune(tmp_path, 1, lineage)
    assert earlier.exists() is not gone
    assert torn.exists()


def test_an_attempt_that_cannot_be_marked_is_none(tmp_path: Path) -> None:
    """As after a kill at that point: no other run can take it for its own, or has to wonder whose it is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(CheckpointError, match=r"cannot make .*step-000001: File too large"):
            begin(tmp_path, 1, A)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("lineage", [A, Lineage()])
def test_an_attempt_whose_answer_was_lost_is_found_to_be_this_run_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lineage: Lineage
) -> None:
    rename = os.rename

    def twice(source: Path, target: Path) -> None:
        rename(source, target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", twice)
    assert names([begin(tmp_path, 1, lineage)]) == ["step-000001"]
    monkeypatch.setattr(os, "rename", rename)
    assert names([begin(tmp_path, 1, B)]) == ["step-000001-2"]
    assert sorted(os.listdir(tmp_path)) == ["step-000001", "step-000001-2"]


def test_an_attempt_that_another_run_makes_at_the_same_time_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpips.checkpoint.checkpoint.step_paths", lambda directory: [])
    made = [begin(tmp_path, 1, lineage) for lineage in (A, Lineage(), B)]
    (tmp_path / "step-000001-4").touch()
    made.append(begin(tmp_path, 1, B))
    assert names(made) == ["step-000001", "step-000001-2", "step-000001-3", "step-000001-5"]


def test_what_was_killed_before_it_was_marked_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "step-000001").mkdir()
    (tmp_path / "step-000002").mkdir()
    (tmp_path / "step-000002" / MARK).touch()
    assert names([write(tmp_path, A, step) for step in (1, 2, 3)]) == [
        "step-000001-2", "step-000002-2", "step-000003",
    ]  # fmt: skip
    assert names(prune(tmp_path, 1, A)) == ["step-000001-2", "step-000002-2"]


def test_a_descendant_has_what_it_continues_from_and_no_more(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, A, step)
    child = descendant(tmp_path, "c" * 32, (A, 2, 1))
    assert names(child.checkpoints(tmp_path)) == ["step-000001", "step-000002"]
    write(tmp_path, child, 3)
    grandchild = descendant(tmp_path, "d" * 32, (A, 2, 1), (child, 3, 2))
    assert child.latest(tmp_path) == grandchild.latest(tmp_path) == tmp_path / "step-000003-2"
    write(tmp_path, child, 4)
    assert grandchild.latest(tmp_path) == tmp_path / "step-000003-2"
    write(tmp_path, grandchild, 3)  # asked to stop at once
    assert grandchild.latest(tmp_path) == tmp_path / "step-000003-3"
    removed = prune(tmp_path, 1, grandchild)
    assert names(removed) == ["step-000001", "step-000002", "step-000003-2"]
    assert names(complete(tmp_path)) == ["step-000003", "step-000003-3", "step-000004", "step-000004-2"]


def test_prune_keeps_the_spared_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        write(tmp_path, A, step)
    monkeypatch.chdir(tmp_path)
    assert names(prune(Path(), 1, A, [tmp_path / "step-000001"])) == ["step-000002"]


def test_a_link_is_removed_and_never_followed(tmp_path: Path) -> None:
    kept, folder = write(tmp_path / "elsewhere", A, 1), tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "step-000001").symlink_to(kept)
    (folder / "step-000009").symlink_to(kept)
    (folder / "step-000002").symlink_to("/nowhere")
    before = {path: path.read_bytes() for path in kept.iterdir()}
    assert complete(folder) == []
    for step in (1, 2, 3):
        write(folder, A, step)
        prune(folder, 1, A)
    assert names(sorted(folder.iterdir())) == ["step-000003", "step-000009"]
    assert {path: path.read_bytes() for path in kept.iterdir()} == before


def test_what_cannot_be_removed_hinders_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        write(tmp_path, A, step)
    rmtree = __import__("shutil").rmtree

    def refuse(path: Path, *more: Any, **options: Any) -> None:
        if path.name == "step-000001":
            raise PermissionError(13, "Permission denied", str(path))
        rmtree(path, *more, **options)

    monkeypatch.setattr("shutil.rmtree", refuse)
    with pytest.raises(CheckpointError, match=r"cannot remove .*step-000001: Permission denied"):
        prune(tmp_path, 1, A)
    assert names(complete(tmp_path)) == ["step-000003"]


# --- which run --------------------------------------------------------------------------------------------


def test_the_newest_run_is_the_one_that_was_started_last(tmp_path: Path) -> None:
    assert newest_run(tmp_path / "nowhere") is None
    write(tmp_path, A, 66, started="2026-01-02T03:04:05+00:00")
    write(tmp_path, B, 3, started="2026-01-02T03:04:06+00:00")
    last = write(tmp_path, B, 4, started="2026-01-02T03:04:06+00:00")
    write(tmp_path, Lineage(), 99)  # of an earlier version
    assert newest_run(tmp_path) == last
    same = write(tmp_path, Lineage("c" * 32), 1, started="2026-01-02T03:04:06+00:00")
    os.utime(same, ns=(2**62, 2**62))
    assert newest_run(tmp_path) == same, "of two in one second, the one that has written last"


def test_who_wrote_a_checkpoint_of_an_earlier_version(tmp_path: Path) -> None:
    folder = begin(tmp_path, 1)
    commit(folder, [], {"step": 1}, {"id": A.run})
    assert owner_of(read_manifest(folder)) == A.run and A.latest(tmp_path) == folder
    other = begin(tmp_path, 2)
    commit(other, [], {"step": 2})
    assert owner_of(read_manifest(other)) == ""
    assert A.latest(tmp_path) == folder and prune(tmp_path, 1, A) == []


@pytest.mark.parametrize("way", ["resumed", "recorded", "linked"])
def test_a_checkpoint_from_elsewhere_makes_no_other_run_an_ancestor(tmp_path: Path, way: str) -> None:
    """Whoever made it may have written down any run as its own, and the checkpoints before it as of any folder."""
    ours = tmp_path / "ck"
    for step in (1, 2):
        write(ours, A, step)
    claimed = [{"checkpoint": str(ours / "step-000002"), "step": 2, "id": A.run}]
    theirs = write(tmp_path / "theirs", A, 9, ancestry=claimed)
    if way == "linked":
        (ours / "step-000009").symlink_to(theirs)
        theirs = ours / "step-000009"
    facts = {"id": B.run, "ancestry": run_json.ancestry(theirs)} if way == "recorded" else None
    lineage = of_run(RunFolder(tmp_path / "run"), facts, theirs)
    write(ours, lineage, 10)
    assert names(lineage.checkpoints(ours)) == ["step-000010"]
    prune(ours, 1, lineage)
    assert names(A.checkpoints(ours)) == ["step-000001", "step-000002"]


def test_a_runs_lineage_comes_from_its_folder(tmp_path: Path) -> None:
    first = write(tmp_path / "ck", A, 3, ancestry=[])
    renamed = first.rename(tmp_path / "best")
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    assert run_json.latest(folder, tmp_path / "ck") is None
    folder.run.write_text(json.dumps({"id": B.run, "ancestry": run_json.ancestry(renamed)}))
    lineage = of_run(folder, run_json.read_run(folder))
    assert lineage == Lineage(B.run, str(folder.path), (Ancestor(A.run, (3, 1)),), str(tmp_path.resolve()))
    assert run_json.latest(folder, tmp_path / "ck") == renamed, "where it went on from, wherever that is"
    write(tmp_path / "ck", A, 9)
    own = write(tmp_path / "ck", B, 4)
    assert run_json.latest(folder, tmp_path / "ck") == own
    without = of_run(folder, None, own)
    assert without == of_run(folder, None, own) and without.before == (Ancestor(B.run, order_of(own)),)
