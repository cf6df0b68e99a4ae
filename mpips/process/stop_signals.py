"""Wishes to stop: the signals by which people and batch systems ask for it.

They are kept in the order in which they came, and little else is done in a handler: it may come in the midst of
anything, such as a line that is being written.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn, Self

from mpips.exit_codes import by_signal

ASKS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
"""Signals that ask a run to stop."""


class Wishes:
    """The wishes of a command that starts a run: HUP is one, too, unless it is ignored, as it is under nohup.

    Use it with `with`. Until `keep` is called, a wish calls `end` with the signal's number; from then on it is only
    noted in `kinds`.
    """

    def __init__(self, end: Callable[[int], None] = lambda number: leave(number)) -> None:
        self.kinds: list[int] = []
        self._end, self._keeps = end, False
        self._before: dict[int, signal._HANDLER] = {}

    def keep(self) -> None:
        """Note wishes from now on, for who passes them on."""
        self._keeps = True

    def __enter__(self) -> Self:
        """Begin to hear."""
        hup = [] if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else [signal.SIGHUP]
        for kind in (*ASKS, *hup):
            self._before[kind] = signal.signal(kind, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        """Hear no more."""
        for kind, handler in self._before.items():
            signal.signal(kind, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._keeps:
            self.kinds.append(number)
        else:
            self._end(number)


def leave(number: int) -> NoReturn:
    """End this process, which only prepares a run, with 128 and a signal's number, as a shell has it.

    At once: an exception that came up in the midst of anything might be lost there, or break it.
    """
    name = signal.Signals(number).name
    with suppress(OSError):
        os.write(2, f"mpips: stopped by {name} before the run began: nothing was trained\n".encode())
    os._exit(by_signal(number))
