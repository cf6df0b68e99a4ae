"""The output of ranks in files, and who follows it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpips.rundir import output_files
from mpips.rundir.output_files import FOLDER, Follower

WRITES = """
import os, sys
from pathlib import Path
from mpips.rundir import output_files
print("before")
output_files.redirect(Path(sys.argv[1]), int(sys.argv[2]))
for number in range(3):
    print("line", number)
print("wrong", file=sys.stderr)
os.write(1, b"raw\\n")
"""


def write(folder: Path, first: int) -> str:
    """Write as a rank does; return what went to its own stdout."""
    line = [sys.executable, "-c", WRITES, str(folder), str(first)]
    return subprocess.run(line, check=True, capture_output=True, text=True, timeout=60).stdout


def test_a_follower_gets_what_is_written_from_now_on(tmp_path: Path) -> None:
    write(tmp_path, 0)
    follower = Follower(tmp_path)
    assert follower.poll(at_once=True) == []
    assert write(tmp_path, 0) == "before\n"
    assert write(tmp_path, 12) == "before\n"
    found = follower.poll(at_once=True)
    lines = b"line 0\nline 1\nline 2\nraw\n"
    # Python writes its buffer at its end.
    assert sorted((stream, sorted(data.split())) for stream, data in found) == sorted(
        [(1, sorted(lines.split()))] * 2 + [(2, [b"wrong"])] * 2
    )
    assert follower.poll(at_once=True) == []
    with (tmp_path / FOLDER / "host-0012.err").open("ab") as file:
        file.write(b"half a li")
    assert follower.poll(at_once=True) == [(2, b"half a li")]
    (tmp_path / FOLDER / "host-0001.out").symlink_to(tmp_path / FOLDER / "host-0012.err")
    (tmp_path / FOLDER / "other").write_text("no output")
    assert follower.poll(at_once=True) == []


def test_a_follower_reads_a_long_output_in_several_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_files, "PIECE", 4)
    monkeypatch.setattr(output_files, "PIECES", 2)
    (tmp_path / FOLDER).mkdir()
    follower = Follower(tmp_path)
    (tmp_path / FOLDER / "host-0000.out").write_bytes(b"0123456789ab")
    assert follower.poll(at_once=True) == [(1, b"0123"), (1, b"4567")]
    assert follower.poll(at_once=True) == [(1, b"89ab")]
    assert follower.poll(at_once=True) == []


def test_a_follower_lists_the_files_of_other_hosts_anew(tmp_path: Path) -> None:
    """A client of NFS lists a folder from its cache, for up to a minute unless the folder is changed here."""
    (tmp_path / FOLDER).mkdir()
    now = 0.0
    follower = Follower(tmp_path, lambda: now)
    for later, at_once, anew in [
        (0.0, False, True),
        (1.0, False, False),
        (3.0, False, True),
        (3.0, True, True),
    ]:
        os.utime(tmp_path / FOLDER, (1, 1))
        now = later
        follower.poll(at_once)
        assert ((tmp_path / FOLDER).stat().st_mtime > 1) is anew


def test_a_follower_bears_foreign_files(tmp_path: Path) -> None:
    (tmp_path / FOLDER / "host-0001.err").mkdir(parents=True)
    (tmp_path / FOLDER / "host-0000.out").symlink_to(tmp_path / "nowhere")
    assert Follower(tmp_path).poll(at_once=True) == []


def test_a_follower_looks_seldom_where_looking_takes_long(tmp_path: Path) -> None:
    times = iter([0.0, 1.0, 15.0, 21.0, 21.0])
    follower = Follower(tmp_path, lambda: next(times))
    write(tmp_path, 0)
    assert follower.poll()
    write(tmp_path, 0)
    assert follower.poll() == []
    assert follower.poll()
