"""Files of JSON lines: an incomplete last line loses that line only."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest

from mpips.files.json_lines import JsonLines, JsonLinesWriter, ignored_lines_warning, read_lines


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        (b"", b""),
        (b'{"a": 1}\n', b'{"a": 1}\n'),
        (b'{"a": 1}\n{"b": ', b'{"a": 1}\n'),
        (b'{"b": ', b""),
        (b'{"a": 1}\n' + b"x" * 200_000, b'{"a": 1}\n'),
        (b'{"a": 1}\n\0\0\0\0', b'{"a": 1}\n'),
    ],
)
def test_an_incomplete_last_line_is_removed_before_an_append(
    tmp_path: Path, before: bytes, kept: bytes
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(before)
    with JsonLinesWriter(path) as lines:
        lines.append({"c": 2})
    assert path.read_bytes() == kept + b'{"c": 2}\n'


def test_a_disk_that_is_full_in_the_midst_of_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "x.jsonl", os.write
    room = 20

    def until_full(handle: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(handle, data[:room])
        room -= done
        return done

    monkeypatch.setattr(os, "write", until_full)
    with JsonLinesWriter(path) as lines:
        lines.append({"a": 1})
        with pytest.raises(OSError, match=r"No space left on device: .*x\.jsonl"):
            lines.append({"text": "longer than what is left"})
        room = 1000
        lines.append({"b": 2})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}, {"b": 2}]


def test_a_file_that_another_host_has_removed_is_begun_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(handle: int) -> NoReturn:
        raise OSError(errno.ESTALE, "Stale file handle")

    path = tmp_path / "log.jsonl"
    with JsonLinesWriter(path) as lines:
        path.unlink()
        with monkeypatch.context() as patched:
            patched.setattr("os.fstat", stale)
            assert lines._is_removed(lines._handle or 0)
        lines.append({"a": 1})
    assert read_lines(path).objects == [{"a": 1}]


def test_a_file_that_is_removed_is_begun_again(tmp_path: Path) -> None:
    path = tmp_path / "run" / "x.jsonl"
    with JsonLinesWriter(path) as lines:
        lines.append({"a": 1})
        assert not lines.begun_again
        path.unlink()
        path.parent.rmdir()
        lines.append({"b": 2})
        lines.append({"c": 3})
        assert lines.begun_again
    assert path.read_text() == '{"b": 2}\n{"c": 3}\n'


def test_lines_that_are_not_objects_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    deep = b"[" * 100_000
    path.write_bytes(
        b'{"a": 1}\n{"a": {"b": 1}{"a": 2}\n\n7\n\xff\n' + deep + b'\n{"a": "\xe2\x80\xa8"}\n{"a": 3'
    )
    assert read_lines(path) == JsonLines([{"a": 1}, {"a": "\u2028"}], 5)
    assert read_lines(tmp_path / "none") == JsonLines([], 0)
    assert ignored_lines_warning(path, 0) == ""
    assert ignored_lines_warning(path, 1).endswith("x.jsonl: ignored 1 line that is not a JSON object")


def test_only_regular_files_are_read_and_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    makers: list[Any] = [read_lines, JsonLinesWriter]
    for make in makers:
        for name in ("pipe", "link"):
            with pytest.raises(OSError, match=name):
                make(tmp_path / name)
    assert not (tmp_path / "elsewhere").exists()
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match="holds more than"):
        read_lines(tmp_path / "large")
