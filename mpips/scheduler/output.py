"""The output of a program, printed and in `metrics.jsonl`: each line once, even if several ranks run the program."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from mpips.files.safe_open import open_regular
from mpips.process.printable import brief, printable
from mpips.rundir.folder import JsonLinesWriter, RunFolder
from mpips.rundir.progress import Column, Table
from mpips.scheduler.journal import Journal

_LOG = logging.getLogger(__name__)


class _NewOutput:
    """The program's output, without what another rank has printed before."""

    def __init__(self, out: TextIO, journal: Journal) -> None:
        self._out, self._journal = out, journal

    def write(self, text: str) -> int:
        """Write, unless the journal is being replayed."""
        return len(text) if self._journal.replaying else self._out.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)


class Output:
    """The program's lines in the run's `metrics.jsonl`, and its text, on `out` or else standard output."""

    def __init__(self, folder: RunFolder, out: TextIO | None, journal: Journal) -> None:
        self._folder = folder
        self._out: Any = _NewOutput(sys.stdout if out is None else out, journal)
        self._lines = JsonLinesWriter(folder.metrics)
        base = journal.decide(self._count_lines)
        # The program's lines that a rank before this one has written.
        self._written = self._count_lines() - base
        self.events = 0
        """The number of the program's lines so far."""
        self._tables: list[Table] = []

    def _count_lines(self) -> int:
        """Count the lines of the program in `metrics.jsonl`, from any rank."""
        with open_regular(self._folder.metrics, follow=False) as lines:
            return sum(b'"noted": true' not in line for line in lines)

    def event(self, event: str, **facts: Any) -> None:
        """Append a line of the program to `metrics.jsonl`."""
        self.events += 1
        if self._written > 0:
            self._written -= 1
        else:
            self._append({"event": event, **facts})

    def note(self, event: str, **facts: Any) -> None:
        """Append a line that is not the program's, at any time."""
        self._append({"event": event, **facts, "noted": True})

    def _append(self, line: dict[str, Any]) -> None:
        self._lines.append(line)
        if self._lines.begun_again:
            self._lines.begun_again = False
            _LOG.warning("%s was removed during the run: its lines so far are lost", self._folder.metrics)

    def table(self, columns: Sequence[Column]) -> Table:
        """Return the table that shows the run's progress."""
        self._tables.append(Table(columns, self._out))
        return self._tables[-1]

    def continue_at(self, events: int) -> None:
        """Continue where a rank before this one had written so many lines of the program, and rows of its tables."""
        self._written -= events - self.events
        self.events = events
        for table in self._tables:
            table.continues = True

    def say(self, text: str) -> None:
        """Print a line to the user."""
        print(brief(printable(text)), file=self._out, flush=True)

    def close(self) -> None:
        """Close the file; idempotent."""
        self._lines.close()
