"""Wishes to stop: the signals by which people and batch systems ask for it.

They are kept in the order in which they came, and nothing else is done in a handler: it may come in the midst of
anything, such as a line that is being written.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Self

ASKS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
"""Signals that ask a run to stop."""


class Interrupted(BaseException):
    """A wish to stop that came before there was a run; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def code(self) -> int:
        """The exit code of a command that it ends: 128 and the signal's number, as a shell has it."""
        return 128 + self.number


class Wishes:
    """The wishes of a command that starts a run: HUP is one, too, unless it is ignored, as it is under nohup.

    Use it with `with`. Until `keep` is called, a wish ends what is going on by `Interrupted`; from then on it is only
    noted in `kinds`.
    """

    def __init__(self) -> None:
        self.kinds: list[int] = []
        self._keeps = False
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
        if not self._keeps:
            raise Interrupted(number)
        self.kinds.append(number)
