"""Where ranks are in the program, and what they wait for: asked by messages, and by signals if they do not answer."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpips import Cluster, Context, VectorSpec
from mpips.process.host import host_name
from mpips.process.interpreter import python
from mpips.rank import stacks
from mpips.rank.simulation import simulate
from mpips.rank.stacks import Stacks, dumped, text_here
from mpips.rundir.folder import RunFolder
from mpips.rundir.order_files import Order

BUSY = """
import sys, time
from mpips.rank import stacks
stacks.serve()
def spin(until):
    while time.monotonic() < until:
        pass
def work():
    print("ready", flush=True)
    spin(time.monotonic() + 60)
work()
"""


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a process that computes, and answers nothing."""
    (tmp_path / "busy.py").write_text(BUSY)
    with subprocess.Popen(
        [*python(), str(tmp_path / "busy.py")], stdout=subprocess.PIPE, text=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def until_seen(look: Callable[[], Any]) -> Any:
    """Look again on a host so loaded that a stack is not dumped in time."""
    found, until = look(), time.monotonic() + 30.0
    while not found and time.monotonic() < until:
        found = look()
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="memory without a file is Linux's")
def test_the_stack_of_a_busy_process(busy: subprocess.Popen[str], tmp_path: Path) -> None:
    for _ in range(2):
        # It may be about to spin.
        (found,) = until_seen(
            lambda: [each for each in [dumped(busy.pid)] if each[:1] and " in spin" in each[0]]
        )
        assert [each.rpartition("/")[2] for each in found[1:]] == [
            "busy.py:10 in work",
            "busy.py:11 in <module>",
        ]
    ranks = [{"rank": 3, "role": "worker", "host": host_name(), "pid": busy.pid}]
    ranks += [{"rank": 4, "role": "worker", "host": host_name(), "pid": 2**22 + 1}]
    (tmp_path / "run.json").write_text(json.dumps({"ranks": ranks}))
    text = until_seen(lambda: text_here(RunFolder(tmp_path)))
    assert text.startswith("rank 3 is busy, in\n  ") and "rank 4" not in text
    assert text_here(RunFolder(tmp_path / "none")) == ""


KEYS = np.arange(4, dtype=np.uint64)


class Worker:
    """The second one never takes part in a round, so that the first waits; the third computes."""

    def __init__(self, context: Context) -> None:
        self.context = context
        Stacks(context.node, dict)

    def push(self) -> None:
        if self.context.index == 0:
            self.context.vectors["w"].push(KEYS, np.ones(4), round=0).result()
        elif self.context.index == 1:
            node = self.context.node
            until = node.van.now() + 9.0
            node.wait_until(lambda: node.van.now() > until, "Godot")
            self.context.vectors["w"].push(KEYS, np.ones(4), round=0).result()


def asked(found: Stacks, seconds: float = 3.0) -> str:
    node = found.node
    begin = node.van.now()
    node.wait_until(lambda: node.van.now() > begin + seconds)
    found.ask(Order("a", "stacks"))
    found.ask(Order("b", "stacks"))
    got: list[Order] = []
    node.wait_until(lambda: bool(got.extend(found.ready()) or got))
    assert [order.name for order in got] == ["a", "b"] and not found.ready()
    return found.text()


def test_ranks_say_what_they_wait_for_and_since_when() -> None:
    def schedule(cluster: Cluster) -> str:
        found = Stacks(cluster.node, dict)
        cluster.create_vector(VectorSpec("w", aggregate=True))
        task = cluster.workers.start("push")
        text = asked(found)
        task.result()
        return text

    text = simulate(schedule, Worker, workers=2)
    mine, server, first, second = ("\n" + text).split("\nrank ")[1:]
    line = next(
        n for n, each in enumerate(Path(__file__).read_text().splitlines(), 1) if "round=0).result()" in each
    )
    assert mine.startswith("0 (scheduler 0) works, in\n  ") and " in schedule" in mine
    assert server == "1 (server 0) does not answer, and its stack cannot be seen"
    assert first.startswith(
        f"2 (worker 0) has waited 3.0 s for push of vector w at {__file__}:{line}: no answer from"
    )
    assert f"\n  {__file__}:{line} in push" in first
    assert second.startswith("3 (worker 1) has waited 3.0 s for Godot\n  ") and "in push" in second


def test_a_rank_that_does_not_answer_is_looked_at_on_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "dumped", lambda pid: [f"/x.py:{pid} in spin"])
    processes = {0: (10, host_name()), 1: (11, host_name()), 2: (12, "other"), 3: (13, "other")}

    class Silent:
        def __init__(self, context: Context) -> None:
            if context.index == 0:
                Stacks(context.node, dict)

    def schedule(cluster: Cluster) -> str:
        return asked(Stacks(cluster.node, lambda: processes), 0.1)

    text = simulate(schedule, Silent, workers=2)
    assert "rank 1 (server 0) is busy, in\n  /x.py:11 in spin" in text
    assert "rank 3 (worker 1) is busy, in\n  /x.py:13 in spin" in text
    assert "rank 2 (worker 0) waits for the next call" in text


PROGRAM = """
import time
from dataclasses import dataclass

@dataclass(frozen=True)
class Settings:
    '''Nothing.'''

def schedule(cluster, settings):
    cluster.workers.call("spin")
    return {}

class Worker:
    def __init__(self, context):
        self.context = context

    def spin(self):
        if self.context.index:
            return
        open("spinning", "w").close()
        until = time.monotonic() + 4.0
        while time.monotonic() < until:
            pass
"""


@pytest.mark.ranks
@pytest.mark.once
def test_the_stacks_of_a_run(
    tmp_path: Path, start_mpips: Callable[..., Any], run_mpips: Callable[..., Any]
) -> None:
    (tmp_path / "spinning.py").write_text(PROGRAM)
    (tmp_path / "job.toml").write_text('[job]\nprogram = "spinning.py"\n[heartbeat]\npatience = 60.0\n')
    run = start_mpips("run", "job.toml", "--run-dir", "run", "--servers", "1", "--workers", "2", cwd=tmp_path)
    until = time.monotonic() + 60.0
    while not (tmp_path / "spinning").exists() and time.monotonic() < until:
        time.sleep(0.05)
    said = run_mpips("ctl", "run", "stacks", "--patience", "30", cwd=tmp_path)
    assert said.code == 0, said.stderr
    assert "rank 0 (scheduler 0) has waited" in said.stdout and "spinning.py:10 in schedule" in said.stdout
    assert "no answer from rank 2 (worker 0)" in said.stdout
    assert "rank 2 (worker 0) is busy, in\n" in said.stdout and "spinning.py:22 in spin" in said.stdout
    assert run.finish(60.0).code == 0
