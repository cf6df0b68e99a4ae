"""The README: its program runs, and the files and commands that it names exist."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from simulated import simulate

from mpips.cli.main import main
from mpips.config.program import load_program
from mpips.scheduler.scheduler import Cluster
from mpips.storage import updates

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_its_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "mpips.storage.updates._updates", dict(updates._updates)
    )  # what it registers goes with it
    (source,) = re.findall(r"```python\n(.*?)```", README, re.S)
    (tmp_path / "mean.py").write_text(source)
    program = load_program("mean.py", tmp_path)
    settings = program.settings()

    def schedule(cluster: Cluster) -> Any:
        return program.schedule(cluster, settings)

    job = SimpleNamespace(settings=settings)
    metrics = simulate(schedule, program.worker, servers=2, workers=3, job=job)
    assert abs(metrics["mean"]) < 0.05  # of 300,000 standard normal draws, whose mean's error is 0.002


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:jobs|tests|mpips|checkpoints|slurm)/[^` ]+)`", README)))
)
def test_the_files_that_it_names_are_there(path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize("command", sorted(set(re.findall(r"mpips ([a-z]+)[ `]", README)) - {"import"}))
def test_the_commands_that_it_names_have_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        assert main([command, "--help"]) == 0
    assert f"mpips {command}" in capsys.readouterr().out
