"""A rank's log: its contents, when its file is created, and that its errors have no effect."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpips.rundir.folder import JsonLinesWriter
from mpips.rundir.log import FEW, KEPT, RankLog, note


@pytest.fixture
def log() -> Iterator[RankLog]:
    """Return a log that receives all log records, as on a rank."""
    handler, root, own = RankLog(3), logging.getLogger(), logging.getLogger("mpips")
    level = own.level
    root.addHandler(handler)
    own.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    own.setLevel(level)
    handler.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_log_line_has_time_rank_and_event(log: RankLog, tmp_path: Path) -> None:
    note("start", role="server 1", host="n2")
    log.place(tmp_path / "logs" / "rank-0003.jsonl", 4)
    note("lost", logging.WARNING, lost=2, wall=12.5)
    first, second = lines(tmp_path / "logs" / "rank-0003.jsonl")
    assert first.pop("wall") > 1.6e9
    assert first == {"rank": 3, "level": "info", "event": "start", "role": "server 1", "host": "n2"}
    assert second == {"wall": 12.5, "rank": 3, "level": "warning", "event": "lost", "lost": 2}


def test_a_rank_of_many_has_no_file_until_something_happens(log: RankLog, tmp_path: Path) -> None:
    path = tmp_path / "rank-0003.jsonl"
    note("start")
    log.place(path, FEW + 1)
    for number in range(3):
        note("view", epoch=number)
    assert not path.exists()
    note("failed", logging.ERROR, error="oh")
    note("end", code=1)
    assert [line["event"] for line in lines(path)] == ["start", "view", "view", "view", "failed", "end"]


def test_what_happened_before_there_was_a_folder_is_not_forgotten(log: RankLog, tmp_path: Path) -> None:
    for number in range(KEPT + 5):
        note("view", epoch=number)
    note("failed", logging.ERROR)
    log.place(tmp_path / "log", FEW + 1)
    written = lines(tmp_path / "log")
    assert len(written) == KEPT and written[-1]["event"] == "failed"


def test_programs_and_libraries_log_as_ever(log: RankLog, tmp_path: Path) -> None:
    log.place(tmp_path / "log", 1)
    logging.getLogger("mine").info("too quiet")
    logging.getLogger("mine").warning("%d cups", 3)
    try:
        raise KeyError("k")
    except KeyError:
        logging.getLogger("mine").exception("spilt")
    cups, spilt = lines(tmp_path / "log")
    assert (cups["event"], cups["logger"], cups["text"]) == ("log", "mine", "3 cups")
    assert spilt["level"] == "error" and "KeyError: 'k'" in spilt["trace"]


def test_a_log_that_cannot_be_written_does_not_end_the_run(log: RankLog, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log.place(tmp_path / "file" / "log", 1)
    note("view", epoch=1)
    log.place(tmp_path / "log", 1)
    note("odd", value={1, 2})
    note("more")
    assert (tmp_path / "file").read_text() == "" and not (tmp_path / "log").exists()


def test_ranks_without_a_log_are_not_named(capfd: pytest.CaptureFixture[str]) -> None:
    code = "import logging; from mpips.rundir.log import note; note('failed', logging.ERROR, error='x'); print('done')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_on_a_rank_a_warning_is_seen_and_logged(tmp_path: Path) -> None:
    code = f"""
import logging, pathlib, warnings
from mpips.rundir import log
handler = log.begin(7)
handler.place(pathlib.Path({str(tmp_path / "log")!r}), 1)
log.note("failed", logging.ERROR, error="mine to say")
warnings.warn("this is old")
logging.getLogger("mine").warning("cup")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert "this is old" in done.stderr and "cup" in done.stderr and "failed" not in done.stderr
    assert [line["event"] for line in lines(tmp_path / "log")] == ["failed", "log", "log"]


def test_a_message_that_cannot_be_formatted_raises_no_error(
    log: RankLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)  # as in production; else it would show a traceback
    log.place(tmp_path / "log", 1)
    logging.getLogger("library").warning("%d items", "many")
    note("after")
    assert [line["event"] for line in lines(tmp_path / "log")] == ["after"]


def test_a_signal_may_log_while_a_line_is_written(
    log: RankLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, once = JsonLinesWriter.append, [True]

    def interrupted(self: JsonLinesWriter, line: Any) -> None:
        if once:
            once.pop()
            note("asked")
        append(self, line)

    log.place(tmp_path / "log", 1)
    monkeypatch.setattr(JsonLinesWriter, "append", interrupted)
    note("view")
    note("role")
    assert sorted(line["event"] for line in lines(tmp_path / "log")) == ["asked", "role", "view"]
