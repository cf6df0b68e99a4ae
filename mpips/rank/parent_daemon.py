"""The daemon that a rank was started by: mpirun, its like on another node, or that of a batch system.

A launcher that is killed leaves its ranks behind, with nobody to end them, to read what they write, or to tell them of
each other's deaths. So each rank watches its own daemon.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from mpips.process.host import is_gone

LOOK = 0.25
"""Seconds between two looks whether the daemon is there."""
TOLD = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMIX_NAMESPACE", "PMI_RANK", "PMI_ID", "PMI_FD", "PMI_PORT")
"""What a daemon tells a rank, which its own environment has not, or of another job."""


def watch(end: Callable[[str], None], environ: Mapping[str, str] = os.environ) -> None:
    """Call `end` with who it was once this rank's daemon has ended, in a thread of its own.

    A process that no daemon has started watches nobody.
    """
    found = daemon(environ)
    if found is not None:
        threading.Thread(target=_wait, args=(*found, end), name="mpips-parent", daemon=True).start()


def daemon(environ: Mapping[str, str] = os.environ) -> tuple[int, str] | None:
    """Find the daemon, a process id and a name: the nearest ancestor that was not told that it is this rank.

    Those between are scripts that the rank was wrapped in.
    """
    told = {os.fsencode(f"{name}={environ[name]}") for name in TOLD if name in environ}
    pid = os.getppid()
    while told and pid > 0:
        try:
            if not told <= set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")):
                return pid, _name(pid)
        except OSError:  # of another user, as that of a batch system
            return pid, _name(pid)
        pid = _parent(pid)
    return None


def _wait(pid: int, name: str, end: Callable[[str], None]) -> None:
    if pid == os.getppid():
        while os.getppid() == pid:  # as every process is told, also where it sees no others (hidepid)
            time.sleep(LOOK)
    elif is_gone(pid):
        return  # it cannot be seen
    else:
        while not is_gone(pid):
            time.sleep(LOOK)
    end(f"{name}, process {pid}")


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return "its launcher"


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError):
        return 0
