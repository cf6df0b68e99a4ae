"""Every system call of writing a run's result, its lines, its record or its claim fails, or is the last one."""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from disk.recorded_disk import Disk, Fault, Recorded, disks, lay

from mpips.errors import InputError
from mpips.files.json_lines import JsonLinesWriter, read_lines
from mpips.replay.history import History, LeaderHistory, ShardHistory
from mpips.replay.recorder import CALL, Log, size
from mpips.rundir.claim import release, take
from mpips.rundir.folder import RunFolder, write_json
from mpips.tracing.trace_file import TraceFile


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk itself is not tested, and no claim is renewed."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr("mpips.rundir.claim._renew", lambda path: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    path.mkdir()
    return path


def each_failure(folder: Path, do: Callable[[], object]) -> Iterator[tuple[str, OSError | InputError | None]]:
    """Do something once for each of its calls, which fails; yield the call, and what is told."""
    before = Disk(folder).tree(lambda node, at: "")
    handles = len(os.listdir("/proc/self/fd"))
    for error, torn in ((errno.EIO, False), (errno.ENOSPC, True)):
        at, calls = 0, 1
        while at < calls:
            told = None
            with Recorded(folder, Fault(at, error, torn))() as log:
                try:
                    do()
                except (OSError, InputError) as caught:
                    told = caught
            calls = len(log.calls)
            assert calls
            if at < calls:
                assert len(os.listdir("/proc/self/fd")) == handles, log.calls[at]
                yield log.calls[at], told
            shutil.rmtree(folder)
            lay(before, folder)
            at += 1


OLD, NEW = {"status": "stopped", "of": [1] * 3000}, {"status": "completed", "of": [2] * 3000}


def test_a_result_is_the_old_or_the_new_one_after_any_crash(folder: Path, tmp_path: Path) -> None:
    path, count = folder / "result.json", 0
    write_json(path, OLD)
    before = Disk(folder)
    with Recorded(folder)() as log:
        write_json(path, NEW)
    for done, how, tree in disks(copy.deepcopy(before), log.ops):
        read = json.loads(tree["result.json"])
        assert read == NEW or (read == OLD and done < len(log.ops)), (done, how)
        count += 1
    assert count > 30


def test_a_result_that_cannot_be_written_leaves_the_old_one(folder: Path) -> None:
    path = folder / "result.json"
    write_json(path, OLD)
    for call, told in each_failure(folder, lambda: write_json(path, NEW)):
        read = json.loads(path.read_text())
        assert read == (OLD if call.startswith(("open", "write", "rename")) or "sync ." in call else NEW), (
            call
        )
        assert isinstance(told, OSError) and told.filename == str(path) and told.strerror, call
        assert os.listdir(folder) == ["result.json"], call


def test_lines_are_whole_after_any_crash_and_the_next_start_appends(folder: Path, tmp_path: Path) -> None:
    path = folder / "metrics.jsonl"
    with Recorded(folder)() as log, JsonLinesWriter(path) as lines:
        for number in range(4):
            lines.append({"number": number, "text": "x" * 100})
    empty = tmp_path / "empty"
    empty.mkdir()
    before = Disk(folder)
    before.nodes[before.root].names = {}
    for done, how, tree in disks(before, log.ops):
        again = tmp_path / "again"
        lay(tree, again)
        with JsonLinesWriter(again / "metrics.jsonl") as lines:
            lines.append({"number": 9})
        read = read_lines(again / "metrics.jsonl")
        numbers = [each["number"] for each in read.objects]
        assert numbers == sorted(numbers) and numbers[-1] == 9, (done, how)
        if how in ("killed", "torn"):
            assert read.bad == 0, (done, how)
        shutil.rmtree(again)


def test_a_line_that_cannot_be_written_spoils_no_other(folder: Path) -> None:
    path = folder / "metrics.jsonl"

    def do() -> None:
        with JsonLinesWriter(path) as lines:
            lines.append({"number": 1})
            try:
                lines.append({"number": 2})
            finally:
                lines.append({"number": 3})

    for call, told in each_failure(folder, do):
        assert told is not None and str(path) in str(told), call
        read = read_lines(path)
        assert read.bad == 0 and {each["number"] for each in read.objects} <= {1, 2, 3}, call


def test_a_claim_that_cannot_be_written_hinders_no_later_start(folder: Path) -> None:
    def do() -> None:
        take(folder)

    for call, told in each_failure(folder, do):
        if told is None:
            assert call.startswith(("unlink", "link")), call
        else:
            assert str(folder) in str(told) and "\n" not in str(told), call
        release(folder)
        take(folder)
        release(folder)


def test_a_run_that_is_continued_keeps_its_files_after_any_crash(folder: Path, tmp_path: Path) -> None:
    run = {"id": "a" * 32, "exit": {"status": "stopped"}}
    write_json(folder / "run.json", run)
    write_json(folder / "result.json", {"status": "stopped"})
    before = Disk(folder)
    with Recorded(folder)() as log:
        RunFolder.claim(folder, resume=True)
    release(folder)
    for done, how, tree in disks(before, log.ops):
        assert json.loads(tree["run.json"]) == run, (done, how)
        names = [name for name in ("result.json", "result.previous.json") if name in tree]
        assert names and all(json.loads(tree[name])["status"] == "stopped" for name in names), (done, how)


def test_the_continuation_of_a_run_may_fail_at_any_call(folder: Path) -> None:
    write_json(folder / "run.json", {"id": "a" * 32})
    write_json(folder / "result.json", {"status": "stopped"})

    def do() -> None:
        RunFolder.claim(folder, resume=True)

    for call, told in each_failure(folder, do):
        assert told is None or (str(folder) in str(told) and "\n" not in str(told)), call
        release(folder)
        RunFolder.claim(folder, resume=True)
        release(folder)
        assert json.loads((folder / "run.json").read_text()) == {"id": "a" * 32}, call


def test_a_record_that_cannot_be_written_is_told_and_one_that_can_is_kept(folder: Path) -> None:
    path = folder / "worker-0001.bin"

    def do() -> None:
        log = Log(path, 1)
        try:
            # It grows once.
            for number in range(3000):
                log.add(CALL, 0, 0, 1, 0, number, 0)
        finally:
            log.close()

    for call, told in each_failure(folder, do):
        if call.startswith("truncate") and told is None:
            # What is too much at its end is not read.
            assert size(folder)["cells"] == 3001
        else:
            assert isinstance(told, OSError) and str(path) in str(told), call


def test_a_trace_that_cannot_be_written_ends_and_not_the_rank(folder: Path) -> None:
    path = folder / "rank-0001.bin"

    def do() -> None:
        trace = TraceFile(path, {"rank": 1}, 1 << 20)
        for number in range(5000):
            trace.add(1, 0.0, 1.0, trace.name("x"), 0, 0, 0, number, 0)
        trace.note(1.0, 0, 0.0, [0.0])
        trace.close()
        trace.close()

    for call, told in each_failure(folder, do):
        # Without its first piece there is none.
        assert told is None or str(path) in str(told), call


def test_a_history_that_cannot_be_written_is_told(folder: Path) -> None:
    shard = ShardHistory(
        np.zeros(2, np.int64), np.zeros(1, "i8,i8"), np.zeros(1, np.int64), np.zeros(1, "i8,i8")
    )
    history = History({0: shard}, {1: np.zeros(3, "i8")}, LeaderHistory([1], set()))
    for call, told in each_failure(folder, lambda: history.save(folder / "replay")):
        assert isinstance(told, OSError) and str(folder / "replay") in str(told), call
        with suppress(OSError):
            assert not [name for name in os.listdir(folder / "replay") if name.startswith(".")], call
