"""A command that a signal ends: its temporary files are removed, and its exit code is 128 + the signal's number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SLOW = """
import importlib, sys, time
from mpips.cli.models import convert
from mpips.files.safe_open import replacing
def slow(arguments):
    with replacing("out.svm") as file:
        file.write(b"+1 1:1")
        print("up", flush=True)
        time.sleep(60)
convert.command = slow
sys.argv = ["mpips", "convert", "a.svm", "out.svm"]
sys.exit(importlib.import_module("mpips.cli.main").main())
"""


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda kind: kind.name)
def test_temporary_files_are_removed_when_a_signal_ends_a_command(
    tmp_path: Path, kind: signal.Signals
) -> None:
    root = str(Path(__file__).parents[2])
    run = subprocess.Popen(
        [sys.executable, "-P", "-c", SLOW], cwd=tmp_path, env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: [signal.signal(each, signal.SIG_DFL) for each in (signal.SIGHUP, signal.SIGINT)],
    )  # fmt: skip
    assert run.stdout is not None
    assert run.stdout.readline() == "up\n"
    assert len(os.listdir(tmp_path)) == 1
    run.send_signal(kind)
    _, said = run.communicate(timeout=30)
    assert (run.returncode, said) == (128 + kind, "")
    assert os.listdir(tmp_path) == []
