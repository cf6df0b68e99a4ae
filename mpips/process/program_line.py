"""Program lines: the file and line of the user's program that issued a request or raised an error.

A line belongs to a program by its file: files of this package do not, except for the jobs that come with it.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from types import CodeType, FrameType

CodeLocation = tuple[CodeType, int]
"""A code object and an offset in it: cheap to record with every request."""

_PACKAGE = str(Path(__file__).parents[1]) + "/"
_JOBS = (_PACKAGE + "jobs/", str((Path(__file__).parents[1] / "jobs").resolve()) + "/")
_LIBRARIES = tuple(
    {
        str(Path(path)) + "/"
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
        if (path := sysconfig.get_path(name))
    }
)
_homes: set[str] = set()


def register(file: str | None) -> None:
    """Register the file of a program's module: all files in its folder belong to the program."""
    if file:
        _homes.add(str(Path(file).parent) + "/")


def is_program(file: str) -> bool:
    """Return whether a file belongs to a program, and neither to mpips nor to a library."""
    if file.startswith(_PACKAGE):
        return file.startswith(_JOBS)
    return file.startswith((*_homes, *_JOBS)) or not (file.startswith(_LIBRARIES) or file[:1] == "<")


def innermost(frame: FrameType | None) -> CodeLocation | None:
    """Return the innermost program line from a frame outwards; None if mpips issued the request itself."""
    while frame is not None:
        if is_program(frame.f_code.co_filename):
            return frame.f_code, frame.f_lasti
        frame = frame.f_back
    return None


def caller() -> CodeLocation:
    """Return the line three calls further out: that of `a` in a -> push -> submit -> caller."""
    frame = sys._getframe(3)
    return frame.f_code, frame.f_lasti


def describe(location: CodeLocation | None) -> str:
    """Return a line as `file:line`; "" if it does not belong to a program."""
    if location is None or not is_program(location[0].co_filename):
        return ""
    code, offset = location
    line = next(
        (line for start, end, line in code.co_lines() if start <= offset < end and line), code.co_firstlineno
    )
    return f"{code.co_filename}:{line}"


def of(error: BaseException) -> str:
    """Return the innermost program line of an error's traceback as `file:line`; "" if there is none."""
    found, trace = "", error.__traceback__
    own = ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if is_program(file):
            found = f"{file}:{trace.tb_lineno}"
            own = found if file.startswith((*_homes, *_JOBS)) else own
        trace = trace.tb_next
    return own or found
