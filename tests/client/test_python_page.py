"""The examples of docs/python.md are correct."""

from __future__ import annotations

import doctest
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import TinyData

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.mark.ranks
@pytest.mark.once
def test_its_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_data: TinyData) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_data.train, "train.svm")
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert tried > 5
    assert not failed
