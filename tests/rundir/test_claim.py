"""Claims of a run's folder: one start holds it at a time, and claims of ended processes are ignored."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mpips.errors import InputError, exit_code
from mpips.process.host import host_name
from mpips.rundir import claim
from mpips.rundir.folder import RunFolder, write_json


def rewrite(path: Path, **said: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | said))


def ended() -> list[int]:
    """Return the number of a process that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return [done.pid, 1]


@contextmanager
def full() -> Iterator[None]:
    """Let no byte be written to a file of this process: not in a fixture, since pytest's own output may be a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_on_a_full_disk_no_claim_is_left(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with full(), pytest.raises(OSError, match="cannot be written: File too large") as raised:
        RunFolder.claim(tmp_path / "run")
    assert exit_code(raised.value) == 74 and not list((tmp_path / "run").iterdir())
    with full(), pytest.raises(OSError, match="cannot be written: File too large"):
        RunFolder.create("toy", tmp_path / "runs")
    assert not list((tmp_path / "runs").iterdir())


def test_no_claim_is_ever_without_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the process is killed between two steps."""
    seen = []
    monkeypatch.setattr(os, "unlink", lambda *_, **__: None)
    with full(), pytest.raises(OSError, match="File too large"):
        RunFolder.claim(tmp_path)
    assert not [name for name in os.listdir(tmp_path) if name == ".claim-1"]
    monkeypatch.undo()
    link = os.link

    def look(source: Path, target: Path) -> None:
        seen.append((target.exists(), json.loads(source.read_text())["host"]))
        link(source, target)

    monkeypatch.setattr(os, "link", look)
    assert RunFolder.claim(tmp_path).held is not None and seen == [(False, host_name())]


def test_of_many_that_start_at_once_one_has_the_folder(tmp_path: Path) -> None:
    reported: list[object] = []
    gate = threading.Barrier(8)

    def start() -> None:
        gate.wait()
        try:
            reported.append(RunFolder.claim(tmp_path / "run"))
        except InputError as error:
            reported.append(str(error))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(20)
    won = [each for each in reported if isinstance(each, RunFolder)]
    assert len(reported) == 8 and len(won) == 1 and won[0].held is not None
    assert all("another start has this run folder" in each for each in reported if isinstance(each, str))
    assert os.listdir(tmp_path / "run") == [won[0].held.path.name]


def test_a_claim_is_handed_on_once(tmp_path: Path) -> None:
    launcher = RunFolder.claim(tmp_path / "run")
    assert launcher.held is not None
    rank = RunFolder.claim(tmp_path / "run", launcher_claim=launcher.held.id)
    assert rank.held is not None and os.listdir(rank.path) == [".claim-2"]
    assert json.loads(rank.held.path.read_text())["processes"][1][0] == os.getpid()
    with pytest.raises(InputError, match=f"process {os.getpid()} on"):
        RunFolder.claim(tmp_path / "run", launcher_claim=launcher.held.id)
    assert claim.succeed(rank.path) is not None and os.listdir(rank.path) == [".claim-3"]


def test_the_claim_of_a_killed_run_is_ignored(tmp_path: Path) -> None:
    first = RunFolder.claim(tmp_path / "run")
    write_json(first.run, {})
    assert first.held is not None
    rewrite(first.held.path, processes=[ended()])
    with pytest.raises(InputError, match="holds a run already"):
        RunFolder.claim(first.path)
    assert sorted(os.listdir(first.path)) == [".claim-1", "run.json"]
    assert RunFolder.claim(first.path, resume=True).held is not None
    with pytest.raises(InputError, match="another start has this run folder"):
        RunFolder.claim(first.path, resume=True)
    claim.release(first.path)
    assert RunFolder.claim(first.path, resume=True).held is not None


def test_another_machines_claim_counts_while_it_is_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "PATIENCE", 1.0)
    first = RunFolder.claim(tmp_path / "run")
    assert first.held is not None
    rewrite(first.held.path, machine="elsewhere", host="no\x1bde")

    over = threading.Event()

    def renew() -> None:
        while not over.wait(0.05):
            os.utime(tmp_path / "run" / ".claim-1")

    renewing = threading.Thread(target=renew)
    renewing.start()
    with pytest.raises(InputError, match=r"on no\\x1bde"):
        RunFolder.claim(first.path)
    # It was asked to stop, and may still finish.
    write_json(first.result, {"status": "failed", "provisional": True})
    with pytest.raises(InputError, match="another start has this run folder"):
        RunFolder.claim(first.path, resume=True)
    first.result.unlink()
    over.set()
    renewing.join()
    assert RunFolder.claim(first.path).held is not None
    monkeypatch.setattr(claim, "PATIENCE", 60.0)
    rewrite(tmp_path / "run" / ".claim-2", machine="elsewhere")
    write_json(first.result, {})  # it has ended
    assert RunFolder.claim(first.path, resume=True).held is not None


@pytest.mark.parametrize(
    "said", ["", "[]", "null", '{"id": 1}', '{"id": "", "host": "", "machine": "", "processes": []}']
)
def test_an_unreadable_claim_is_valid_for_a_limited_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setattr(claim, "PATIENCE", 0.1)
    (tmp_path / ".claim-7").write_text(said)
    assert RunFolder.claim(tmp_path).held is not None and os.listdir(tmp_path) == [".claim-8"]


def test_a_claim_that_is_no_file_or_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "PATIENCE", 0.1)
    os.mkfifo(tmp_path / ".claim-3")
    assert RunFolder.claim(tmp_path).held is not None
    (tmp_path / f".claim-{'9' * 248}").write_text("")
    with pytest.raises(InputError, match="cannot be written: File name too long"):
        RunFolder.claim(tmp_path)
