"""The input and output files of a run, by size, time and hash."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from mpips.data.spec import DataSpec
from mpips.files.fingerprint import fingerprint, stat_facts
from mpips.provenance import input_hashes
from mpips.provenance.input_hashes import Inputs, outputs_of


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "train.svm"
    path.write_bytes(bytes(range(256)) * 12_288)  # 3 MiB
    return path


def test_a_small_file_is_hashed_whole_and_a_large_one_at_its_ends(file: Path) -> None:
    raw = file.read_bytes()
    assert fingerprint(file, len(raw)) == {"sha256": hashlib.sha256(raw).hexdigest()}
    size = len(raw).to_bytes(8, "little")
    expected = hashlib.sha256(size + raw[: 2**20] + raw[-(2**20) :]).hexdigest()
    assert fingerprint(file, len(raw) - 1) == {"sample_sha256": expected}
    with file.open("r+b") as changed:  # in the middle
        changed.seek(len(raw) // 2)
        changed.write(b"?")
    assert fingerprint(file, len(raw) - 1) == {"sample_sha256": expected}


def test_what_cannot_be_read_reports_why(tmp_path: Path) -> None:
    assert fingerprint(tmp_path / "no", 1) == {"problem": "No such file or directory"}


def test_hashing_can_be_stopped(file: Path) -> None:
    assert fingerprint(file, 2**30, lambda: True) == {}


def test_the_jobs_files_are_found_by_role(tmp_path: Path) -> None:
    for name in ("b.svm", "a.svm", "t.svm"):
        (tmp_path / name).write_text("")
    data = DataSpec(train="[ab].svm", test=["t.svm", "missing"])
    assert input_hashes.files_of(data, tmp_path) == [
        ("train", tmp_path / "a.svm"),
        ("train", tmp_path / "b.svm"),
    ]
    assert input_hashes.files_of(DataSpec(test="t.svm"), tmp_path) == [("test", tmp_path / "t.svm")]


@pytest.mark.parametrize(("how", "key"), [("full", "sha256"), ("quick", "sample_sha256"), ("none", None)])
def test_the_job_reports_how_much_is_hashed(
    file: Path, how: str, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_hashes, "QUICK_LIMIT", 1000)
    known = Inputs(lambda: [("train", file)], how)
    known.start()
    (facts,) = known.finish(None)
    assert facts["role"], facts["path"] == ("train", str(file))
    assert facts["bytes"] == 3 * 2**20
    assert facts["modified"].endswith("+00:00")
    assert [name for name in facts if name.endswith("sha256")] == ([key] if key else [])
    assert known.done


def test_a_file_that_changed_meanwhile_is_named(file: Path) -> None:
    known = Inputs(lambda: [("train", file)])
    known.start()
    known._thread.join()
    assert "changed" not in known.facts()[0]
    os.utime(file, (1, 1))
    assert known.finish(None)[0]["changed"] is True


def test_the_end_does_not_wait_for_what_is_slow(file: Path) -> None:
    blocked = threading.Event()

    def files() -> list[tuple[str, Path]]:
        blocked.wait(60)
        return [("train", file)]

    known = Inputs(files)
    known.start()
    assert known.finish(0.01) == []
    assert not known.done
    blocked.set()
    known._thread.join(60)
    assert known.facts()[0]["role"] == "train"
    assert "sha256" not in known.facts()[0]  # it was told to stop


def test_outputs_exclude_bookkeeping_files(tmp_path: Path) -> None:
    for name in ("model.npz", "run.json", ".partial", "metrics.jsonl"):
        (tmp_path / name).write_text("x")
    (tmp_path / "logs").mkdir()
    found = outputs_of(tmp_path, ["run.json"])
    assert [each["name"] for each in found] == ["metrics.jsonl", "model.npz"]
    assert {each["sha256"] for each in found} == {hashlib.sha256(b"x").hexdigest()}
    assert {each["bytes"] for each in found} == {1}


def test_a_file_of_a_year_that_no_calendar_has_is_a_problem_and_no_more(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> object:
        raise ValueError("year 14645 is out of range")

    monkeypatch.setattr("mpips.files.fingerprint.datetime", type("Odd", (), {"fromtimestamp": fail}))
    assert stat_facts(file) == {"problem": "year 14645 is out of range"}


def test_an_error_of_the_input_search_does_not_end_the_rank() -> None:
    def fail() -> list[tuple[str, Path]]:
        raise RuntimeError("no such thing")

    seen: list[object] = []
    before, threading.excepthook = threading.excepthook, seen.append
    try:
        looked = Inputs(fail)
        looked.start()
        assert looked.finish(None) == []
    finally:
        threading.excepthook = before
    assert seen == []
