"""Standard streams that are closed, full, without a reader, or of an encoding with few characters."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import pty
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Finished, Started

from mpips.config.job_file import load
from mpips.errors import JobError
from mpips.process.printable import Control
from mpips.process.standard_streams import Stream
from mpips.rundir.progress import Column, Table

MPIPS = f"{shlex.quote(sys.executable)} -m mpips.cli"
TOY = """\
from dataclasses import dataclass

@dataclass(frozen=True)
class Settings:
    count: int = 1
    where: str = ""

def schedule(cluster, settings):
    for _ in range(300):
        print("x" * 80, flush=True)
    cluster.say("\\x1b[2J of a name")
    return {"done": 1}

def query(source, keys):
    return [key + "!" for key in keys]

class Worker:
    def __init__(self, context):
        pass
"""
FULL = "mpips: error: stdout: cannot be written: No space left on device\n"


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    (tmp_path / "toy.py").write_text(TOY)
    (tmp_path / "job.toml").write_text('[job]\nprogram = "toy.py"\n')
    return tmp_path


@pytest.fixture
def shell(start: Callable[..., Started], toy: Path) -> Callable[..., Finished]:
    def run(line: str, **environ: str) -> Finished:
        found = start(["bash", "-c", line], cwd=toy, environ=environ).finish(90.0)
        assert "Traceback" not in found.stdout + found.stderr, found
        return found

    return run


@pytest.mark.parametrize("command", ["job toy.py", "run --help"])
def test_a_command_whose_output_is_lost(shell: Callable[..., Finished], command: str) -> None:
    line = f"{MPIPS} {command}"
    full = shell(f"{line} >/dev/full")
    assert (full.code, full.stderr) == (74, FULL)
    assert shell(f"{line} >/dev/full 2>&1").code == 74
    closed = shell(f"{line} <&- >&-")
    assert (closed.code, closed.stdout, closed.stderr) == (0, "", ""), "who closes stdout wants no output"
    assert shell(f"{line} <&- >&- 2>&-").code == 0
    silent = shell(f"{line} 2>&-")
    assert silent.code == 0 and silent.stdout
    gone = shell(f'{line} | true; echo "${{PIPESTATUS[0]}}"')
    assert (gone.stdout, gone.stderr) == ("141\n", "")


def test_the_exit_code_is_right_if_nothing_can_be_printed(shell: Callable[..., Finished]) -> None:
    for where in ("2>&-", "<&- >&- 2>&-", "2>/dev/full", ">/dev/full"):
        assert shell(f"{MPIPS} inspect nothing {where}").code == 2
        assert shell(f"{MPIPS} run --nothing {where}").code == 2


def test_descriptors_that_are_closed_are_never_those_of_a_file() -> None:
    code = (
        "from mpips.process import standard_streams; standard_streams.prepare(); import os; f = open('/dev/zero'); "
        "assert f.fileno() > 2; assert all(os.get_inheritable(n) for n in range(3)); os._exit(7)"
    )
    line = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} <&- >&- 2>&-"
    assert subprocess.run(["bash", "-c", line], cwd=ROOT, timeout=30, check=False).returncode == 7


@pytest.mark.parametrize(
    "environ",
    [
        {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii:strict"},
    ],
)
def test_any_text_can_be_said_in_any_locale(shell: Callable[..., Finished], environ: dict[str, str]) -> None:
    name = "größe-数-\udcff.toml"
    asked = shell(f"{MPIPS} layout {shlex.quote(name)}", **environ)
    assert asked.code == 2 and asked.stderr.startswith("mpips: error: ") and "gr" in asked.stderr
    made = shell(f"{MPIPS} run job.toml --dry-run --run-dir {shlex.quote(name)}", **environ)
    assert made.code == 0 and "gr" in made.stdout


def test_data_is_left_as_it_is_and_text_for_people_is_not(shell: Callable[..., Finished], toy: Path) -> None:
    (toy / "result.json").write_text('{"status": "completed"}')
    line = f"{MPIPS} query --program toy.py . $'a\\x1b[2J' $'\\xff\\r' größe".encode()
    done = subprocess.run(["bash", "-c", line], cwd=toy, capture_output=True, timeout=60, check=False)
    assert done.stdout == b"a\x1b[2J\ta\x1b[2J!\n\xff\r\t\xff\r!\n" + "größe\tgröße!\n".encode()
    piped = subprocess.run(
        ["bash", "-c", f"{MPIPS} query --program toy.py ."],
        cwd=toy,
        input=b"\xff\n",
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert piped.stdout == b"\xff\t\xff!\n"
    piped = subprocess.run(
        ["bash", "-c", f"{MPIPS} query --program toy.py ."],
        cwd=toy,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
        input="ä\n".encode(),
        capture_output=True,
        timeout=60,
        check=False,
    )
    # One letter, written as that encoding writes it.
    assert piped.stdout == b"\xe4\t\xe4!\n"
    shown = on_a_terminal(line, toy)
    assert rb"a\x1b[2J" in shown and b"\x1b" not in shown


def on_a_terminal(line: bytes, cwd: Path) -> bytes:
    """Return what a command shows on a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(["bash", "-c", line], cwd=cwd, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        found = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:
                break
            if not piece:
                break
            found += piece
        process.wait(60)
    os.close(ours)
    return found


def test_an_error_is_one_line_whatever_it_quotes(shell: Callable[..., Finished]) -> None:
    for command in ("inspect", "run", "diff x", "frobnicate"):
        done = shell(f"{MPIPS} {command} $'no\\n\\x1b[2Jthing' $'\\x9b2J'")
        assert done.code == 2 and done.stderr.count("\n") == 1, done
        assert "\x1b" not in done.stderr


def test_a_stream_shows_all_but_our_own_control_characters_as_escapes() -> None:
    reads, writes = os.pipe()
    with os.fdopen(writes, "wb") as pipe:
        text = io.TextIOWrapper(pipe, "ascii", "mpips", write_through=True)
        stream = Stream(text, writes, escape=True, raises=False)
        print("\x1b[1m", Control("\x1b[0m"), "é\x9b\udcff\r", file=stream, flush=True)
        stream.escape = False
        print("\x1b[1m\udcff", file=stream, flush=True)
        stream.detach()
        text.detach()
    with os.fdopen(reads, "rb") as pipe:
        assert pipe.read() == b"\\x1b[1m \x1b[0m \\xe9\\x9b\\udcff\\r\n\x1b[1m\xff\n"


def test_lost_output_is_recorded_and_the_error_raised_once() -> None:
    for ends in (False, True):
        with open("/dev/full", "wb") as file:
            text = io.TextIOWrapper(file)
            stream = Stream(text, file.fileno(), escape=False, raises=ends)
            stream.write("x")
            with pytest.raises(OSError, match="No space") if ends else contextlib.nullcontext():
                stream.flush()
            assert stream.problem is not None and stream.problem.errno == errno.ENOSPC
            print("more", file=stream, flush=True)
            stream.detach()
            text.detach()


def test_a_live_table_acts_on_the_terminal_and_what_it_shows_does_not() -> None:
    written: list[str] = []

    class Kept:
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

        def flush(self) -> None: ...

    table = Table([Column("a", "a", 3)], Kept(), live=True, width=40)  # type: ignore[arg-type]
    table.update({"a": "\x1b[2J"})
    table.row({"a": "\rb"})
    table.close()
    assert "".join(written) == "  a\n\\x1b[2J\r \\rb   \n"
    assert all(isinstance(each, Control) for each in written if "\r" in each)


@pytest.mark.drawn(1)
@pytest.mark.ranks
@pytest.mark.once
@pytest.mark.parametrize("where", [">/dev/full", "<&- >&- 2>&-"])
def test_a_run_continues_when_its_output_cannot_be_written(
    shell: Callable[..., Finished], toy: Path, where: str
) -> None:
    done = shell(f"{MPIPS} run job.toml --run-dir run {where}")
    assert done.code == 0
    assert json.loads((toy / "run" / "result.json").read_text())["status"] == "completed"
    if "full" in where:
        assert "cannot be written: No space left on device; the run continues" in done.stderr


@pytest.mark.ranks
@pytest.mark.parametrize(
    "where", ["<&- >&- 2>&-", pytest.param(">/dev/full 2>/dev/full", marks=pytest.mark.once)]
)
def test_ranks_continue_without_their_streams(
    run_ranks: Callable[..., Finished], starter: Any, toy: Path, where: str
) -> None:
    (toy / "rank.py").write_text(
        "import os, sys\n"
        f"os.execv('/bin/bash', ['bash', '-c', 'exec {MPIPS.removesuffix('.cli')} job.toml --run-dir run {where}'])\n"
    )
    done = run_ranks(3, "rank.py", cwd=toy)
    # MPICH's launcher may kill a rank without streams that is a little slower to exit than the others.
    assert done.code == 0 or (starter.kind == "mpich" and done.code == 9), done
    for log in (toy / "run" / "logs").iterdir():
        last = json.loads(log.read_text().splitlines()[-1])
        assert (last["event"], last["code"]) == ("end", 0)
    assert json.loads((toy / "run" / "result.json").read_text())["status"] == "completed"


@pytest.mark.ranks
@pytest.mark.once
def test_names_that_are_not_utf8_work_everywhere(shell: Callable[..., Finished], toy: Path) -> None:
    there = Path(os.fsdecode(os.fsencode(toy) + b"/caf\xe9"))
    there.mkdir()
    for name in ("toy.py", "job.toml"):
        (there / name).write_text((toy / name).read_text())
    commands = (
        "run job.toml --run-dir $'r\\xff' --set toy.where=$'na\\xefve'",
        "layout $'r\\xff' --program toy.py",
        "report $'r\\xff'",
        "crate $'r\\xff' -o c",
        "diff $'r\\xff' $'r\\xff'",
    )
    done = shell(" && ".join(["cd $'caf\\xe9'", *(f"{MPIPS} {each}" for each in commands)]) + "; echo $?")
    assert done.stdout.endswith("\n1\n"), done  # a program without parameters: it cannot be told
    folder = there / "r\udcff"
    assert (folder / "report.html").is_file() and (there / "c" / "ro-crate-metadata.json").read_text("utf-8")
    assert b'where = "na\xefve"' in (folder / "job.toml").read_bytes()
    assert load(folder / "job.toml").settings.where == "na\udcefve"
    assert json.loads((folder / "run.json").read_text())["working_directory"] == str(there)
    (folder / "job.toml").write_bytes((folder / "job.toml").read_bytes().partition(b"\n")[2])
    with pytest.raises(JobError, match="is not UTF-8"):
        load(folder / "job.toml")
