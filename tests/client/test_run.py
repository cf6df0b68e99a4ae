"""Runs that are started from Python."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mpips import InputError, Run, RunFailed, RunInterrupted, UsageError, run
from mpips.client.run_process import RunProcess, is_pass
from mpips.process.interpreter import python

if TYPE_CHECKING:
    from conftest import TinyData

ENDLESS = {"algorithm": "ftrl", "passes": 10**6, "batch": 40}
PROGRAM = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Settings:
    '''Nothing.'''

def schedule(cluster, settings):
    cluster.workers.call("fail")

class Worker:
    def __init__(self, context):
        pass

    def fail(self):
        return 1 // 0
"""


@pytest.fixture(autouse=True)
def ctrl_c() -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGINT: a shell lets what it starts in the background ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def job_of(data: TinyData, **settings: Any) -> dict[str, dict[str, Any]]:
    tables = {"job": {"program": "sparse_lr"}, "layout": {"servers": 1, "workers": 1}, "sparse_lr": settings}
    return tables | {"data": {"train": data.train, "test": data.test}}


@pytest.mark.parametrize(
    ("job", "settings", "said"),
    [
        ("none.toml", {}, "none.toml: no such job file"),
        ({"job": {"program": "nothing"}}, {}, "job: there is no program 'nothing'"),
        ({"job": {"program": "lda"}, "lda": {"topic": 3}}, {}, "did you mean 'topics'"),
        ({"job": {"program": "lda"}}, {"lda.topics": 0}, "--set lda.topics=0: topics must be at least 1"),
    ],
)
def test_wrong_input_is_an_error_of_one_line(
    job: Any, settings: dict[str, Any], said: str, capfd: pytest.CaptureFixture[str], here: Path
) -> None:
    with pytest.raises(InputError) as raised:
        run(job, set=settings)
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")
    assert not list(here.iterdir())


def child(program: str, show: bool = False) -> RunProcess:
    """Start a program in place of `mpips run`; its `tell` is the descriptor for the folder."""
    begin = "import json, os, signal, sys, time; tell = int(sys.argv[-1])\n"
    return RunProcess([sys.executable, "-c", begin + program], show)


def test_the_last_line_says_how_it_ended(capsys: pytest.CaptureFixture[str]) -> None:
    made = child("print('out'); sys.stderr.write('mpips: x\\nmpips: failed: why\\n  more'); sys.exit(3)")
    assert not made.finish(None)
    assert (made.code, made.last_line, list(made.kept)[-1]) == (3, "why", "  more")
    assert capsys.readouterr() == ("", "")
    made = child("os.kill(os.getpid(), signal.SIGKILL)")
    made.finish(None)
    assert (made.code, made.last_line) == (137, "mpips run ended with exit code 137")
    made = child("print('\\N{BULLET}' * 30_000)", show=True)
    made.finish(None)
    assert capsys.readouterr().out == "\N{BULLET}" * 30_000 + "\n"


LINES = """
lines = open("metrics.jsonl", "a")
os.write(tell, json.dumps({"folder": os.getcwd(), "metrics": 6}).encode() + b"\\n")
for each in ('{"event": "pass", "n": 1}\\n', '{"event": "header"}\\n{"event": "p', 'ass", "n": 2}\\nnothing\\n'):
    lines.write(each)
    lines.flush()
    time.sleep(0.15)
lines.write('{"pass": 3, "noted": true}\\n{"sweep": 3}\\n{"event": "pass"')
"""


STOPPED = """
asked = []
signal.signal(signal.SIGINT, lambda *_: asked.append(open("asked", "a").close()))
print("ready", flush=True)
while len(asked) < TIMES:
    time.sleep(0.01)
sys.stderr.write("mpips: stopped\\n")
sys.exit(85)
"""


def test_passes_are_told_in_order_each_once_and_whole(here: Path) -> None:
    (here / "metrics.jsonl").write_text('{"pas\n')
    told: list[dict[str, Any]] = []
    made = child(LINES)
    made.finish(told.append)
    assert made.begun is not None and made.begun.folder == here
    assert told == [{"event": "pass", "n": 1}, {"event": "pass", "n": 2}, {"sweep": 3}]
    assert Run(here).passes == told and Run(here).status == "no result"


def test_an_error_of_on_pass_stops_the_run(here: Path) -> None:
    made = child(STOPPED.replace("print", LINES + "print").replace("TIMES", "1"))
    with pytest.raises(KeyError, match="objective"):
        made.finish(lambda line: line["objective"])
    assert made.code == 85


def test_what_is_a_pass() -> None:
    assert is_pass({"event": "step"}) and is_pass({"event": "inserts", "seconds": 0.5})
    assert not is_pass({"event": "trained", "traffic": {}}) and not is_pass({"seconds": None})


def test_ctrl_c_is_passed_on_each_time(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = child(STOPPED.replace("TIMES", "2"), show=True)
    send, ready = made._process.send_signal, made._take_output

    def interrupt(data: bytes) -> None:
        ready(data)
        os.kill(os.getpid(), signal.SIGINT)

    def send_and_interrupt_again(number: int) -> None:
        send(number)
        monkeypatch.undo()
        # Two signals that come at once are one.
        until = time.monotonic() + 30.0
        while not (here / "asked").exists() and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    (output,) = [fd for fd, key in made._pipes.get_map().items() if key.data == ready]
    made._pipes.modify(output, selectors.EVENT_READ, interrupt)
    monkeypatch.setattr(made._process, "send_signal", send_and_interrupt_again)
    assert made.finish(None)
    assert (made.code, made.last_line) == (85, "stopped")


def test_a_run_that_was_there_before(here: Path) -> None:
    with pytest.raises(InputError, match="there is no run under runs"):
        Run()
    (here / "result.json").write_text(json.dumps({"status": "failed", "error": "x"}))
    made = Run(here)
    assert (made.status, made.metrics, os.fspath(made), repr(made)) == (
        "failed", {}, str(here), f"Run('{here}'): failed",
    )  # fmt: skip
    (here / "job.toml").write_text('[job]\nprogram = "x"\nname = "y"\n')
    assert made.checkpoint is None
    with pytest.raises(InputError, match=r"no checkpoint in checkpoints/y; \[checkpoint\] every"):
        made.vector("w")


@pytest.mark.ranks
@pytest.mark.once
def test_a_run_from_a_dict(tiny_data: TinyData, capfd: pytest.CaptureFixture[str]) -> None:
    passes: list[dict[str, Any]] = []
    done = run(job_of(tiny_data, passes=3), workers=2, set={"checkpoint.every": 2}, on_pass=passes.append)
    assert capfd.readouterr() == ("", "")
    assert done.status == "completed" and done.metrics["passes"] == 3
    assert [each["pass"] for each in passes] == [1, 2, 3] and done.passes == passes
    assert done.result["layout"]["workers"] == 2
    assert [each.name for each in Path("runs").iterdir()] == [done.folder.name]
    assert done.checkpoint is not None and done.checkpoint.name == "step-000002"
    keys, weights = done.vector()
    with np.load(done.metrics["model"]) as model:
        assert np.array_equal(keys, model["keys"]) and np.array_equal(weights, model["values"])
    with pytest.raises(InputError, match="holds a run already"):
        run(job_of(tiny_data), run_dir=done)


@pytest.mark.ranks
@pytest.mark.once
def test_ctrl_c_stops_a_run_which_can_be_continued(
    tiny_data: TinyData, capfd: pytest.CaptureFixture[str]
) -> None:
    job = job_of(tiny_data, **ENDLESS)
    with pytest.raises(RunInterrupted, match="stopped with a checkpoint") as raised:
        run(job, on_pass=lambda _: os.kill(os.getpid(), signal.SIGINT))
    stopped = raised.value.run
    assert stopped is not None and stopped.status == "stopped" and stopped.checkpoint is not None
    reached = len(stopped.passes)
    job["sparse_lr"]["passes"] = reached + 1
    told: list[dict[str, Any]] = []
    done = run(job, resume=stopped, on_pass=told.append, show=True)
    assert done.folder == stopped.folder and done.status == "completed"
    assert [each["pass"] for each in told] == [reached + 1]
    assert len(done.passes) == reached + 1
    said = capfd.readouterr()
    assert "resumed from" in said.out and "mpips: completed; run folder:" in said.err


@pytest.mark.ranks
@pytest.mark.once
def test_a_run_whose_caller_is_killed_stops_with_a_checkpoint(tiny_data: TinyData, here: Path) -> None:
    job = {name: {key: str(each) if isinstance(each, Path) else each for key, each in table.items()}
           for name, table in job_of(tiny_data, **ENDLESS).items()}  # fmt: skip
    kill = "lambda _: os.kill(os.getpid(), signal.SIGKILL)"
    caller = f"import mpips, os, signal\nmpips.run({job!r}, run_dir='run', on_pass={kill})"
    ended = subprocess.run([*python(), "-c", caller], timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL
    until = time.monotonic() + 60.0
    # While it stops, its result is what holds if it is killed now.
    while Run("run").status != "stopped" and time.monotonic() < until:
        time.sleep(0.05)
    assert Run("run").status == "stopped" and Run("run").checkpoint is not None


@pytest.mark.ranks
@pytest.mark.once
def test_a_run_that_fails(here: Path) -> None:
    Path("own.py").write_text(PROGRAM)
    with pytest.raises(RunFailed, match=r"worker 0 on .*\): ZeroDivisionError: .* at .*own\.py:16") as raised:
        run({"job": {"program": "own.py"}}, servers=1, workers=1)
    error = raised.value
    assert error.code == 1 and "\n" not in str(error) and error.folder is not None
    assert "return 1 // 0" in error.output and Run(error.folder).status == "failed"
    assert not isinstance(error, UsageError)
