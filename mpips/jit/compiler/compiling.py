"""Compilation of kernels by one process at a time, with a message to the user.

The first start on a machine compiles for one or two minutes. A message announces this: on a terminal with the current
module, in a line that is removed afterwards; elsewhere in one line.

All ranks of a host start together and need the same kernels. One of them compiles each kernel, under a lock on the
cache folder, and the others load it from there.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mpips.process import stop_signals
from mpips.process.first_rank import seems_first
from mpips.process.printable import Control, printable

PATIENCE = 120.0
"""Seconds to wait for another process's kernel; no kernel takes that long, so that process was stopped."""
_LOCK = "mpips-kernels.lock"
_PACKAGE = Path(__file__).parents[2]
_IMPORT = re.compile(r"^from (mpips[\w.]*) import (.*)$", re.MULTILINE)

_held: set[Path] = set()
_modules: dict[str, None] = {}


@contextmanager
def alone(folder: Path | None) -> Iterator[None]:
    """Hold the lock of a cache folder, if its file system has locks."""
    # Held already while the kernel of a caller is compiled.
    if folder is None or folder in _held:
        yield
        return
    try:
        handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        yield
        return
    _held.add(folder)
    try:
        deadline = time.monotonic() + PATIENCE
        while not _taken(handle) and time.monotonic() < deadline and not stop_signals.received:
            time.sleep(0.02)
        yield
    finally:
        _held.remove(folder)
        os.close(handle)


def _taken(handle: int) -> bool:
    """Try to lock a file; return True also where locks are not supported."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@contextmanager
def announced(module: str, folder: Path | None) -> Iterator[None]:
    """Print, on the first rank, that a kernel of a module is being compiled, and where it is cached."""
    first = not _modules
    _modules[module] = None
    if not seems_first():
        yield
        return
    if first:
        kept = (
            "each time, since they cannot be kept"
            if folder is None
            else f"once for this machine, into {folder}"
        )
        _say(printable(f"mpips: compiling kernels, {kept}; this takes a minute or two\n"))
    live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    if live:
        # The cursor returns to the beginning of the line, so that the next text overwrites it.
        _say(Control(f"mpips: compiling {module} ({len(_modules)} of about {_number()} modules)\r"))
    try:
        yield
    finally:
        if live:
            _say(Control("\x1b[K"))


def _number() -> int:
    """Count the modules with kernels that are loaded, or will be by the import statements of those that are."""
    todo = {name for name in sys.modules if name.partition(".")[0] == "mpips"}
    if "mpips.rank.main" in todo:
        # It is loaded later.
        todo.add("mpips.transport.mpi.van")
    seen: set[str] = set()
    count = 0
    while todo:
        name = todo.pop()
        seen.add(name)
        path = _PACKAGE.parent.joinpath(*name.split("."))
        with suppress(OSError):
            text = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8")
            count += "\n@kernel(" in text
            todo |= {
                found
                for package, names in _IMPORT.findall(text)
                for found in (package, *(f"{package}.{each}" for each in re.findall(r"\w+", names)))
            } - seen
    return max(count, len(_modules))


def _say(text: str) -> None:
    with suppress(OSError):
        sys.stderr.write(text)
        sys.stderr.flush()
