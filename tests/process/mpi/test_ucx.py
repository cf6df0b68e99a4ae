"""A `ucx.conf` in the working folder, which may name libraries to load, is not read when MPI is loaded."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

from mpips.process.interpreter import python
from mpips.process.mpi import ucx

FIND = """
import subprocess
from mpips.launch import mpi_launcher
run = subprocess.run
subprocess.run = lambda *line, **how: (done := run(*line, **how), print(done.stderr))[0]
print(mpi_launcher.find_mpi())
"""
HOW = {
    "rank": ["-m", "mpips", "job.toml"],
    "ping": ["-m", "mpips.launch.checks.ping", "-"],
    "find": ["-c", FIND],
}


def said(folder: Path, *arguments: str) -> str:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*python(), *arguments],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("how", HOW)
def test_ucx_conf_of_the_working_folder_is_not_read(how: str, tmp_path: Path) -> None:
    (tmp_path / "ucx.conf").write_text("UCX_LOG_LEVEL=debug\n")
    (tmp_path / "job.toml").write_text('[job]\nprogram = "no such"\n')
    if "UCX  DEBUG" not in said(tmp_path, "-c", "from mpi4py import MPI"):
        pytest.skip("this MPI brings no UCX that reads it")
    found = said(tmp_path, *HOW[how])
    assert {"rank": "no such", "ping": "thread_level", "find": "vendor"}[how] in found
    assert "UCX  DEBUG" not in found
    assert how == "find" or "mpips: the ucx.conf of the working folder is not read" in found


def test_the_working_folder_is_changed_while_mpi_is_loaded_and_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with ucx.without_ucx_conf():
        assert os.getcwd() == str(tmp_path)
    (tmp_path / "ucx.conf").touch()
    with pytest.raises(ZeroDivisionError), ucx.without_ucx_conf():
        assert os.getcwd() == "/"
        raise ZeroDivisionError
    assert os.getcwd() == str(tmp_path)
