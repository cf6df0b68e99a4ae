"""Files of JSON lines: metrics, logs, events. Each line is an object and is appended as a whole.

A full disk, or the crash of a node, leaves an incomplete last line. The next append would continue that line and
corrupt both. So an incomplete last line is removed when a file is opened to append, and readers skip and count lines
that are not objects.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from mpips.errors import ClosedError
from mpips.files.json_schema import parse_json
from mpips.files.json_values import Nulls, json_data
from mpips.files.safe_open import LARGEST_TEXT, open_own, read_bytes

_READ_BYTES = 1 << 16


class JsonLines(NamedTuple):
    """The objects of a file, and the number of other lines."""

    objects: list[dict[str, Any]]
    bad: int


def ignored_lines_warning(path: Path, bad: int) -> str:
    """Return a warning about skipped lines; "" if there are none."""
    if not bad:
        return ""
    what = "line that is not a JSON object" if bad == 1 else "lines that are not JSON objects"
    return f"warning: {path}: ignored {bad} {what}"


def read_lines(path: Path, most: int = LARGEST_TEXT) -> JsonLines:
    """Read a file of JSON lines; empty if there is none.

    Raises:
        OSError: it cannot be read, is not a regular file, or holds more than `most` bytes; see `mpips.files.safe_open`.
    """
    try:
        raw = read_bytes(path, follow=False, most=most)
    except FileNotFoundError:
        return JsonLines([], 0)
    objects, bad = [], 0
    for line in raw.split(b"\n"):
        if line.strip():
            value = None
            with suppress(ValueError):
                value = parse_json(line)
            if isinstance(value, dict):
                objects.append(value)
            else:
                bad += 1
    return JsonLines(objects, bad)


class JsonLinesWriter:
    """A file of JSON lines to append to: when `append` returns, the line is completely written.

    If the file is removed, the next line begins a new one, in a new folder if necessary.

    A context manager; `close` is idempotent.

    Raises:
        OSError: the file cannot be written, or is not a regular file; names it. A symbolic link is not followed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begun_again = False
        """Whether the file was removed since this was last set to False, so that the earlier lines are lost."""
        self._handle: int | None = open_own(path, append=True)
        try:
            self._remove_incomplete_line(os.fstat(self._handle).st_size)
        except BaseException:
            self.close()
            raise

    def append(self, value: Mapping[str, Any]) -> None:
        """Write one object as one line; values that are not finite or have no JSON form become null.

        If the write fails, a partial line is removed.

        Raises:
            ClosedError: after `close`.
            OSError: it cannot be written; names the file.
        """
        if self._handle is None:
            raise ClosedError(f"{self.path} was closed")
        line = (
            json.dumps(json_data(value, Nulls()), allow_nan=False, separators=(", ", ": ")).encode() + b"\n"
        )
        if self._is_removed(self._handle):
            self._open_again()
        try:
            while line:
                line = line[os.write(self._handle, line) :]
        except OSError as error:
            # A part may be written though the call has failed.
            with suppress(OSError):
                self._remove_incomplete_line(os.fstat(self._handle).st_size)
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    @staticmethod
    def _is_removed(handle: int) -> bool:
        try:
            return os.fstat(handle).st_nlink == 0
        except OSError as error:
            # Another client of NFS has removed it.
            return error.errno == errno.ESTALE

    def _open_again(self) -> None:
        """Continue in a new file: the present one was removed."""
        assert self._handle is not None
        handle = open_own(self.path, append=True)
        os.close(self._handle)
        self._handle, self.begun_again = handle, True

    def _remove_incomplete_line(self, size: int) -> None:
        """Remove an incomplete last line."""
        assert self._handle is not None
        end = size
        while end:
            begin = max(0, end - _READ_BYTES)
            at = os.pread(self._handle, end - begin, begin).rfind(b"\n")
            if at >= 0:
                end = begin + at + 1
                break
            end = begin
        if end < size:
            os.ftruncate(self._handle, end)

    def close(self) -> None:
        """Close the file."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> JsonLinesWriter:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()
