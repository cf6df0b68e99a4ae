"""The standard streams of mpips' processes: always open, able to write any text; a failed write does not end a run.

A process may be started with stdin, stdout or stderr closed. The next files that it opens would then get their
descriptors, and messages would be written into them; so the null device is opened in their place first. Characters
that a stream's encoding lacks are escaped; names of files that are not UTF-8 keep their bytes.

The first failed write (the disk is full, or the reader has exited) is kept in `problem`; further output goes to the
null device. A rank continues. A command ends if the failed stream is its output.
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
    """A stream that discards what cannot be written, and keeps the first error in `problem`.

    Args:
        replaced: the stream that it replaces; None if there was none.
        descriptor: the file descriptor.
        escape: escape control characters, except in `Control`.
        raises: raise the first error.
    """

    def __init__(self, replaced: IO[str] | None, descriptor: int, *, escape: bool, raises: bool) -> None:
        if isinstance(replaced, io.TextIOWrapper):
            buffered, through = replaced.line_buffering, replaced.write_through
            super().__init__(
                replaced.buffer, replaced.encoding, _ERRORS, line_buffering=buffered, write_through=through
            )
        else:
            super().__init__(os.fdopen(descriptor, "wb"), "utf-8", _ERRORS, line_buffering=True)
        self.escape, self.raises = escape, raises
        self.problem: OSError | None = None

    def write(self, text: str, /) -> int:
        """Write a text."""
        if self.escape and not isinstance(text, Control):
            text = printable(text)
        try:
            return super().write(text)
        except OSError as error:
            self._discard_output(error)
        return len(text)

    def flush(self) -> None:
        """Write buffered text."""
        try:
            super().flush()
        except OSError as error:
            self._discard_output(error)

    def _discard_output(self, error: OSError) -> None:
        first, self.problem = self.problem is None, self.problem or error
        null = os.open(os.devnull, os.O_WRONLY)
        # Otherwise the buffered rest would fail again at exit.
        os.dup2(null, self.fileno())
        os.close(null)
        if first and self.raises:
            raise error


def prepare(*, escape: bool = False, raises: bool = False) -> None:
    """Replace this process's standard streams; see the module.

    Args:
        escape: escape control characters on stdout and stderr.
        raises: a write to stdout that fails raises OSError.
    """
    for descriptor in range(3):
        _open(descriptor)
    if isinstance(sys.stdin, io.TextIOWrapper):
        # Not the locale's encoding: a key would be another key.
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    else:
        sys.stdin = os.fdopen(0, encoding="utf-8")
    sys.stdout = Stream(sys.stdout, 1, escape=escape, raises=raises)
    sys.stderr = Stream(sys.stderr, 2, escape=escape, raises=False)


def pass_data_unescaped() -> None:
    """Do not escape what is written to stdout unless it is a terminal: the output is for programs."""
    if isinstance(sys.stdout, Stream):
        sys.stdout.escape = sys.stdout.isatty()


def flushed_exit_code(code: int) -> int:
    """Flush stdout; return the exit code: `code`, unless some output could not be written."""
    out = sys.stdout
    if not isinstance(out, Stream):
        return code
    out.raises = False
    out.flush()
    if out.problem is None:
        return code
    if out.problem.errno == errno.EPIPE:
        return ExitCode.READER_GONE
    print(f"mpips: error: stdout: cannot be written: {out.problem.strerror}", file=sys.stderr)
    return ExitCode.UNWRITABLE


def output_failed() -> bool:
    """Return whether some output could not be written to stdout."""
    return isinstance(sys.stdout, Stream) and sys.stdout.problem is not None


def _open(descriptor: int) -> None:
    """Open the null device at a descriptor that is closed, also for child processes."""
    try:
        os.fstat(descriptor)
    except OSError:
        # The system returns the lowest free descriptor.
        null = os.open(os.devnull, os.O_RDWR)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)
        os.set_inheritable(descriptor, True)


def _encode_missing(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode characters that an encoding lacks: bytes of file names unchanged, all others as escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    found = error.object[error.start : error.end]
    return b"".join(
        bytes([ord(each) & 0xFF])
        if "\udc80" <= each <= "\udcff"
        else each.encode("ascii", "backslashreplace")
        for each in found
    ), error.end


codecs.register_error(_ERRORS, _encode_missing)
