"""A changed byte in a run's output is detected by every command that packs, shows or applies it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from mpips.cli.main import main
from mpips.provenance.run_json import altered_outputs
from mpips.rundir.folder import RunFolder

JOB = """
[job]
program = "sketch"
name = "toy"
[layout]
servers = 1
workers = 1
spares = 0
[data]
train = "a.txt"
"""
SAID = "is not what the run has written: its sha256 is "


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_parser: None) -> Path:
    """Return the folder of a run whose model has lost a bit since."""
    monkeypatch.chdir(tmp_path)
    folder, model = tmp_path / "run", bytes(range(200))
    folder.mkdir()
    known = {"name": "model.h5", "bytes": len(model), "sha256": hashlib.sha256(model).hexdigest()}
    facts = {
        "id": "0123", "started": "2026-01-02T03:04:05+00:00", "program": {"name": "sketch"},
        "ranks": [{"rank": 0, "role": "scheduler", "index": 0, "host": "n0"}],
        "outputs": {"files": [known], "checkpoints": []},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "result.json").write_text(json.dumps({"status": "completed", "metrics": {"model": "model.h5"}}))
    (folder / "job.toml").write_text(JOB)
    (folder / "model.h5").write_bytes(model)
    assert altered_outputs(RunFolder(folder)) == []
    (folder / "model.h5").write_bytes(model[:100] + bytes([model[100] ^ 4]) + model[101:])
    return folder


@pytest.mark.parametrize(
    "command", [["crate", "run"], ["query", "run", "key"], ["infer", "run"], ["infer", "run/model.h5"]]
)
def test_an_altered_output_is_neither_packed_nor_applied(
    run: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    if command[0] == "crate":
        pytest.importorskip("rocrate")
    assert main(command) == 2
    said = capsys.readouterr().err
    assert said.startswith("mpips: error: ") and said.count("\n") == 1
    assert "run/model.h5" in said and SAID in said
    assert not list(run.parent.glob("*.zip"))


def test_a_report_warns_of_an_altered_output(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "run"]) == 0
    assert SAID in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "kind"),
    [("../other", "outside"), ("model.h5", "link"), ("model.h5", "huge"), ("model.h5", "gone")],
)
def test_nothing_outside_of_the_run_and_no_endless_file_is_read(run: Path, name: str, kind: str) -> None:
    facts = json.loads((run / "run.json").read_text())
    facts["outputs"]["files"][0]["name"] = name
    (run / "run.json").write_text(json.dumps(facts))
    model = run / "model.h5"
    if kind == "link":
        model.unlink()
        model.symlink_to("/dev/zero")
    elif kind == "huge":
        with model.open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "gone":
        model.unlink()
    said = altered_outputs(RunFolder(run))
    wanted = {
        "outside": "is not a plain file name",
        "link": "is a symbolic link",
        "huge": "it has 1099511627776 bytes",
    }
    assert len(said) == (kind != "gone")
    assert wanted.get(kind, "") in "".join(said)
