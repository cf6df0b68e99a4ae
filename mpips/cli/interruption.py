"""Signals that end a command: without a traceback, whenever they come; its temporary files are removed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mpips.exit_codes import by_signal

_DEFAULTS = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGHUP: signal.SIG_DFL,
}
"""The handlers that are replaced: under nohup, and in the background of a script, a signal stays ignored."""


@contextmanager
def silent() -> Iterator[None]:
    """Let Ctrl-C end this process at once, while modules are imported."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Another thread than the main one imports mpips; only that one gets signals.
    except ValueError:
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Interruption:
    """The signals that end a command: INT, TERM and HUP; a second one ends it at once.

    They raise KeyboardInterrupt `while_running`, and before and after that end the process. `code` is the exit code
    once there was one.
    """

    def __init__(self) -> None:
        self.code = 0
        self._raises = False
        for number, default in _DEFAULTS.items():
            if signal.getsignal(number) is default:
                signal.signal(number, self._on_signal)

    @contextmanager
    def while_running(self) -> Iterator[None]:
        """Raise KeyboardInterrupt for a signal, also in place of what a library has made of it."""
        self._raises = True
        try:
            yield
        finally:
            self._raises = False
            if self.code:
                raise KeyboardInterrupt

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.code = by_signal(number)
        if not self._raises:
            os._exit(self.code)
        signal.signal(number, signal.SIG_DFL)
        raise KeyboardInterrupt
