"""The examples of docs/python.md are correct."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest
from tutorials.test_tutorials import blocks

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.mark.ranks
@pytest.mark.once
def test_its_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (script,) = (block.text for block in blocks("first-run") if block.file == "make_data.py")
    Path("make_data.py").write_text(script)
    subprocess.run([sys.executable, "make_data.py"], timeout=60, check=True)
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert tried > 5
    assert not failed
