"""A process that shows that its node lives, until the run has begun: srun notices the loss of a node late.

Until then all ranks wait in MPI_Init for those of the lost node, for two minutes. So the first rank of each node starts
a process that renews a file in the run's folder, and `mpips run` looks whether one of them is no longer renewed
(`mpips.launch.detached_run`). The process ends with its rank, or once the rank is independent of its launcher.
"""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mpips.process.supervisor import option

FILE = ".starting-{}-{}"
"""The name of the file, with the claim of `mpips run`, and the node."""
PERIOD = 1.0
"""Seconds between two renewals."""
_NONE = -1
_to_process = _NONE
"""In the rank: the pipe by which the process ends."""


def begin(argv: Sequence[str]) -> None:
    """Start the process, if this is the first rank of its node; `argv` is the rank's command line."""
    global _to_process
    folder, claim = option(argv, "--run-dir"), option(argv, "--claim")
    if not (folder and claim) or os.environ.get("SLURM_LOCALID") != "0":
        return
    ends, _to_process = os.pipe()
    try:
        child = os.fork()
    except OSError:
        # The system allows no more processes: the loss of the node is noticed late, by srun.
        os.close(ends)
        end()
        return
    if child:
        os.close(ends)
        os.waitpid(child, 0)
        return
    try:
        # Not a child of the rank, whose program may wait for children of its own.
        if not os.fork():
            os.close(_to_process)
            _renew(Path(folder, FILE.format(claim, os.uname().nodename)), ends)
    finally:
        os._exit(0)


def end() -> None:
    """End the process: the run has begun."""
    global _to_process
    if _to_process != _NONE:
        # Children that the program has forked may hold the pipe open.
        with suppress(OSError):
            os.write(_to_process, b"begun")
        os.close(_to_process)
        _to_process = _NONE


def _renew(path: Path, ends: int) -> None:
    """Renew the file until the pipe ends, then remove it."""
    # srun waits for the end of the rank's output.
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    poll, count = select.poll(), 0
    poll.register(ends, select.POLLIN)
    while not count or not poll.poll(1e3 * PERIOD):
        count += 1
        with suppress(OSError):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
            os.write(file, str(count).encode())
            os.close(file)
    with suppress(OSError):
        path.unlink()
