"""Common parts of the tests: commands that cannot hang or leave processes behind, and a tiny data set."""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forking import Fork, Forker
from hypothesis import settings

from mpips.cli.main import parser
from mpips.process import dependent
from mpips.process.interpreter import python

# What is slow is not therefore wrong. Each run of the suite draws other examples, so few are enough for one of them;
# `--hypothesis-profile=thorough` draws many.
settings.register_profile("mpips", deadline=None, print_blob=True, max_examples=30)
settings.register_profile("thorough", deadline=None, print_blob=True, max_examples=1000)
settings.load_profile("mpips")

ROOT = Path(__file__).resolve().parent.parent
TAG = "MPIPS_TEST_TAG"
"""An environment variable by which every process that a test started, however deep, is known."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("MPIPS_TEST_LONG"):
        return
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.skip(reason="make test-long runs it"))
        elif item.get_closest_marker("drawn"):
            cases.setdefault(item.nodeid.split("[")[0], []).append(item)
    for test, of in cases.items():
        marker = of[0].get_closest_marker("drawn")
        assert marker is not None
        # The same ones all day long: a test that failed is among those of the next try.
        draw = random.Random(f"{time.strftime('%F', time.gmtime())} {test}")
        for item in draw.sample(of, max(0, len(of) - marker.args[0])):
            item.add_marker(pytest.mark.skip(reason="not drawn today; make test-long runs it"))


def patience(seconds: float) -> float:
    """Return how long to wait for what takes at most so many seconds on a machine with nothing else to do."""
    return seconds * min(max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)), 8.0)


GONE_WITHIN = 5.0
"""Seconds after a command's end within which everything that it started must be gone."""


@dataclass(frozen=True)
class Finished:
    """The outcome of a command."""

    code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def last_line(self) -> str:
        """The last line of stderr, in which a command reports how it ended."""
        return (self.stderr.strip().splitlines() or [""])[-1]


def ended_with(done: Finished, code: int) -> bool:
    """Whether a run that failed gave this exit code, as far as its launcher passes it on.

    MPICH's launcher kills the ranks that are milliseconds slower than the first to fail, and sometimes reports that
    (9) instead of their exit code.
    """
    return done.code == code or (
        code != 0 and done.code == 9 and (Path(sys.prefix) / "bin" / "mpiexec.hydra").exists()
    )


def tagged(tag: str) -> list[int]:
    """List the living processes that carry a tag."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if f"{TAG}={tag}\0".encode() in (entry / "environ").read_bytes() and not is_zombie(entry):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def is_zombie(entry: Path) -> bool:
    """Return whether a process has ended and only waits for its parent to ask how."""
    return (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"


def send(pids: Sequence[int], kind: signal.Signals) -> None:
    """Signal processes, those that are still there."""
    for pid in pids:
        try:
            os.kill(pid, kind)
        except ProcessLookupError:
            continue


class Started:
    """A command that runs in a process group of its own; with a `forker`, one of mpips."""

    def __init__(
        self,
        command: Sequence[str | Path],
        cwd: Path,
        environ: Mapping[str, str],
        folder: Path,
        forker: Forker | None = None,
    ) -> None:
        self.tag = secrets.token_hex(8)
        self._out, self._err = folder / f"{self.tag}.out", folder / f"{self.tag}.err"
        self._began = time.monotonic()
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("OMPI_COMM", "PMI", "PRTE_", "MPIPS_"))
        }
        env = {**inherited, "PYTHONFAULTHANDLER": "1", TAG: self.tag, **environ}
        words = [str(part) for part in command]
        self.process: subprocess.Popen[bytes] | Fork
        with self._out.open("wb") as out, self._err.open("wb") as err:
            if forker is not None:
                self.process = forker.begin(words, cwd, env, self._out, self._err)
                return
            self.process = subprocess.Popen(
                dependent.line(words),  # tests kill launchers, whose numbers come again
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return self._out.read_text(encoding="utf-8", errors="replace")

    @property
    def stderr(self) -> str:
        """What it has written to stderr so far."""
        return self._err.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, condition: Callable[[], bool], timeout: float = 60.0) -> None:
        """Wait until something holds; fails the test if the command ends, or too much time passes, before."""
        began = time.monotonic()
        while not condition():
            if self.process.poll() is not None or time.monotonic() - began > patience(timeout):
                state = "ended" if self.process.poll() is not None else "did not get there in time"
                self.kill()
                pytest.fail(f"the command {state}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}")
            time.sleep(0.02)

    def finish(self, timeout: float = 60.0) -> Finished:
        """Wait for its end. What hangs is dumped by the fault handler and killed, and fails the test.

        So does what it leaves behind.
        """
        began = time.monotonic()
        while (code := self.process.poll()) is None and time.monotonic() - began < patience(timeout):
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(1.0)
        if code is None:
            send(self.pythons(), signal.SIGABRT)  # each Python writes its stacks as it goes
            time.sleep(1.0)
            self.kill()
            pytest.fail(f"no end after {timeout} s\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}")
        seconds = time.monotonic() - self._began
        began = time.monotonic()
        while left := tagged(self.tag):
            if time.monotonic() - began > patience(GONE_WITHIN):
                names = [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ") for pid in left]
                self.kill()
                pytest.fail(f"left behind after {GONE_WITHIN} s: {names}\n--- stderr\n{self.stderr}")
            time.sleep(0.02)
        return Finished(code, self.stdout, self.stderr, seconds)

    def pythons(self) -> list[int]:
        """List its Python processes."""
        return [pid for pid in self.living() if "python" in Path(os.readlink(f"/proc/{pid}/exe")).name]

    def living(self) -> list[int]:
        """List its processes; a fork is known by its number, and only what it starts by the tag."""
        own = [self.process.pid] if self.process.poll() is None else []
        return [*own, *(pid for pid in tagged(self.tag) if pid not in own)]

    def kill(self) -> None:
        """Kill all of it, and nothing else."""
        send(self.living(), signal.SIGKILL)
        self.process.wait(10)


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Started]]:
    """Start commands (`cwd`, `environ`); whatever still runs when the test is over is killed."""
    folder = tmp_path_factory.mktemp("output")
    running: list[Started] = []

    def start_it(
        command: Sequence[str | Path],
        cwd: Path = folder,
        environ: Mapping[str, str] | None = None,
        forker: Forker | None = None,
    ) -> Started:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        running.append(Started(command, cwd, {"PYTHONPATH": path, **(environ or {})}, folder, forker))
        return running[-1]

    yield start_it
    for started in running:
        started.kill()


@pytest.fixture
def start_mpips(start: Callable[..., Started]) -> Callable[..., Started]:
    """Start `mpips ARGUMENTS`."""
    return lambda *arguments, **how: start([*python(), "-m", "mpips.cli", *arguments], **how)


@pytest.fixture(scope="session")
def forker() -> Iterator[Forker]:
    """Return the process that has loaded mpips."""
    forker = Forker(python(), ROOT)
    yield forker
    forker.close()


@pytest.fixture
def run_mpips(
    start: Callable[..., Started], start_mpips: Callable[..., Started], forker: Forker
) -> Callable[..., Finished]:
    """Run `mpips ARGUMENTS` to its end, within `timeout` seconds.

    Without an `environ` it is a fork: loading mpips takes longer than most commands.
    """

    def run(*arguments: str | Path, timeout: float = 60.0, **how: Any) -> Finished:
        if "environ" in how:
            return start_mpips(*arguments, **how).finish(timeout)
        return start(arguments, forker=forker, **how).finish(timeout)

    return run


@pytest.fixture
def one_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the command line's parser built once: that takes longer than most commands on what they refuse."""
    monkeypatch.setattr(sys.modules[parser.__module__], "parser", cache(parser))


@pytest.fixture(scope="session")
def starter() -> Any:
    """Return the launcher of this interpreter's MPI."""
    from mpips.launch import mpi_launcher

    return mpi_launcher.find_starter()


@pytest.fixture
def start_ranks(start: Callable[..., Started], starter: Any) -> Callable[..., Started]:
    """Start `python ARGUMENTS` on so many ranks."""
    from mpips.launch import mpi_launcher

    def start_them(
        ranks: int, *arguments: str | Path, environ: Mapping[str, str] | None = None, **how: Any
    ) -> Started:
        planned = mpi_launcher.plan(starter, ranks, [sys.executable, *map(str, arguments)])
        return start(planned.line, environ={**planned.added, **(environ or {})}, **how)

    return start_them


@pytest.fixture
def run_ranks(start_ranks: Callable[..., Started]) -> Callable[..., Finished]:
    """Run `python ARGUMENTS` on so many ranks to its end, by the launcher of this interpreter's MPI."""
    return lambda ranks, *arguments, timeout=60.0, **how: start_ranks(ranks, *arguments, **how).finish(
        timeout
    )


@dataclass(frozen=True)
class TinyData:
    """A data set that trains in no time: svmlight, 240 and 60 examples, 40 features of which 5 matter."""

    train: Path
    test: Path
    train_rows: np.ndarray
    train_labels: np.ndarray
    test_rows: np.ndarray
    test_labels: np.ndarray


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> TinyData:
    """Return the tiny data set, as files and as dense arrays (column j is key j + 1)."""
    random = np.random.default_rng(7)
    rows = random.normal(size=(300, 40)).round(3) * (random.random((300, 40)) < 0.3)
    weights = np.zeros(40)
    weights[:5] = (3, -2, 2, -1, 1)
    labels = np.where(rows @ weights + 0.3 * random.normal(size=300) > 0, 1, -1)
    folder = tmp_path_factory.mktemp("tiny")
    for name, part in (("train", slice(0, 240)), ("test", slice(240, 300))):
        lines = [
            f"{label:+d} " + " ".join(f"{key + 1}:{row[key]:g}" for key in np.flatnonzero(row))
            for label, row in zip(labels[part], rows[part], strict=True)
        ]
        (folder / f"{name}.svm").write_text("\n".join(lines) + "\n")
    return TinyData(
        folder / "train.svm", folder / "test.svm", rows[:240], labels[:240], rows[240:], labels[240:]
    )
