"""Claims: exclusive ownership of a run's folder by one start at a time.

A start claims a folder by a file `.claim-N` in it, where N is one more than that of the last claim. Of several
concurrent starts, one can create the file, with its content. The claim names the processes that hold it, and is valid
until these have ended, so that a killed run does not block the folder.

`mpips run` claims the folder before it starts the ranks, and passes the claim's id to rank 0. Rank 0 then makes a
claim of its own, which also names the launcher's process; so does a rank that becomes the leader after it.

Processes of another machine cannot be checked. They update the modification time of their claim's file: a claim whose
time does not change for `PATIENCE` is over.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from mpips.errors import InputError, cannot_write
from mpips.files.json_schema import COUNT, Each, schema_error
from mpips.files.safe_open import create_exclusively, open_regular
from mpips.process.host import host_name, is_gone, process_space
from mpips.process.printable import printable

PREFIX = ".claim-"
RENEWED = 3.0
"""Seconds between updates of a claim's modification time."""
PATIENCE = 20.0
"""Seconds without an update after which the claim of another machine is over."""
_POLL_PERIOD = 0.2
_LARGEST = 65536
_SCHEMA = {"id": str, "host": str, "machine": str, "processes": Each([COUNT, COUNT])}


class Claim(NamedTuple):
    """A claim that this process has made."""

    path: Path
    id: str


class _Found(NamedTuple):
    """The last claim in a folder; its content is empty if it cannot be read."""

    number: int
    content: dict[str, Any]
    changed: int
    """Modification time of its file (ns)."""


def take(folder: Path, launcher_claim: str = "", has_ended: Callable[[], bool] = lambda: False) -> Claim:
    """Claim a folder for this process, and renew the claim while it lives.

    Args:
        folder: an existing, writable folder.
        launcher_claim: the id of the claim that was passed to this process.
        has_ended: returns whether the run in the folder has written its result.

    Raises:
        InputError: another start holds the folder, or the claim cannot be written.
        OSError: there is no room for it.
    """
    before = _last(folder)
    if before is not None and not (launcher_claim and before.content.get("id") == launcher_claim):
        _wait_for_its_end(folder, before, has_ended)
    here = process_space()
    processes = [[os.getpid(), _began(os.getpid())]]
    if (
        before is not None
        and launcher_claim == before.content.get("id")
        and before.content["machine"] == here
    ):
        processes += before.content["processes"]
    claim = Claim(folder / f"{PREFIX}{(before.number if before else 0) + 1}", uuid.uuid4().hex)
    content = {"id": claim.id, "host": host_name(), "machine": here, "processes": processes}
    try:
        created = create_exclusively(claim.path, json.dumps(content).encode())
    except OSError as error:
        raise cannot_write(claim.path, error) from None
    if not created:
        raise _taken(folder, _last(folder))
    last = _last(folder)
    # The listing of the folder was outdated.
    if last is None or last.content.get("id") != claim.id:
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
    """Claim the folder of this process's run after another rank has led it; None if that is not possible."""
    last = _last(folder)
    with suppress(InputError, OSError):
        return take(folder, "" if last is None else last.content.get("id", ""))
    return None


def renewal(folder: Path) -> tuple[str, int]:
    """Return the id of the last claim, and when it was renewed (ns); empty and 0 if there is none."""
    with suppress(OSError):
        last = _last(folder)
        if last is not None:
            return last.content.get("id", ""), last.changed
    return "", 0


def is_held(folder: Path) -> bool:
    """Return whether a start holds a folder; one of another machine does if it has renewed its claim lately.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     print(is_held(Path(folder)))
    False
    """
    last = _last(folder)
    if last is None or (last.content and last.content["machine"] == process_space()):
        return last is not None and _lives(last.content)
    return time.time() - last.changed / 1e9 < PATIENCE


def release(folder: Path) -> None:
    """Release the claim of this process, or of ranks that it has started and that have ended."""
    last = _last(folder)
    if last is not None and [os.getpid(), _began(os.getpid())] in last.content.get("processes", ()):
        with suppress(OSError):
            (folder / f"{PREFIX}{last.number}").unlink()


def _wait_for_its_end(folder: Path, claim: _Found, has_ended: Callable[[], bool]) -> None:
    """Return once a claim is over. InputError if it is not."""
    content, deadline = claim.content, time.monotonic() + PATIENCE
    if content and content["machine"] == process_space():
        if _lives(content):
            raise _taken(folder, claim)
        return
    while time.monotonic() < deadline and not (content and has_ended()):
        now = _last(folder)
        if now is None:
            return
        if now != claim:
            raise _taken(folder, now)
        time.sleep(_POLL_PERIOD)


def _lives(content: dict[str, Any]) -> bool:
    """Return whether one of the processes of a claim of this machine lives."""
    return any(not is_gone(pid) and _began(pid) == began for pid, began in content["processes"])


def _taken(folder: Path, claim: _Found | None) -> InputError:
    content = claim.content if claim is not None else {}
    who = ""
    if content:
        who = f" (process {content['processes'][0][0]} on {printable(content['host'], keep='')})"
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
        # Over NFS, open revalidates the attributes.
        with open_regular(path, follow=False) as file:
            changed, content = os.fstat(file.fileno()).st_mtime_ns, json.loads(file.read(_LARGEST))
    except (OSError, ValueError, RecursionError):
        return _Found(number, {}, 0)
    return _Found(
        number, content if not schema_error(content, _SCHEMA) and content["processes"] else {}, changed
    )


def _began(pid: int) -> int:
    """Return the start time of a process, which distinguishes it from a later one of the same id; 0 if unknown."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    return 0


def _renew(path: Path) -> None:
    while True:
        time.sleep(RENEWED)
        try:
            os.utime(path, follow_symlinks=False)
        except FileNotFoundError:
            # A later claim has replaced it.
            return
        except OSError:
            continue
