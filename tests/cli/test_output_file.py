"""What a command must not replace: what it reads, and what a run or a checkpoint consists of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mpips.cli import output_file
from mpips.cli.main import main
from mpips.errors import InputError

OF_A_RUN = (
    "run.json", "result.json", "result.previous.json", "job.toml", "metrics.jsonl", "model.h5", "logs/rank-0000.jsonl",
    "record/shard-0000.rank-0001.bin", "replay/leader.json", "trace/rank-0000.bin",
)  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    for name in (*OF_A_RUN, "report.html", "mine.tsv", "trace/trace.json.gz"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    facts = {"id": "0", "outputs": {"files": [{"name": "model.h5", "bytes": 8, "sha256": "0"}]}}
    (folder / "run.json").write_text(json.dumps(facts))
    (folder / "step-000001").mkdir()
    (folder / "step-000001" / "manifest.json").touch()
    return folder


@pytest.mark.parametrize("name", [*OF_A_RUN, "step-000001/manifest.json"])
def test_a_file_of_a_run_or_checkpoint_is_not_replaced(
    run: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whose = "the checkpoint" if "step" in name else f"the run {run}"
    with pytest.raises(InputError, match=rf"{name}: is a file of {whose}.*; name another one to write"):
        output_file.check(run / name)
    monkeypatch.chdir((run / name).parent)
    with pytest.raises(InputError, match=f"is a file of {whose}"):
        output_file.check(Path(name).name)


@pytest.mark.parametrize(
    "name", ["report.html", "mine.tsv", "trace/trace.json.gz", "new.tsv", "logs/new.txt", "none/x"]
)
def test_others_are(run: Path, name: str) -> None:
    output_file.check(run / name, [run, run / "model.h5", run / "missing"])


def test_nor_is_what_the_command_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text('[job]\nprogram = "sketch"\n')
    (tmp_path / "link.toml").hardlink_to(job)
    before = job.read_text()
    assert main(["render", str(job), "--nodes", "1", "-o", str(tmp_path / "link.toml")]) == 2
    assert capsys.readouterr().err.endswith(
        "link.toml: is one of the files to read; name another one to write\n"
    )
    assert main(["infer", str(run), str(job), "--out", str(job)]) == 2
    assert capsys.readouterr().err.endswith(
        "job.toml: is one of the files to read; name another one to write\n"
    )
    assert job.read_text() == before
