"""A data file that is replaced by rename during a run, whenever that happens: the two are never mixed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from synthetic import make, run_twin

from mpips.data import stream
from mpips.errors import MpipsError


def svmlight(folder: Path) -> tuple[str, str]:
    """Return the contents of a file, and of one of the same size."""
    old = make(folder / "made", n=60, m=12).train.read_text()
    return old, "".join(reversed(old.splitlines(keepends=True)))


def lines(folder: Path) -> tuple[str, str]:
    """The same for lines of two words of letters."""
    letters = "abcdefghijklm"
    words = [2 * first + second + letters[: len(letters) // 3] for first in letters for second in letters]
    old = "".join(f"{words[7 * each % 97]} {words[each % 13]}\n" for each in range(1500))
    return old, "".join(line.replace("aa", "zz") for line in sorted(old.splitlines(keepends=True)))


JOBS: dict[str, dict[str, Any]] = {
    "darlin": {"settings": {"passes": 4}},
    "ftrl": {"settings": {"algorithm": "ftrl", "batch": 5, "passes": 2}},
    "lda": {"program": "lda", "settings": {"sweeps": 2, "topics": 4}},
    "sketch": {"program": "sketch", "settings": {"depth": 2, "width": 1 << 10, "batch": 100}},
}


@pytest.mark.parametrize(
    ("name", "contents"),
    [("darlin", svmlight), ("ftrl", svmlight), ("lda", lines), ("sketch", lines)],
)
def test_it_is_refused_or_all_is_read_of_one_of_them(
    tmp_path: Path,
    name: str,
    contents: Callable[[Path], tuple[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = contents(tmp_path)
    path = tmp_path / "train.txt"

    def result() -> str:
        return run_twin(path, 2, 3, **JOBS[name]).sha

    right = []
    for text in (new, old):
        path.write_text(text)
        right.append(result())
    assert right[0] != right[1]
    opened, at, opens = stream.open_data, 0, 0

    def open_and_replace(name: str) -> Any:
        nonlocal opens
        file = opened(name)
        opens += 1
        if opens == at:
            other = tmp_path / "new"
            other.write_text(new)
            os.utime(other, ns=(1, 1))
            other.rename(path)
        return file

    monkeypatch.setattr(stream, "open_data", open_and_replace)
    refused = 0
    while at <= opens:
        at, opens = at + 1, 0
        path.unlink()
        path.write_text(old)
        os.utime(path, ns=(1, 1))
        try:
            assert result() in right
        except MpipsError as error:
            assert f"{path}: was replaced or changed since this run began" in str(error)
            refused += 1
    assert refused >= 2
