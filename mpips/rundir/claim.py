"""Whose a run's folder is: one start's at a time, whichever came first.

A start claims a folder by a file `.claim-N` in it, where N is one more than that of the last claim there. Of several
that try at once the file system lets one make it (O_EXCL, which NFS keeps too; locks it may not have). The claim names
the processes that hold it, and counts until these have ended: a run that was killed is in nobody's way.

`mpips run` claims the folder before it starts the ranks, and hands the claim on to rank 0 by its id. Rank 0 then makes
one of its own, which names the launcher's process, too; so does a rank that comes to lead after it.

Processes of another machine cannot be looked at. They renew the time of their claim's file: one that does not change
for `PATIENCE` is over.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mpips.errors import InputError
from mpips.files.json_shape import COUNT, Each, misfit
from mpips.files.safe_open import open_regular
from mpips.process.host import host_name, is_gone, machine
from mpips.process.printable import printable

PREFIX = ".claim-"
RENEWED = 3.0
"""Seconds after which a claim's file has a new time."""
PATIENCE = 20.0
"""Seconds without one after which the claim of another machine is over."""
_LOOK = 0.2
_LARGEST = 65536
_FORM = {"id": str, "host": str, "machine": str, "processes": Each([COUNT, COUNT])}


class Claim(NamedTuple):
    """A claim that this process has made."""

    path: Path
    id: str


class _Found(NamedTuple):
    """The last claim in a folder; what it says is empty if it cannot be read: it may be in the making."""

    number: int
    said: dict[str, Any]
    changed: int
    """When its file was renewed last (ns)."""


def take(folder: Path, handed: str = "", result: Path | None = None) -> Claim:
    """Claim a folder for this process, and renew the claim while it lives.

    Args:
        folder: it is there, and can be written to.
        handed: the id of the claim that was handed on to this process.
        result: a file that is there once the run has ended, as far as this process can see.

    Raises:
        InputError: another start has it; or the claim cannot be written.
    """
    before = _last(folder)
    if before is not None and not (handed and before.said.get("id") == handed):
        _wait_for_its_end(folder, before, result)
    here = _here()
    processes = [[os.getpid(), _began(os.getpid())]]
    if before is not None and handed == before.said.get("id") and before.said["machine"] == here:
        processes += before.said["processes"]
    claim = Claim(folder / f"{PREFIX}{(before.number if before else 0) + 1}", uuid.uuid4().hex)
    said = {"id": claim.id, "host": host_name(), "machine": here, "processes": processes}
    try:
        with claim.path.open("x", encoding="utf-8") as file:
            file.write(json.dumps(said))
    except FileExistsError:
        raise _taken(folder, _last(folder)) from None
    except OSError as error:
        raise InputError(f"{claim.path}: cannot be written: {error.strerror or error}") from None
    last = _last(folder)
    if last is None or last.said.get("id") != claim.id:  # the folder's list was an old one
        with suppress(OSError):
            claim.path.unlink()
        raise _taken(folder, last)
    for number, path in _claims(folder):
        if number < last.number:
            with suppress(OSError):
                path.unlink()
    threading.Thread(target=_renew, args=(claim.path,), name="mpips-claim", daemon=True).start()
    return claim


def succeed(folder: Path) -> Claim | None:
    """Claim the folder of this process's run, which another rank has led so far; None if that cannot be."""
    last = _last(folder)
    with suppress(InputError):
        return take(folder, "" if last is None else last.said.get("id", ""))
    return None


def release(folder: Path) -> None:
    """Give up the claim of this process, and of the ranks that it has started and that have ended."""
    last = _last(folder)
    if last is not None and [os.getpid(), _began(os.getpid())] in last.said.get("processes", ()):
        with suppress(OSError):
            (folder / f"{PREFIX}{last.number}").unlink()


def _wait_for_its_end(folder: Path, claim: _Found, result: Path | None) -> None:
    """Return once a claim is over. InputError if it is not."""
    said, deadline = claim.said, time.monotonic() + PATIENCE
    if said and said["machine"] == _here():
        if any(not is_gone(pid) and _began(pid) == began for pid, began in said["processes"]):
            raise _taken(folder, claim)
        return
    while time.monotonic() < deadline and not (said and result is not None and result.exists()):
        now = _last(folder)
        if now is None:
            return
        if now != claim:
            raise _taken(folder, now)
        time.sleep(_LOOK)


def _taken(folder: Path, claim: _Found | None) -> InputError:
    said = claim.said if claim is not None else {}
    who = ""
    if said:
        who = f" (process {said['processes'][0][0]} on {printable(said['host'], keep='')})"
    return InputError(
        f"{folder}: another start has this run folder{who}; wait for its end, or name another --run-dir"
    )


def _claims(folder: Path) -> list[tuple[int, Path]]:
    """List the claims in a folder, and their numbers."""
    names = [name for name in os.listdir(folder) if name.startswith(PREFIX)]
    numbers = [(name.removeprefix(PREFIX), folder / name) for name in names]
    return sorted((int(digits), path) for digits, path in numbers if digits.isascii() and digits.isdigit())


def _last(folder: Path) -> _Found | None:
    claims = _claims(folder)
    if not claims:
        return None
    number, path = claims[-1]
    try:
        with open_regular(path, follow=False) as file:  # over NFS, opening is what asks the server
            changed, said = os.fstat(file.fileno()).st_mtime_ns, json.loads(file.read(_LARGEST))
    except (OSError, ValueError, RecursionError):
        return _Found(number, {}, 0)
    return _Found(number, said if not misfit(said, _FORM) and said["processes"] else {}, changed)


def _here() -> str:
    """Say where processes can be looked at from here."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return f"{machine().hex()} {space}"


def _began(pid: int) -> int:
    """Say when a process began, so that it is not taken for a later one of the same number; 0 if unknown."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    return 0


def _renew(path: Path) -> None:
    while True:
        time.sleep(RENEWED)
        try:
            os.utime(path, follow_symlinks=False)
        except FileNotFoundError:  # it was handed on
            return
        except OSError:
            continue
