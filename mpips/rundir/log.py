"""A rank's log: a line of JSON for each thing of note, in the run folder's `logs/rank-NNNN.jsonl`.

Python's own `logging` carries it, so what a program logs (`logging.getLogger(__name__).warning(...)`) and what Python
warns of stands there beside mpips' own events, and goes to stderr as ever. Nothing on the way of messages logs.

    {"wall": 1.7e9, "rank": 3, "level": "info", "event": "start", "role": "server 1", "host": "n2", "pid": 4711, ...}
    start    what the rank is, and where                    view     who is there has changed
    role     it takes another role                          asked    a signal has asked it to stop
    lost     it has noticed that another rank is gone       failed   an error ended it, with the traceback
    end      it leaves, with an exit code                   fenced   it was taken for dead, and leaves
    struck   an injected fault                              log      what a program or a library has said
    flooded  strangers' datagrams keep hangs from being found

Each line is in the file when the call returns. A thousand ranks of a healthy run need not make a thousand files on a
shared file system: up to `FEW` ranks each has its file from the start on, of more only those to whom something happens
(a warning or worse), and then what came before is written too. A log that cannot be written ends no run.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from pathlib import Path
from typing import Any

from mpips.errors import ClosedError
from mpips.process.printable import printable
from mpips.rundir.folder import Lines

FEW = 64
"""Ranks of a run of which each has a file from the start on."""
KEPT = 200
"""Lines that are kept while there is no file."""

_EVENTS = logging.getLogger("mpips")
_EVENTS.addHandler(logging.NullHandler())  # who has no log, such as a command on a login node, is not told


def note(event: str, level: int = logging.INFO, **facts: Any) -> None:
    """Log an event of mpips' own; `facts` are JSON-able."""
    _EVENTS.log(level, event, extra={"facts": facts})


class RankLog(logging.Handler):
    """The log of this process; see the module. Keeps lines until it is told where its file is to be."""

    def __init__(self, rank: int) -> None:
        super().__init__(logging.INFO)
        self.rank = rank
        self._kept: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._path: Path | None = None
        self._lines: Lines | None = None
        self._lazy, self._broken = True, False

    def place(self, path: Path, ranks: int) -> None:
        """Say where the file is to be, and how many ranks the run has."""
        self._path, self._lazy = path, ranks > FEW
        if not self._lazy or any(line["level"] not in ("debug", "info") for line in self._kept):
            self._write()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep or write one record; one that cannot be written down ends nothing."""
        try:
            self._take(record)
        except Exception:
            self.handleError(record)

    def _take(self, record: logging.LogRecord) -> None:
        own = hasattr(record, "facts")
        line = {
            "wall": record.created,
            "rank": self.rank,
            "level": record.levelname.lower(),
            "event": record.getMessage() if own else "log",
            **(record.__dict__["facts"] if own else {"logger": record.name, "text": record.getMessage()}),
        }
        if record.exc_info:
            line["trace"] = logging.Formatter().formatException(record.exc_info)
        self._kept.append(line)
        if self._lines is not None or not self._lazy or record.levelno >= logging.WARNING:
            self._write()

    def _write(self) -> None:
        if self._path is None or self._broken:
            return
        try:
            if self._lines is None:
                self._lines = Lines(self._path)
            while self._kept:
                line = self._kept.popleft()  # first: a signal's handler may log in the midst of this
                self._lines.append(line)
        except (OSError, ClosedError, TypeError, ValueError):
            self._broken = True

    def close(self) -> None:
        """Close the file."""
        if self._lines is not None:
            self._lines.close()
        super().close()


class _Shown(logging.Formatter):
    """Writes a record for a terminal: what was logged may quote anything."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def begin(rank: int) -> RankLog:
    """Let this process's log begin."""
    handler, shown = RankLog(rank), logging.StreamHandler(sys.stderr)
    shown.setLevel(logging.WARNING)
    shown.setFormatter(_Shown())
    shown.addFilter(lambda record: not hasattr(record, "facts"))  # of these mpips speaks itself
    root = logging.getLogger()
    for each in (handler, *([] if root.handlers else [shown])):
        root.addHandler(each)
    _EVENTS.setLevel(logging.INFO)
    logging.captureWarnings(True)
    return handler
