"""What a rank has used so far: processor time and memory of its process, and bytes that filters saved."""

from __future__ import annotations

from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from time import process_time
from typing import Any, Literal

from mpips.filters.chain import Chain, Saved


def process_usage() -> dict[str, Any]:
    """Return this process' `cpu` time in seconds and its peak `memory` in bytes."""
    return {"cpu": process_time(), "memory": getrusage(RUSAGE_SELF).ru_maxrss * 1024}


def held_memory() -> dict[str, int]:
    """Return this process' proportional (`pss`) and `private` memory in bytes; {} if the system does not say.

    The system walks all pages for it: some 10 ms for a process of 400 MB.
    """
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return {}
    sizes = {
        name: int(words[0]) * 1024
        for name, _, rest in (line.partition(":") for line in lines[1:])
        if (words := rest.split())
    }
    return {
        "pss": sizes.get("Pss", 0),
        "private": sizes.get("Private_Clean", 0) + sizes.get("Private_Dirty", 0),
    }


class Savings:
    """Bytes that key caching and a program's own filters have saved on this rank."""

    def __init__(self) -> None:
        self.key_bytes, self.sent_keys, self.answered_keys = 0, 0, 0
        """Bytes of keys that requests of this rank named, that they carried, and that the answers were about."""
        self._own: dict[str, dict[str, Saved]] = {}

    def add(self, name: str, role: Literal["worker", "server"], raw: int, wire: int) -> None:
        """Count what a filter of the program's own has left out, of what workers or servers send: bytes.

        A worker may speak for the servers, as far as they answer it.
        """
        each = self._own.setdefault(name, {}).setdefault(role, Saved())
        each.raw += raw
        each.wire += wire

    def by_filter(self, pushes: Chain, pulls: Chain) -> dict[str, dict[str, Saved]]:
        """Return the bytes into and out of each filter, by its name and the role of the sender."""
        found = {name: dict(by) for name, by in self._own.items()}
        if self.key_bytes:
            caching = found.setdefault("key_caching", {})
            caching["worker"] = Saved(self.key_bytes, self.sent_keys)
            caching["server"] = Saved(self.answered_keys, 0)
        for role, chain in (("worker", pushes), ("server", pulls)):
            for name, each in chain.saved.items():
                found.setdefault(name, {})[role] = each
        return found
