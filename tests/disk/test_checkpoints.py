"""Every system call of writing a checkpoint fails, is torn, lies, or is the last one before a crash."""

from __future__ import annotations

import copy
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from disk.recorded_disk import Disk, Fault, Log, Recorded, Tree, disks, fingerprint, lay

from mpips.checkpoint.checkpoint import abandon, begin, commit, prune
from mpips.checkpoint.inspection import verify
from mpips.checkpoint.lineage import Lineage
from mpips.checkpoint.manifest import MANIFEST, damaged, read_manifest, step_folder
from mpips.checkpoint.shard_writer import ShardWriter
from mpips.checkpoint.writing import Saved, write_shard, write_worker
from mpips.errors import CheckpointError
from mpips.ranges import KeyRange
from mpips.scheduler.resuming import newest_sound
from mpips.storage.segment import Rows
from mpips.storage.updates import VectorSpec

RUN = Lineage("a" * 32, "/runs/a")
OLD, NEW, NEXT = 2, 3, 4
"""The steps of the newest checkpoint before the log, of the one in it, and of one that is written after a crash."""
SMALL = 512
"""Bytes of what may be left for ever after a crash: a mark, or a part of one, without its folder's proper name."""


def saved(begins: int, ends: int, step: int) -> Saved:
    keys = np.arange(begins, ends, dtype=np.uint64)
    rows = Rows(keys, np.full((len(keys), 1), float(step)), {})
    return Saved(VectorSpec("w", "float64", extent=40), {}, [KeyRange(begins, ends)], rows)


def write(directory: Path, step: int) -> None:
    """Write a checkpoint as a run does: an attempt that fails is abandoned."""
    folder = begin(directory, step, RUN)
    try:
        entries = [write_shard(folder, n, {"w": saved(20 * n, 20 * n + 20, step)}) for n in range(2)]
        entries.append(write_worker(folder, 0, {"a": np.arange(3)}))
        commit(folder, entries, {"step": step}, None, RUN.run)
    except CheckpointError:
        abandon(folder)
        raise


def taken(directory: Path) -> tuple[int, list[str]]:
    """Return the step of the checkpoint that a run would resume from, and what is wrong with newer ones."""
    path, passed = newest_sound(RUN.checkpoints(directory)[::-1], lambda: None)
    return int(path.name.split("-")[1]), passed


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk itself is not tested."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """A folder with two checkpoints, of which a run keeps two."""
    folder = tmp_path / "checkpoints"
    write(folder, OLD - 1)
    write(folder, OLD)
    return folder


@pytest.fixture
def log(checkpoints: Path) -> tuple[Disk, Log]:
    """The disk before a checkpoint is written and an old one removed, and what that does."""
    before, recorded = Disk(checkpoints), Recorded(checkpoints)
    with recorded() as log:
        write(checkpoints, NEW)
        log.mark("committed")
        prune(checkpoints, 2, RUN)
    return before, log


def seen(tree: Tree) -> Tree:
    """Return what readers look at: of folders without a manifest, only names, and the small files."""
    return {
        name: each
        if MANIFEST in each
        else {file: content if len(content) < SMALL else b"" for file, content in each.items()}
        for name, each in tree.items()
    }


def each_crash(
    before: Disk,
    recorded: Log,
    tmp_path: Path,
    judge: Callable[[Path, bool], None],
    *arguments: Any,
    **more: Any,
) -> tuple[int, int]:
    """Judge all disks that a crash may leave; return how many there are, and how many differ for a reader."""
    known: set[tuple[int, bool]] = set()
    count, at = 0, tmp_path / "after"
    for done, how, tree in disks(copy.deepcopy(before), recorded.ops, *arguments, **more):
        count += 1
        state = fingerprint(seen(tree)), done >= recorded.marks["committed"]
        if state not in known:
            known.add(state)
            lay(tree, at)
            try:
                judge(at, state[1])
            except (AssertionError, CheckpointError) as error:
                raise AssertionError(f"a crash after {recorded.ops[:done][-1:]}, {how}: {error}") from error
            finally:
                shutil.rmtree(at)
    return count, len(known)


def test_after_a_crash_at_any_instant_the_newest_checkpoint_is_sound(
    log: tuple[Disk, Log], tmp_path: Path
) -> None:
    def judge(directory: Path, committed: bool) -> None:
        step, passed = taken(directory)
        assert step in ((NEW,) if committed else (OLD, NEW))
        # None is complete that is not sound.
        assert passed == []

    count, different = each_crash(*log, tmp_path, judge)
    print(
        f"{len(log[1].ops)} operations, {count} disks after a crash, {different} of which differ for a reader"
    )
    assert count > 2000 and different > 40


def test_after_a_crash_nothing_large_is_left_for_ever(log: tuple[Disk, Log], tmp_path: Path) -> None:
    def judge(directory: Path, committed: bool) -> None:
        write(directory, NEXT)
        prune(directory, 1, RUN)
        left = [path for path in directory.rglob("*") if path.is_file() and f"{NEXT:06d}" not in str(path)]
        assert sum(path.stat().st_size for path in left) < SMALL, left

    each_crash(*log, tmp_path, judge)


def test_after_a_crash_no_delta_lacks_what_it_needs(tmp_path: Path) -> None:
    """A base and its delta are removed, after a delta of a newer base is written."""
    folder, server = tmp_path / "checkpoints", ShardWriter()

    def written(step: int, follows: int | None) -> None:
        made = begin(folder, step, RUN)
        before = None if follows is None else step_folder(folder, follows)
        link = before and {"checkpoint": before.name, "sha256": read_manifest(before)["sha256"]}
        entry = server.write(made, 0, {"w": saved(0, 40, step)}, {}, before and before.name)
        commit(made, [entry], {"step": step}, None, RUN.run, link)

    for step, follows in ((0, None), (OLD - 1, 0), (OLD, None)):
        written(step, follows)
    before, recorded = Disk(folder), Recorded(folder)
    with recorded() as log:
        written(NEW, OLD)
        log.mark("committed")
        assert [path.name for path in prune(folder, 2, RUN)] == ["step-000000", f"step-{OLD - 1:06d}"]

    def judge(directory: Path, committed: bool) -> None:
        assert taken(directory) in ([(NEW, [])] if committed else [(OLD, []), (NEW, [])])
        assert damaged(directory) == []

    count, different = each_crash(before, log, tmp_path, judge)
    print(f"{count} disks after a crash, {different} of which differ for a reader")
    assert different > 20


def test_a_disk_that_lies_about_what_is_synced_costs_the_newest_at_most(
    log: tuple[Disk, Log], tmp_path: Path
) -> None:
    """What is damaged is told, and the checkpoint before it is taken."""
    told = []

    def judge(directory: Path, committed: bool) -> None:
        step, passed = taken(directory)
        assert step in (OLD, NEW) and (step == OLD or not passed)
        assert all("\n" not in line and f"step-{NEW:06d}" in line for line in passed)
        told.extend(passed)

    before, recorded = log
    committed, count = recorded.marks["committed"], 0
    # What is removed afterwards changes nothing here.
    recorded.ops = recorded.ops[:committed]
    synced = [op.node for op in recorded.ops if op.what == "sync"]
    # All of them lie; that of a shard, or of the manifest.
    liars = [set(synced), {synced[4]}, {synced[-2]}]
    for liar in liars:
        count += each_crash(before, recorded, tmp_path, judge, liar.__contains__, first=committed)[0]
    print(f"{len(liars)} liars, {count} disks, {len(told)} times the newest was damaged")
    assert told


def test_the_first_checkpoint_survives_a_crash_with_all_folders_above_it(tmp_path: Path) -> None:
    root = tmp_path / "job"
    root.mkdir()
    before, recorded = Disk(root), Recorded(root)
    with recorded() as log:
        write(root / "checkpoints" / "name", NEW)
    for count, how, tree in disks(before, log.ops, first=len(log.ops)):
        lay(tree, tmp_path / "after")
        assert taken(tmp_path / "after" / "checkpoints" / "name") == (NEW, []), (count, how)
        shutil.rmtree(tmp_path / "after")


@pytest.mark.drawn(1)
@pytest.mark.parametrize(("error", "torn"), [(errno.EIO, False), (errno.ENOSPC, True)])
def test_any_call_may_fail_once(checkpoints: Path, error: int, torn: bool) -> None:
    before = Disk(checkpoints).tree(lambda node, at: "")
    handles = len(os.listdir("/proc/self/fd"))
    at = failed = 0
    while True:
        recorded, said = Recorded(checkpoints, Fault(at, error, torn)), ""
        with recorded() as log:
            try:
                write(checkpoints, NEW)
                prune(checkpoints, 2, RUN)
            except CheckpointError as caught:
                said = str(caught)
        if at >= len(log.calls):
            break
        call = log.calls[at]
        step, passed = taken(checkpoints)
        assert passed == [] and step in (OLD, NEW), call
        assert said == "" or (said.endswith(f": {os.strerror(error)}") and "\n" not in said), (call, said)
        # An error is told, unless nothing depends on the call.
        assert said or step == NEW, call
        failed += bool(said)
        if not call.endswith(".h5") or at % 8 == 0:
            write(checkpoints, NEXT)
            assert taken(checkpoints) == (NEXT, []), call
        assert len(os.listdir("/proc/self/fd")) == handles, call
        for path in checkpoints.iterdir():
            assert MANIFEST in os.listdir(path) or call.startswith(("unlink", "rmdir", "sync")), (call, path)
        shutil.rmtree(checkpoints)
        lay(before, checkpoints)
        at += 1
    print(f"{at} calls, {failed} failures that are told")
    assert at > 100 and failed > 90


def test_short_writes_are_continued(checkpoints: Path) -> None:
    with Recorded(checkpoints)() as log:
        write(checkpoints, NEW)
    first_of_each = {
        call: at for at, call in reversed(list(enumerate(log.calls))) if call.startswith("write")
    }
    for at in sorted(first_of_each.values()):
        with Recorded(checkpoints, Fault(at, torn=True))() as log:
            write(checkpoints, NEXT + at)
        assert taken(checkpoints) == (NEXT + at, []), log.calls[at]
    assert len(first_of_each) == 6


def test_a_checkpoint_that_is_damaged_is_passed_over(checkpoints: Path) -> None:
    file = checkpoints / f"step-{OLD:06d}" / "server-0001.h5"
    file.write_bytes(bytes(file.stat().st_size))
    step, (told,) = taken(checkpoints)
    assert step == OLD - 1
    assert told.startswith(f"checkpoint {file.parent} is damaged: {file}: damaged: its sha256")
    assert verify(file.parent)
