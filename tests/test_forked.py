"""A forked child never answers for its rank."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mpips import VectorSpec, simulate
from mpips.forked import program_code
from mpips.process import stop_signals


def _leave(do: Callable[[], None]) -> int:
    """Run `do` in a forked child of a block; return the child's exit code."""
    parent = os.getpid()
    try:
        with program_code("Worker.train"):
            child = os.fork()
            if child == 0:
                do()
    finally:
        assert os.getpid() == parent
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _fail() -> None:
    raise ValueError("in the child")


@pytest.mark.parametrize(
    ("do", "code", "said"),
    [
        (lambda: None, 1, "a forked child of process"),
        (_fail, 1, "ValueError: in the child"),
        (lambda: sys.exit(0), 0, ""),
        (lambda: sys.exit(7), 7, ""),
        (lambda: os._exit(3), 3, ""),
    ],
)
def test_a_child_ends_where_the_programs_code_does(
    do: Callable[[], None], code: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _leave(do) == code
    text = capfd.readouterr().err
    assert said in text
    assert bool(text) == bool(said)


def test_an_exit_of_the_process_itself_goes_on() -> None:
    with pytest.raises(SystemExit), program_code("Worker.train"):
        sys.exit(2)


class _Forks:
    def __init__(self, context: Any) -> None:
        self.vectors = context.vectors

    def train(self) -> int:
        child = os.fork()
        if child:
            os.waitpid(child, 0)
            self.vectors["w"].push(np.zeros(1, np.uint64), np.ones(1)).result()
        return 1


def test_a_call_whose_child_returns_is_answered_once(capfd: pytest.CaptureFixture[str]) -> None:
    def schedule(cluster: Any) -> tuple[list[int], list[float]]:
        w = cluster.create_vector(VectorSpec("w"))
        answers = cluster.workers.call("train")
        return answers, w.pull(np.zeros(1, np.uint64)).result().tolist()

    assert simulate(schedule, _Forks) == ([1], [1.0])
    assert "left Worker.train" in capfd.readouterr().err


class _Pushes:
    def __init__(self, context: Any) -> None:
        self.vectors = context.vectors

    def train(self, how: str) -> int:
        w, key = self.vectors["w"], np.zeros(1, np.uint64)
        pushed = w.push(key, np.ones(1))
        child = os.fork()
        if child == 0:
            if how == "push":
                w.push(key, np.ones(1))
            elif how == "pull":
                w.pull(key)
            else:
                pushed.result()
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("how", ["push", "pull", "wait"])
def test_a_child_cannot_use_the_ranks_connections(how: str, capfd: pytest.CaptureFixture[str]) -> None:
    def schedule(cluster: Any) -> tuple[list[int], list[float]]:
        w = cluster.create_vector(VectorSpec("w"))
        return cluster.workers.call("train", {"how": how}), w.pull(np.zeros(1, np.uint64)).result().tolist()

    assert simulate(schedule, _Pushes) == ([1], [1.0])
    assert "shares the rank's MPI connections, and cannot use mpips" in capfd.readouterr().err


def test_a_signal_that_asks_a_rank_to_stop_ends_a_forked_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `Pool.terminate` of multiprocessing, which waits for the end of its processes."""
    monkeypatch.setattr(stop_signals, "received", [])
    before = {kind: signal.getsignal(kind) for kind in stop_signals.STOP_SIGNALS}
    # Another one of the program itself.
    mine = signal.signal(signal.SIGHUP, lambda *_: os._exit(3))
    stop_signals.receive()
    try:
        for sent, code in (
            (signal.SIGTERM, -signal.SIGTERM),
            (signal.SIGUSR1, -signal.SIGUSR1),
            (signal.SIGHUP, 3),
        ):

            def end(sent: int = sent) -> None:
                os.kill(os.getpid(), sent)
                os._exit(99)

            assert _leave(end) == code
    finally:
        for kind, handler in [*before.items(), (signal.SIGHUP, mine)]:
            signal.signal(kind, handler)
    assert stop_signals.received == []
