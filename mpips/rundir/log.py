"""A rank's log: a line of JSON per event, in the run folder's `logs/rank-NNNN.jsonl`.

It is a handler of Python's `logging`, so messages of programs (`logging.getLogger(__name__).warning(...)`) and Python's
warnings are in it beside mpips' own events, and also go to stderr. The message path logs nothing.

    {"wall": 1.7e9, "rank": 3, "level": "info", "event": "start", "role": "server 1", "host": "n2", "pid": 4711, ...}
    start    role and place of the rank                     view     the view has changed
    role     the rank takes another role                    asked    a signal has asked the run to stop
    lost     another rank is lost                           failed   an error ends the rank, with the traceback
    end      the rank exits, with an exit code              fenced   the rank was excluded, and exits
    struck   an injected fault                              log      a message of a program or a library
    flooded  other datagrams prevent the detection of hangs     propose  a view is proposed to a majority
    frozen   the rank may be cut off from the others, and waits  thawed   it no longer is
    unreached   the rank ends before an injected fault was due
    not_shared  a decompressed file cannot be shared by the ranks of a host: each decompresses it
    detached    the rank is independent of its launcher          orphaned  its launch daemon has ended, and it continues

Each line is in the file when the call returns. To avoid a thousand files of a thousand healthy ranks on a shared file
system, only runs of up to `FEW` ranks create all files at the start; in larger runs, a rank creates its file at its
first warning or error, and then writes the lines before, too. A log that cannot be written does not end the run.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from pathlib import Path
from typing import Any

from mpips.errors import ClosedError
from mpips.process.printable import printable
from mpips.rundir.folder import JsonLinesWriter

FEW = 64
"""The largest number of ranks whose files are created at the start."""
KEPT = 200
"""Lines that are buffered while there is no file."""

_EVENTS = logging.getLogger("mpips")
# A process without a log, such as a command on a login node, drops events.
_EVENTS.addHandler(logging.NullHandler())


def note(event: str, level: int = logging.INFO, **facts: Any) -> None:
    """Log an event of mpips' own; `facts` are JSON-able."""
    _EVENTS.log(level, event, extra={"facts": facts})


class RankLog(logging.Handler):
    """The log of this process; see the module. It buffers lines until `place` names its file."""

    def __init__(self, rank: int) -> None:
        super().__init__(logging.INFO)
        self.rank = rank
        self._kept: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._path: Path | None = None
        self._lines: JsonLinesWriter | None = None
        self._lazy, self._broken = True, False

    def place(self, path: Path, ranks: int) -> None:
        """Set the file, and the number of ranks of the run."""
        self._path, self._lazy = path, ranks > FEW
        if not self._lazy or any(line["level"] not in ("debug", "info") for line in self._kept):
            self._write()

    def emit(self, record: logging.LogRecord) -> None:
        """Buffer or write one record; errors are ignored."""
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
                self._lines = JsonLinesWriter(self._path)
            while self._kept:
                # Removed first, since a signal handler may log during the write.
                line = self._kept.popleft()
                self._lines.append(line)
        except (OSError, ClosedError, TypeError, ValueError):
            self._broken = True

    def close(self) -> None:
        """Close the file."""
        if self._lines is not None:
            self._lines.close()
        super().close()


class _Shown(logging.Formatter):
    """Formats a record for a terminal, with control characters escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def begin(rank: int) -> RankLog:
    """Start this process's log."""
    handler, shown = RankLog(rank), logging.StreamHandler(sys.stderr)
    shown.setLevel(logging.WARNING)
    shown.setFormatter(_Shown())
    # mpips prints its own events itself
    shown.addFilter(lambda record: not hasattr(record, "facts"))
    root = logging.getLogger()
    for each in (handler, *([] if root.handlers else [shown])):
        root.addHandler(each)
    _EVENTS.setLevel(logging.INFO)
    logging.captureWarnings(True)
    return handler
