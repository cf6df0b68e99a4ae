"""The standard streams of a process of ours: always there, fit for any text, and never the end of a run.

A process may be started with stdin, stdout or stderr closed. The next files that are opened would then get their
numbers, and what is meant for people would be written into them: the null device takes their place first. Characters
that a stream's encoding does not have are shown as escapes; names of files that are not UTF-8 keep their bytes.

What cannot be written, since the disk is full or the reader has gone, is remembered in `problem`, and all that follows
goes to the null device. A rank goes on then. A command whose output that was ends.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
from typing import IO

from mpips.exit_codes import ExitCode
from mpips.process.printable import Control, printable

_ERRORS = "mpips"


class Stream(io.TextIOWrapper):
    """A stream that loses what cannot be written, and says so in `problem`.

    Args:
        before: the stream whose place it takes; None if there was none.
        number: its descriptor.
        clean: show control characters as escapes, but those of `Control`.
        ends: raise what is lost, once.
    """

    def __init__(self, before: IO[str] | None, number: int, *, clean: bool, ends: bool) -> None:
        if isinstance(before, io.TextIOWrapper):
            buffered, through = before.line_buffering, before.write_through
            super().__init__(
                before.buffer, before.encoding, _ERRORS, line_buffering=buffered, write_through=through
            )
        else:
            super().__init__(os.fdopen(number, "wb"), "utf-8", _ERRORS, line_buffering=True)
        self.clean, self.ends = clean, ends
        self.problem: OSError | None = None

    def write(self, text: str, /) -> int:
        """Write a text."""
        if self.clean and not isinstance(text, Control):
            text = printable(text)
        try:
            return super().write(text)
        except OSError as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Write out what is held."""
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        first, self.problem = self.problem is None, self.problem or error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())  # else what is still held fails again at exit
        os.close(null)
        if first and self.ends:
            raise error


def prepare(*, clean: bool = False, ends: bool = False) -> None:
    """Make this process's standard streams fit; see the module.

    Args:
        clean: show control characters as escapes on stdout and stderr.
        ends: a write to stdout that fails raises OSError.
    """
    for number in range(3):
        _open(number)
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    else:
        sys.stdin = os.fdopen(0, encoding="utf-8")
    sys.stdout = Stream(sys.stdout, 1, clean=clean, ends=ends)
    sys.stderr = Stream(sys.stderr, 2, clean=clean, ends=False)


def as_data() -> None:
    """Leave what is written to stdout as it is, unless that is a terminal: it is for programs to read."""
    if isinstance(sys.stdout, Stream):
        sys.stdout.clean = sys.stdout.isatty()


def settled(code: int) -> int:
    """Write out what is held on stdout; give the exit code: `code`, unless some of it could not be written."""
    out = sys.stdout
    if not isinstance(out, Stream):
        return code
    out.ends = False
    out.flush()
    if out.problem is None:
        return code
    if out.problem.errno == errno.EPIPE:
        return ExitCode.READER_GONE
    print(f"mpips: error: stdout: cannot be written: {out.problem.strerror}", file=sys.stderr)
    return ExitCode.UNWRITABLE


def lost() -> bool:
    """Tell whether something could not be written to stdout."""
    return isinstance(sys.stdout, Stream) and sys.stdout.problem is not None


def _open(number: int) -> None:
    """Let a descriptor that is closed be the null device, for processes started by this one too."""
    try:
        os.fstat(number)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        if null != number:
            os.dup2(null, number)
            os.close(null)
        os.set_inheritable(number, True)


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode what an encoding does not have: bytes of a file's name as they are, all else as escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    return b"".join(
        bytes([ord(each) & 0xFF])
        if "\udc80" <= each <= "\udcff"
        else each.encode("ascii", "backslashreplace")
        for each in found
    ), error.end


codecs.register_error(_ERRORS, _escaped)
