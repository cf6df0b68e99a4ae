"""A command that a signal ends: its temporary files are removed, and its exit code is 128 + the signal's number."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SLOW = """
import importlib, sys, time
from mpips.cli.models import convert
from mpips.files.safe_open import replacing
def slow(arguments):
    with replacing("out.svm") as file:
        file.write(b"+1 1:1")
        print("up", flush=True)
        time.sleep(60)
convert.command = slow
sys.argv = ["mpips", "convert", "a.svm", "out.svm"]
sys.exit(importlib.import_module("mpips.cli.main").main())
"""


def python(code: str, action: str = "SIG_DFL") -> list[str]:
    """Return a command that runs code, with an action for the signals of a terminal that this process may ignore."""
    # A shell sets none that was ignored when it began.
    first = f"for each in (signal.SIGHUP, signal.SIGINT): signal.signal(each, signal.{action})"
    become = f"import os, signal, sys\n{first}\nos.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    return [sys.executable, "-I", "-S", "-c", become, "-P", "-c", code]


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda kind: kind.name)
def test_temporary_files_are_removed_when_a_signal_ends_a_command(
    tmp_path: Path, kind: signal.Signals
) -> None:
    root = str(Path(__file__).parents[2])
    run = subprocess.Popen(
        python(SLOW), cwd=tmp_path, env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert run.stdout is not None
    assert run.stdout.readline() == "up\n"
    assert len(os.listdir(tmp_path)) == 1
    run.send_signal(kind)
    _, said = run.communicate(timeout=30)
    assert (run.returncode, said) == (128 + kind, "")
    assert os.listdir(tmp_path) == []


EARLY = """
import os, signal, sys
class Early:
    def find_spec(self, name, path=None, target=None):
        if name == {at!r}:
            os.kill(os.getpid(), {kind})
sys.meta_path.insert(0, Early())
from mpips.cli import main
sys.argv = ["mpips", "query", "no-run", "key"]
sys.exit(main())
"""
LATE = """
import os, sys
from mpips.cli.models import convert
from mpips.errors import DataError
class Late:
    def __del__(self):
        raise ValueError("late")
def interrupted(arguments):
    try:
        os.kill(os.getpid(), {kind})
        while True:
            pass
    except KeyboardInterrupt:
        global late
        late = Late()
        raise {error} from None
convert.command = interrupted
from mpips.cli import main
sys.argv = ["mpips", "convert", "a.svm", "b.svm"]
sys.exit(main())
"""


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda kind: kind.name)
@pytest.mark.parametrize(
    "code",
    [
        # While the command line is loaded, while it reads the arguments, while a command loads what it needs.
        EARLY.format(at="mpips.cli.bench", kind="{kind}"),
        EARLY.format(at="gettext", kind="{kind}"),
        EARLY.format(at="mpips.rundir.order_files", kind="{kind}"),
        # A library may raise another error for it, and objects may be left in a state that they cannot be deleted in.
        LATE.format(error="DataError('a file is damaged')", kind="{kind}"),
        LATE.format(error="ImportError('PyCapsule')", kind="{kind}"),
    ],
)
def test_a_signal_ends_a_command_without_a_word_whenever_it_comes(
    tmp_path: Path, code: str, kind: signal.Signals
) -> None:
    done = subprocess.run(
        python(code.format(kind=int(kind))), cwd=tmp_path, timeout=30, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode in (128 + kind, -kind) and (done.stdout, done.stderr) == ("", "")


def test_a_command_that_ignores_a_signal_goes_on_ignoring_it(tmp_path: Path) -> None:
    """As under nohup, and in the background of a script."""
    done = subprocess.run(
        python(EARLY.format(at="mpips.rundir.order_files", kind=int(signal.SIGINT)), "SIG_IGN"),
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, capture_output=True, text=True,
        cwd=tmp_path, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        2,
        "mpips: error: no-run: no such run or model\n",
    )
