"""The tutorial of Slurm: its commands in a real queue, as they are printed."""

from __future__ import annotations

import doctest
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import patience
from tutorials.test_tutorials import SAME, blocks
from virtual import Cluster, Job

pytestmark = pytest.mark.slurm


def test_the_commands_of_the_page_submit_and_report(warm: Cluster) -> None:
    folder = warm.home / "tutorial"
    folder.mkdir()
    for block in blocks("first-run"):
        if block.file:
            (folder / block.file).write_text(block.text)
    path = os.pathsep.join([str(Path(sys.executable).parent), warm.environ["PATH"]])
    environ = {**warm.environ, "PATH": path, "PYTHON": sys.executable, "COLUMNS": "120"}

    def shell(commands: str, over: str = "") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["bash", "-e", "-c", commands], cwd=folder, env=environ, text=True, capture_output=True, check=False,
            timeout=patience(60), stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert done.returncode == 0 or (over and over in done.stderr), (
            f"{commands}\n--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}"
        )
        return done

    shell(f"{sys.executable} make_data.py")
    page = blocks("slurm")
    submit, status, at_end = (block.text for block in page if block.language == "console")
    done = shell(submit)
    said = next(block.text for block in page if "job 12" in block.text)
    number = done.stdout.strip()
    shown = done.stdout + done.stderr
    assert doctest.OutputChecker().check_output(said.replace("12", number), shown, SAME), shown
    name = f"sparse_lr-{number}"
    job = Job(warm, number, folder / "runs" / name, folder / f"{name}.out", done.stderr)
    job.wait_for("a run", lambda: (job.run / "run.json").exists())
    # So short a job may be over before it is asked.
    shell(status, over="the run is over")
    job.finish()
    assert "mpips: completed; run folder:" in shell(at_end).stdout
    assert (job.run / "report.html").exists()
