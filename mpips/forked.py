"""Forked children of a rank: they share its MPI connections, and must not use them.

A program that calls `os.fork` ends the child itself, with `os._exit` or `sys.exit`. A child that returns to mpips
instead would answer for the rank once more; one that pushes, pulls or waits would take the rank's messages. Signals end
a child: those that ask a rank to stop, too, by which `multiprocessing` ends its processes.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mpips.errors import UsageError
from mpips.exit_codes import ExitCode

parent = 0
"""The process of the rank whose program has forked this one; 0 in all other processes."""


class _Blocks(threading.local):
    """The number of blocks of program's code that this thread is in."""

    number = 0


_blocks = _Blocks()


def _after_fork() -> None:
    global parent
    if _blocks.number:
        parent = os.getppid()
        for kind in signal.valid_signals():
            if (getattr(signal.getsignal(kind), "__module__", None) or "").startswith("mpips."):
                own = signal.default_int_handler if kind == signal.SIGINT else signal.SIG_DFL
                signal.signal(kind, own)


os.register_at_fork(after_in_child=_after_fork)


def check_not_forked() -> None:
    """Raise UsageError in a process that a program has forked.

    >>> check_not_forked()
    """
    if parent:
        raise UsageError(
            f"a forked child of process {parent} shares the rank's MPI connections, and cannot use mpips: push, pull "
            "and wait in the rank itself"
        )


@contextmanager
def program_code(what: str) -> Iterator[None]:
    """Run code of a program, named `what` in errors; a forked child that leaves the block ends there.

    A child that raises SystemExit ends with its code, as Python does; any other one with exit code 1 and a line on
    stderr.

    >>> import os
    >>> def fork_and_return():
    ...     with program_code("Worker.train"):
    ...         return os.fork()
    >>> os.waitstatus_to_exitcode(os.waitpid(fork_and_return(), 0)[1])
    1
    """
    rank = os.getpid()
    _blocks.number += 1
    try:
        yield
    except SystemExit as asked:
        if os.getpid() != rank:
            _end(asked.code if isinstance(asked.code, int) else int(asked.code is not None))
        raise
    except BaseException:
        if os.getpid() != rank:
            _tell(traceback.format_exc())
        raise
    finally:
        _blocks.number -= 1
        if os.getpid() != rank:
            _tell(
                f"mpips: error: a forked child of process {rank} left {what}: it shares the rank's MPI connections;"
                " end it with os._exit(code) in the program\n"
            )
            _end(ExitCode.FAILED)


def _tell(text: str) -> None:
    with suppress(OSError, ValueError):
        sys.stderr.write(text)


def _end(code: int) -> None:
    """End this child without the exit handlers of its parent."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
