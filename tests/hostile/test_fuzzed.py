"""No file makes a kernel access memory out of bounds: runs each function of `fuzzed.py` in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = 1000 if os.environ.get("MPIPS_TEST_LONG") else 40


@pytest.mark.drawn(2)
@pytest.mark.parametrize("what", ["examples", "model", "sketch", "checkpoint", "sampler", "blocks"])
def test_a_fuzzed_file_gives_an_error_or_a_valid_result(what: str, tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, root / "tests" / "fuzzed.py", what, str(EXAMPLES)],
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONFAULTHANDLER": "1", "TMPDIR": str(tmp_path)},
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    shutil.rmtree(tmp_path, ignore_errors=True)
    assert done.returncode == 0, done.stderr[-5000:]
