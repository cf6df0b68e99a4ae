"""Every command with arguments that it cannot use: one line, exit code 2, and no traceback."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mpips.cli.main import COMMANDS, main

JOB = '[job]\nprogram = "toy.py"\n'
TOY = """\
from dataclasses import dataclass

@dataclass(frozen=True)
class Settings:
    count: int = 1

def schedule(cluster, settings):
    return {}

class Worker:
    def __init__(self, context):
        pass
"""
NAMES = (
    "", "missing", "a.svm/x", "x" * 300, "x/" * 3000, "x" * 100_000, "x y " * 25_000, "-dash", "a\n\x1b[2Jb", "\udcff",
    "folder", "folder/", "binary", "empty", "loop", "fifo", "/dev/zero",
)  # fmt: skip
LINES = (
    "run @ --dry-run", "run job.toml --dry-run --servers @", "run job.toml --dry-run --set @", "run @",
    "render @ --nodes 1", "render job.toml --nodes @", "render job.toml --nodes 1 --site @",
    "render job.toml --nodes 1 --sweep @", "render job.toml --nodes 1 --sweep-file @", "submit @ --nodes 1",
    "ctl @ status", "ctl folder @", "report @", "report @ @", "trace @", "reproduce @", "diff @ @",
    "doctor --launcher @", "validate --seconds @",
    "layout @", "layout job.toml --nodes @", "plan @", "plan job.toml --nodes @", "job @",
    "inspect @", "verify @",
    "export @ --out x.npz", "export folder --out @", "infer @", "infer folder @", "query @ key", "crate @",
    "completion @", "convert @ out.h5", "convert a.svm @", "bench @", "@", "run job.toml @",
)  # fmt: skip
FINE = {
    ("job @", ""),  # the default
    ("render job.toml --nodes 1 --site @", "empty"),
    *(("convert a.svm @", name) for name in ("missing", "a\n\x1b[2Jb", "\udcff")),
}
"""What of this is in order, or not the argument's fault."""
ANSWERS = {"verify": 1, "diff": 1}
"""Commands that say by 1 that what they were asked about is not sound, or not the same."""


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_parser: None) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("job.toml").write_text(JOB)
    Path("toy.py").write_text(TOY)
    Path("a.svm").write_text("+1 1:1\n")
    Path("folder").mkdir()
    Path("empty").write_text("")
    Path("binary").write_bytes(bytes(range(256)) * 10)
    os.mkfifo("fifo")
    os.symlink("loop", "loop")
    return tmp_path


@pytest.mark.parametrize("line", LINES)
def test_no_argument_is_answered_by_a_traceback(
    at: Path, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    for name in NAMES:
        try:
            code: object = main([name if word == "@" else word for word in line.split()])
        except SystemExit as left:
            code = left.code
        said = capsys.readouterr()
        reported = (line, name[:20], code, said.out[-500:], said.err[-500:])
        if code == ANSWERS.get(line.split()[0]) or (line, name) in FINE:
            continue
        assert code == 2, reported
        assert said.err.count("\n") == 1 and said.err.startswith("mpips"), reported
        assert len(said.err) < 5000, reported
        assert "\x1b" not in said.err, reported


def test_every_command_is_among_them() -> None:
    names = {command.__name__.rpartition(".")[2] for command in COMMANDS}
    assert names == {line.split()[0] for line in LINES} - {"@"}
