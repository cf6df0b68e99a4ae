"""Chooses the folder in which compiled kernels are cached.

A user who can write to that folder can run code in every process that loads kernels from it. So it must belong to this
user or to root, and no other user may write to it. The first of these folders is used that is safe and writable:

- the folder that NUMBA_CACHE_DIR names
- `__pycache__` in the folder of the kernels' source files
- `mpips/kernels` in the user's cache folder (XDG_CACHE_HOME, else ~/.cache)
- `mpips-kernels-UID` in the system's folder for temporary files, created for this user only; if another user owns that
  name, a number is appended

Kernels that are in `__pycache__` already are also loaded from there where it cannot be written, so that those that root
has compiled for all users are not compiled again by each.

Ranks of a host choose the same folder, since the choice depends on the file system and the environment only. An unusual
choice is reported in one line by the first process, which sets a variable (`REPORTED`) for its child processes.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

from mpips.process import user_folders
from mpips.process.first_rank import seems_first
from mpips.process.printable import one_line

REPORTED = "MPIPS_KERNEL_CACHE"
"""The variable with the text that a parent process has printed."""
NAMED = "NUMBA_CACHE_DIR"
# Names of temporary folders that are tried.
_NAMES = 16


class Place(NamedTuple):
    """The cache folder of the kernels of a folder of sources."""

    folder: Path | None
    """None: nowhere, and each process compiles them."""
    beside: bool
    """Whether it is the sources' own `__pycache__`."""
    flaws: tuple[str, ...]
    """Why earlier candidates were rejected."""
    remark: str
    """A remark for the user on an unusual choice; empty if there is none."""


@cache
def place(sources: str) -> Place:
    """Choose the cache folder for the kernels of the files in a folder, and create it."""
    named, flaws = os.environ.get(NAMED, ""), []
    if named:
        named = os.path.abspath(named)
        found = _flaw(Path(named), _leaf(sources))
        if not found:
            return Place(Path(named, _leaf(sources)), False, (), "")
        flaws.append(f"{NAMED}={named} is not used: {found}")
    beside = Path(sources, "__pycache__")
    found = _flaw(beside)
    if not found:
        return Place(beside, True, tuple(flaws), _remark(flaws, beside))
    flaws.append(found)
    for base in _bases():
        found = _flaw(base, _leaf(sources))
        if not found:
            temporary = base.parent == Path(tempfile.gettempdir())
            said = flaws if temporary else flaws[: bool(named)]
            return Place(base / _leaf(sources), False, tuple(flaws), _remark(said, base))
        flaws.append(found)
    nowhere = "compiled kernels cannot be kept, so that each process compiles them, for a minute or more"
    return Place(None, False, tuple(flaws), f"{nowhere}: {'; '.join(flaws)}")


@cache
def given(sources: str) -> Path | None:
    """Return the sources' own `__pycache__` if it is safe, but cannot be written; None otherwise."""
    folder = Path(sources, "__pycache__")
    with suppress(OSError):
        return None if os.access(folder, os.W_OK) or exposed(folder) else folder
    return None


def choose(sources: str) -> Place:
    """Choose as `place` does, and print an unusual choice unless a process has done so."""
    found = place(sources)
    if found.remark:
        remark(found.remark)
    return found


def remark(text: str) -> None:
    """Print a remark on the cache, unless this process or a parent has printed one."""
    if not os.environ.get(REPORTED):
        os.environ[REPORTED] = text
        if seems_first():
            with suppress(OSError):
                print(f"mpips: {one_line(text)}", file=sys.stderr, flush=True)


def _remark(flaws: list[str], folder: Path) -> str:
    return f"compiled kernels are kept in {folder}: {'; '.join(flaws)}" if flaws else ""


def _leaf(sources: str) -> str:
    """Name the folder for a folder of sources, within one for all."""
    path = os.path.realpath(sources)
    return f"{os.path.basename(path)}-{hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()}"


def _bases() -> Iterator[Path]:
    """List the folders for all kernels, as the module says."""
    own = user_folders.cache()
    if own is not None:
        yield own / "mpips" / "kernels"
    with suppress(OSError):
        # There is nowhere to write at all.
        folder = Path(tempfile.gettempdir())
        yield from (
            folder / f"mpips-kernels-{os.geteuid()}{f'-{number}' if number else ''}"
            for number in range(_NAMES)
        )


def _flaw(base: Path, leaf: str = "") -> str:
    """Create a folder; return why it cannot be used as a cache, "" if it can."""
    folder = base / leaf
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
        for each in (base, folder):
            # `__pycache__` is readable by all users.
            each.mkdir(mode=0o700 if leaf else 0o777, exist_ok=True)
        for each in (base, folder):
            found = exposed(each)
            if found:
                return found
    except OSError as error:
        return f"{error.filename or base}: {error.strerror or error}"
    return "" if os.access(folder, os.W_OK | os.X_OK) else f"{folder} cannot be written"


def exposed(folder: Path) -> str:
    """Return which other user can change the contents of a folder; "" if only this user and root can.

    Raises:
        OSError: it cannot be examined.
    """
    path = Path(os.path.realpath(folder))
    # A user who can rename a parent folder can replace it.
    for each in (path, *path.parents):
        about = each.stat()
        if about.st_uid != os.geteuid() and about.st_uid not in _roots():
            return f"{each} belongs to another user (uid {about.st_uid})"
        if each == path and about.st_mode & stat.S_IWGRP and about.st_uid != os.geteuid():
            return f"the group of {each} can write to it"
        # In a folder such as /tmp, only its owner can rename or remove what is there.
        if about.st_mode & stat.S_IWOTH and (each == path or not about.st_mode & stat.S_ISVTX):
            return f"any user can write to {each}"
    return ""


@cache
def _roots() -> tuple[int, ...]:
    """Return the user ids that count as root: in a container with mapped users, the real root has another id."""
    with suppress(OSError, ValueError):
        begin, _, count = Path("/proc/self/uid_map").read_text().split()[:3]
        if int(begin) > 0 or int(count) < 2**32 - 1:
            return 0, int(Path("/proc/sys/kernel/overflowuid").read_text())
    return (0,)


def is_own_file(path: str | Path) -> bool:
    """Return whether a path is a regular file of this user or of root: no link, and no pipe, which would block."""
    try:
        about = os.lstat(path)
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(about.st_mode) and about.st_uid in (os.geteuid(), *_roots())


def shared_with(folder: Path) -> str:
    """Return which group can change the contents of a folder of this user; "" if only the user's own group can."""
    with suppress(OSError):
        about = folder.stat()
        if about.st_mode & stat.S_IWGRP and about.st_gid != os.getegid():
            return f"group {about.st_gid}"
    return ""
