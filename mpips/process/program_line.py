"""Spots: the file and line of a program where it asked for something, or went wrong.

A program's own lines are told from the mechanism's by their files: what stands in this package is mechanism, but for
the jobs that come with it.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path
from types import CodeType, FrameType

Spot = tuple[CodeType, int]
"""Code, and an offset in it: so much is cheap to note with every request."""

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
    """Say that a program's module stands in a file: so its folder is the program's, wherever that is."""
    if file:
        _homes.add(str(Path(file).parent) + "/")


def is_program(file: str) -> bool:
    """Tell whether a file is a program's, and neither the mechanism's nor a library's."""
    if file.startswith(_PACKAGE):
        return file.startswith(_JOBS)
    return file.startswith((*_homes, *_JOBS)) or not (file.startswith(_LIBRARIES) or file[:1] == "<")


def here(frame: FrameType | None) -> Spot | None:
    """Give the innermost spot of a program's from a frame outwards; None if the mechanism asks by itself."""
    while frame is not None:
        if is_program(frame.f_code.co_filename):
            return frame.f_code, frame.f_lasti
        frame = frame.f_back
    return None


def caller() -> Spot:
    """Give the spot three calls further out: that of `a` in a -> push -> submit -> caller."""
    frame = sys._getframe(3)
    return frame.f_code, frame.f_lasti


def told(spot: Spot | None) -> str:
    """Write a spot as `file:line`; "" if it is none of a program's."""
    if spot is None or not is_program(spot[0].co_filename):
        return ""
    code, offset = spot
    line = next(
        (line for start, end, line in code.co_lines() if start <= offset < end and line), code.co_firstlineno
    )
    return f"{code.co_filename}:{line}"


def of(error: BaseException) -> str:
    """Write where in a program an error arose, as `file:line`: the innermost line of its own; "" if nowhere."""
    found, trace = "", error.__traceback__
    own = ""
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if is_program(file):
            found = f"{file}:{trace.tb_lineno}"
            own = found if file.startswith((*_homes, *_JOBS)) else own
        trace = trace.tb_next
    return own or found
