"""Facts by which a file is known again: its size, time of change and hash."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mpips.files.safe_open import open_regular

QUICK_LIMIT = 2**24
"""Size up to which a file is hashed as a whole in "quick" mode."""
SAMPLE = 2**20
HASHES = ("sha256", "sample_sha256")
_PIECE = 2**22

Facts = dict[str, Any]


def stat_facts(path: Path) -> Facts:
    """Return `bytes` and `modified` (UTC) of a file, or the `problem`."""
    try:
        found = path.stat()
        when = datetime.fromtimestamp(found.st_mtime_ns / 1e9, UTC).isoformat(timespec="microseconds")
    except (OSError, ValueError, OverflowError) as error:
        # OverflowError: a time beyond the year 9999.
        return {"problem": getattr(error, "strerror", None) or str(error)}
    return {"bytes": found.st_size, "modified": when}


def fingerprint(path: Path, whole: float, stop: Callable[[], bool] = lambda: False) -> Facts:
    """Return {`sha256`} of a file of up to `whole` bytes, {`sample_sha256`} of a larger one.

    Empty if `stop` returns True before it is done; {`problem`} if the file cannot be read.
    """
    try:
        with open_regular(path, follow=True) as file:
            size = os.fstat(file.fileno()).st_size
            if size <= whole:
                done = _hash(file.readinto, stop)
                return {} if done is None else {"sha256": done}
            sha = hashlib.sha256(size.to_bytes(8, "little"))
            sha.update(os.pread(file.fileno(), SAMPLE, 0))
            sha.update(os.pread(file.fileno(), SAMPLE, max(0, size - SAMPLE)))
            return {"sample_sha256": sha.hexdigest()}
    except (OSError, ValueError) as error:
        return {"problem": getattr(error, "strerror", None) or str(error)}


def hash_kind(facts: Mapping[str, Any]) -> str:
    """Return the kind of hash that `Inputs` has of a file, "" if none, or if the file changed while it was read."""
    return "" if facts.get("changed") else next((kind for kind in HASHES if kind in facts), "")


def _hash(readinto: Callable[[memoryview], int | None], stop: Callable[[], bool]) -> str | None:
    sha, piece = hashlib.sha256(), memoryview(bytearray(_PIECE))
    while count := readinto(piece):
        if stop():
            return None
        # Releases the GIL.
        sha.update(piece[:count])
    return sha.hexdigest()
