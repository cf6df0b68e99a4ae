"""Stop requests: the signals by which people and batch systems ask a run to stop.

They are kept in order of arrival. A handler does little else, since it may interrupt anything, such as a write.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn, Self

from mpips.exit_codes import by_signal

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""Signals by which batch systems and the kernel say that a limit is near, perhaps again and again."""
STOP_SIGNALS = (*WARNINGS, signal.SIGTERM, signal.SIGINT)
"""Signals that ask a run to stop."""

received: list[int] = []
"""The stop signals that a rank has received since its start, in order of arrival."""


def receive() -> list[int]:
    """Append stop signals to `received` from now on, and return it: a rank that is loading handles them later."""
    for kind in STOP_SIGNALS:
        signal.signal(kind, lambda number, _: received.append(number))
    return received


class StopRequests:
    """The stop requests of a command that starts a run, SIGHUP included unless it is ignored, as under nohup.

    A context manager. Until `record_only` is called, a signal calls `end` with its number; from then on it is only
    appended to `received`.
    """

    def __init__(self, end: Callable[[int], None] = lambda number: leave(number)) -> None:
        self.received: list[int] = []
        self._end, self._records_only = end, False
        self._before: dict[int, signal._HANDLER] = {}

    def record_only(self) -> None:
        """Only record signals from now on; the caller forwards them."""
        self._records_only = True

    def __enter__(self) -> Self:
        """Install the handlers."""
        hup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
        for kind in (*STOP_SIGNALS, *hup):
            self._before[kind] = signal.signal(kind, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the previous handlers."""
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._records_only:
            self.received.append(number)
        else:
            self._end(number)


def leave(number: int) -> NoReturn:
    """End this process, which only prepares a run, with exit code 128 + the signal's number, like a shell.

    It uses os._exit: an exception from a signal handler might be swallowed, or leave data inconsistent.
    """
    name = signal.Signals(number).name
    with suppress(OSError):
        os.write(2, f"mpips: stopped by {name} before the run began: nothing was trained\n".encode())
    os._exit(by_signal(number))
