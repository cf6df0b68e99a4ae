"""Runs another program for its answer: within a time limit, and with a bounded output.

`subprocess.run` waits without end for a child's child that holds a pipe, and keeps output of any length.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

MOST = 1 << 22
"""Bytes of stdout, and of stderr, that are kept; a program that writes more is ended."""
_AFTER_END = 0.5
"""Seconds to wait for more output of a program that has ended: its children may hold the pipes."""
_AFTER_TERM = 5.0
"""Seconds that a program has to end after SIGTERM: srun then ends its step, and mpirun its ranks."""


class Answer(NamedTuple):
    """What a program wrote, as text, and its exit code; None if it did not end in time, or wrote too much."""

    code: int | None
    output: str
    complaint: str


def ask(
    line: Sequence[str | os.PathLike[str]],
    patience: float,
    *,
    environ: Mapping[str, str] | None = None,
    cwd: str | None = None,
    given: str = "",
) -> Answer:
    """Run a program, and return its answer.

    Args:
        line: its command line.
        patience: seconds until it is ended, with all processes of its process group.
        environ: its environment; default: this process's.
        cwd: its working folder; default: this process's.
        given: its stdin.

    Raises:
        OSError: it cannot be started.
    """
    with tempfile.TemporaryFile() if given else open(os.devnull, "w+b") as stdin:
        stdin.write(given.encode(errors="surrogateescape"))
        stdin.seek(0)
        process = subprocess.Popen(
            line, env=environ, cwd=cwd, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            process_group=0,
        )  # fmt: skip
    with process:
        kept = (bytearray(), bytearray())
        ended = False
        try:
            ended = _read(process, kept, time.monotonic() + patience)
            if not ended:
                process.terminate()
                _read(process, kept, time.monotonic() + _AFTER_TERM)
        finally:
            if not ended:
                with suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
    output, complaint = (bytes(each[:MOST]).decode(errors="replace") for each in kept)
    return Answer(process.returncode if ended else None, output, complaint)


def _read(process: subprocess.Popen[bytes], kept: tuple[bytearray, bytearray], deadline: float) -> bool:
    """Read a program's output until its end; return whether it has ended before the deadline."""
    with selectors.DefaultSelector() as pipes:
        for pipe, sink in zip((process.stdout, process.stderr), kept, strict=True):
            assert pipe is not None
            pipes.register(pipe, selectors.EVENT_READ, sink)
        last = deadline
        while pipes.get_map() and time.monotonic() < last:
            for key, _ in pipes.select(0.05):
                data = os.read(key.fd, 1 << 16)
                key.data.extend(data)
                if not data:
                    pipes.unregister(key.fileobj)
                elif len(key.data) > MOST:
                    return False
            if last == deadline and process.poll() is not None:
                last = min(deadline, time.monotonic() + _AFTER_END)
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return False
    return True
