"""Commands that read a run's folder, on folders with arbitrary contents: one line names the problem."""

from __future__ import annotations

import copy
import io
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpips.cli.main import main
from mpips.config.toml_text import write_toml

RANKS = [
    {"rank": 0, "role": "scheduler", "index": 0, "host": "n0", "pid": 1},
    {"rank": 1, "role": "server", "index": 0, "host": "n0", "pid": 2, "ranges": ["0:18446744073709551616"]},
    {"rank": 2, "role": "worker", "index": 0, "host": "n1", "pid": 3, "group": "workers"},
]
FACTS: dict[str, Any] = {
    "id": "a" * 32, "folder": "/runs/a", "started": "2026-01-02T03:04:05+00:00", "argv": ["mpips", "job.toml"],
    "working_directory": "/w", "host": "n0", "cores": 2, "packages": {"numpy": "2"}, "mpi": "Open MPI v5.0.1",
    "environment": {"OMP_NUM_THREADS": "1"}, "modules": [{"name": "gcc"}], "batch": {"job": {"id": "7"}},
    "source": {"commit": "c0ffee", "dirty": True, "diff_sha256": "dd", "remote": None}, "repository": None,
    "job": {"job": {"program": "sparse_lr", "name": "toy"}}, "program": {"name": "sparse_lr"}, "ranks": RANKS,
    "inputs": [{"role": "train", "path": "/w/a.svm", "bytes": 3, "sha256": "00"}],
    "ancestry": [{"checkpoint": "/c/step-000003", "step": 3, "id": "b" * 32, "manifest_sha256": "ee"}],
    "exit": {"status": "completed", "code": 0, "reason": "the program ended"},
    "outputs": {"files": [{"name": "model.npz", "bytes": 3, "sha256": "00"}], "parameters_sha256": "ab",
                "checkpoints": [{"folder": "/c/step-000003", "step": 3, "manifest_sha256": "ee"}]},
}  # fmt: skip
SPENT = {"worked": 1.0, "waited": 0.5, "cpu": 1.0, "sent": 100, "received": 100, "memory": 1000}
RESULT: dict[str, Any] = {
    "status": "completed", "exit_code": 0, "program": "sparse_lr", "layout": {"servers": 1, "workers": 1},
    "seconds": {"total": 4.0, "load": 1.0, "train": 2.0, "checkpoint": 0.1}, "metrics": {"objective": 2.5},
    "waiting": 0.25, "parameters_sha256": "ab",
    "traffic": {"worker_sent": 10, "server_sent": 10, "worker_raw": 20, "server_raw": 10,
                "per_filter": {"zstd": {"worker": {"raw": 20, "wire": 10, "seconds": 0.1}}}},
    "ranks": [{"rank": each["rank"], "role": each["role"], **SPENT} for each in RANKS],
    "recoveries": [{"rank": 1, "role": "server", "cause": "died", "at": 1.0, "seconds": 0.1, "noticed_after": None}],
}  # fmt: skip
JOB: dict[str, Any] = {
    "job": {"program": "sparse_lr", "name": "toy"}, "layout": {"servers": 1, "workers": 1, "spares": 0},
    "consistency": {"model": "bounded", "tau": 0}, "ring": {"replicas": 0}, "data": {"train": "a.svm"},
}  # fmt: skip
LINES = [
    {"event": "pass", "pass": n, "seconds": 0.1 * n, "objective": 9.0 - n, "waiting": 0.1}
    for n in range(1, 5)
]
ABSENT: Any = object()
OTHERS: tuple[Any, ...] = (None, True, -7, 1e999, 10**400, "x", "\ud800", [], [7], {}, {"x": {}})

COMMANDS = (
    ("report", "run", "-o", "report.html"),
    ("diff", "run", "other"),
    ("layout", "run"),
    ("plan", "jobs/sparse_lr/job.toml", "--nodes", "1", "--cores", "2", "--from", "run", "other"),
    ("trace", "run"),
    ("query", "run", "key"),
    ("reproduce", "run"),
    ("ctl", "run", "status", "--patience", "0.01"),
)
FILES = {"run.json": FACTS, "result.json": RESULT, "job.toml": JOB, "metrics.jsonl": LINES}


def lay(folder: Path, **changed: Any) -> None:
    folder.mkdir()
    for name, value in {**FILES, **changed}.items():
        if name == "metrics.jsonl":
            text = "".join(json.dumps(each) + "\n" for each in value)
        else:
            text = write_toml(value) if name == "job.toml" else json.dumps(value)
        (folder / name).write_text(text)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return where the parts of a value are, itself included."""
    yield at
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value[:2]):
            yield from places(each, (*at, key))


def changed(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return None if new is ABSENT else new
    whole = copy.deepcopy(value)
    part = whole
    for key in at[:-1]:
        part = part[key]
    if new is ABSENT:
        del part[at[-1]]
    else:
        part[at[-1]] = new
    return whole


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_parser: None) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    lay(tmp_path / "other")
    return tmp_path


def some(number: int) -> tuple[Any, ...]:
    """Return three invalid values, different ones for each place, and one that is not there."""
    return (*(OTHERS[(3 * number + each) % len(OTHERS)] for each in range(3)), ABSENT)


def judge(command: tuple[str, ...], capsys: pytest.CaptureFixture[str], what: object) -> None:
    try:
        code = main(list(command))
    except BaseException as error:
        raise AssertionError(f"{command}: {what}: {type(error).__name__}: {error}") from error
    said = capsys.readouterr().err
    assert code in (0, 1, 2), what
    if code == 2:
        assert said.splitlines()[-1].startswith("mpips: error: "), f"{command}: {what}: {said}"


def test_commands_read_the_undamaged_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lay(place / "run")
    assert main(list(COMMANDS[0])) == 0
    assert main(list(COMMANDS[1])) == 0
    assert main(list(COMMANDS[3])) == 2  # too few runs for a plan, each of which was read
    capsys.readouterr()


@pytest.mark.drawn(3)
@pytest.mark.parametrize("name", ["run.json", "result.json"])
@pytest.mark.parametrize("command", COMMANDS[:4], ids=lambda command: command[0])
def test_commands_survive_any_value_in_any_place_of_run_and_result(
    place: Path, name: str, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for number, at in enumerate(places(FILES[name])):
        for new in some(number):
            lay(place / "run", **{name: changed(FILES[name], at, new)})
            judge(command, capsys, (name, at, new if new != 10**400 else "10**400"))
            shutil.rmtree(place / "run")


@pytest.mark.drawn(2)
@pytest.mark.parametrize("command", COMMANDS[:4], ids=lambda command: command[0])
def test_commands_survive_any_value_in_the_metrics_and_the_job(
    place: Path, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for number, at in enumerate(places(LINES)):
        for new in some(number) if at else [[]]:
            lay(place / "run", **{"metrics.jsonl": changed(LINES, at, new)})
            judge(command, capsys, ("metrics.jsonl", at, new if new != 10**400 else "10**400"))
            shutil.rmtree(place / "run")
    for at in places(JOB):
        for new in (True, -7, "x", [], [7], {}, {"x": {}}) if len(at) > 1 else ({}, {"x": {}}):
            lay(place / "run", **{"job.toml": changed(JOB, at, new)})
            judge(command, capsys, ("job.toml", at, new))
            shutil.rmtree(place / "run")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["text", "bytes", "deep", "huge", "fifo", "link", "device", "folder"])
def test_commands_survive_files_of_any_other_kind(
    place: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lay(place / "run")
    path = place / "run" / name
    path.unlink()
    if kind in ("text", "bytes", "deep"):
        path.write_bytes({"text": b"{", "bytes": b"\xff\xfe\0", "deep": b"[" * 200_000}[kind])
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"link": place / "other" / name, "device": "/dev/zero"}[kind])
    for command in COMMANDS:
        judge(command, capsys, (name, kind))
