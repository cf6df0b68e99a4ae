"""Commands of mpips as forks of a process that has loaded it, since loading takes longer than most commands.

This file is that process, too. It takes a command in each line of its stdin, and answers by two lines: the command's
process number when it has begun, and its exit code when it has ended.
"""

from __future__ import annotations

import gc
import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any


class Fork:
    """A command; the part of `subprocess.Popen` that tests need."""

    def __init__(self, answers: Any) -> None:
        self._answers = answers
        self.pid = int(answers.readline())
        self.code: int | None = None

    def poll(self) -> int | None:
        """Return its exit code, None as long as it runs."""
        if self.code is None and select.select([self._answers], [], [], 0)[0]:
            self.wait()
        return self.code

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its exit code."""
        if self.code is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            self.code = int(self._answers.readline())
        return self.code


class Forker:
    """The process that has loaded mpips; it starts one command at a time."""

    def __init__(self, python: Sequence[str], root: Path) -> None:
        path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            [*python, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
            env={**os.environ, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1"},
        )  # fmt: skip

    def begin(
        self, arguments: Sequence[str], cwd: Path, environ: Mapping[str, str], out: Path, err: Path
    ) -> Fork:
        """Begin `mpips ARGUMENTS`."""
        assert self.process.stdin is not None
        command = [list(arguments), str(cwd), dict(environ), str(out), str(err)]
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        return Fork(self.process.stdout)

    def close(self) -> None:
        """End it."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait(10)


def become(arguments: list[str], cwd: str, environ: dict[str, str], out: str, err: str) -> None:
    """Turn this process into one that was started for a command."""
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environ)
    for number, path in enumerate((os.devnull, out, err)):
        opened = os.open(path, os.O_RDWR)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = [str(Path(cli.__file__).with_name("__main__.py")), *arguments]


def serve() -> None:
    """Fork for each command; returns in the forks."""
    with os.fdopen(os.dup(0), "rb") as commands:
        for line in commands:
            pid = os.fork()
            if pid == 0:
                become(*json.loads(line))
                return
            os.write(1, b"%d\n" % pid)
            _, status = os.waitpid(pid, 0)
            os.write(1, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


if __name__ == "__main__":
    from mpips import cli
    from mpips.cli.main import main
    from mpips.process.dependent import clear_session

    # What most commands load.
    for module in ("checkpoint.loading", "data.convert", "launch.mpi_launcher", "config.program"):
        import_module(f"mpips.{module}")
    gc.freeze()  # or each fork looks through all of it as it ends, and so copies it
    serve()
    clear_session(os.getpid())
    sys.exit(main())
