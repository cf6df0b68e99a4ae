"""Runs another program and captures its output, within a time limit and with a bounded size.

`subprocess.run` waits without limit for a grandchild that holds a pipe, and keeps output of any length.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from mpips.process import dependent

LARGEST_OUTPUT = 1 << 22
"""Bytes of stdout, and of stderr, that are kept; a program that writes more is ended."""
_AFTER_END = 0.5
"""Seconds to wait for more output of a program that has ended: its children may hold the pipes."""
AFTER_TERM = (5.0,)
"""Seconds that a program has to end after SIGTERM: srun then ends its step, and mpirun its ranks."""


class Output(NamedTuple):
    """What a program wrote, as text, and its exit code; None if it did not end in time, or wrote too much."""

    code: int | None
    stdout: str
    stderr: str


def run(
    command: Sequence[str | os.PathLike[str]],
    timeout: float,
    *,
    environ: Mapping[str, str] | None = None,
    cwd: str | None = None,
    stdin_text: str = "",
    launcher: bool = False,
    at_deadline: Callable[[], object] | None = None,
    after_term: Sequence[float] = AFTER_TERM,
) -> Output:
    """Run a program; return its output and exit code.

    Args:
        command: its command line.
        timeout: seconds until it is ended, with all processes of its process group.
        environ: its environment; default: this process's.
        cwd: its working folder; default: this process's.
        stdin_text: its stdin.
        launcher: it is a launcher of ranks: it ends with this process, and the folder that Open MPI leaves when its
            launcher is killed is removed.
        at_deadline: is called when it has not ended in time, before it is ended.
        after_term: seconds that it has to end after each of so many SIGTERMs, before it is killed; also when an
            exception, such as KeyboardInterrupt, ends this call.

    Raises:
        OSError: it cannot be started.
    """
    with tempfile.TemporaryFile() if stdin_text else open(os.devnull, "w+b") as stdin:
        stdin.write(stdin_text.encode(errors="surrogateescape"))
        stdin.seek(0)
        process = subprocess.Popen(
            dependent.line(command) if launcher else command, env=environ, cwd=cwd, stdin=stdin,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0,
        )  # fmt: skip
    with process:
        captured = (bytearray(), bytearray())
        ended = False
        try:
            ended = _read(process, captured, time.monotonic() + timeout)
            if not ended:
                if at_deadline is not None:
                    at_deadline()
                _ask_to_end(process, captured, after_term)
        except BaseException:
            # This process is to end: a launcher that is killed leaves its ranks.
            _ask_to_end(process, captured, after_term)
            raise
        finally:
            if not ended:
                with suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
            if launcher:
                process.wait()
                dependent.clear_session(process.pid)
    stdout, stderr = (bytes(each[:LARGEST_OUTPUT]).decode(errors="replace") for each in captured)
    return Output(process.returncode if ended else None, stdout, stderr)


def _ask_to_end(
    process: subprocess.Popen[bytes], captured: tuple[bytearray, bytearray], after_term: Sequence[float]
) -> None:
    for seconds in after_term:
        process.terminate()
        if _read(process, captured, time.monotonic() + seconds):
            return


def _read(process: subprocess.Popen[bytes], captured: tuple[bytearray, bytearray], deadline: float) -> bool:
    """Read a program's output until its end; return whether it has ended before the deadline."""
    with selectors.DefaultSelector() as pipes:
        for pipe, buffer in zip((process.stdout, process.stderr), captured, strict=True):
            assert pipe is not None
            pipes.register(pipe, selectors.EVENT_READ, buffer)
        limit = deadline
        while pipes.get_map() and time.monotonic() < limit:
            for key, _ in pipes.select(0.05):
                data = os.read(key.fd, 1 << 16)
                key.data.extend(data)
                if not data:
                    pipes.unregister(key.fileobj)
                elif len(key.data) > LARGEST_OUTPUT:
                    return False
            if limit == deadline and process.poll() is not None:
                limit = min(deadline, time.monotonic() + _AFTER_END)
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True
