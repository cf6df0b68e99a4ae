"""The launcher's daemon that started a rank: mpirun, its daemon on another node, or that of a batch system.

A launcher that is killed leaves its ranks without a process that ends them, reads their output, or reports each other's
deaths. So each rank watches its own daemon.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from mpips.process.host import is_gone

LOOK = 0.25
"""Seconds between two checks whether the daemon exists."""
RANK_VARIABLES = (
    "OMPI_COMM_WORLD_RANK",
    "PMIX_RANK",
    "PMIX_NAMESPACE",
    "PMI_RANK",
    "PMI_ID",
    "PMI_FD",
    "PMI_PORT",
)
"""Environment variables that a daemon sets for a rank, and that its own environment lacks or has for another job."""


def watch(end: Callable[[str], None], environ: Mapping[str, str] = os.environ) -> None:
    """Call `end` with the daemon's name once this rank's daemon has ended, in a thread of its own.

    Without a daemon it does nothing.
    """
    found = daemon(environ)
    if found is not None:
        threading.Thread(target=_wait, args=(*found, end), name="mpips-parent", daemon=True).start()


def daemon(environ: Mapping[str, str] = os.environ) -> tuple[int, str] | None:
    """Return the daemon, (process id, name): the nearest ancestor without this rank's environment variables.

    The processes in between are wrapper scripts of the rank.
    """
    variables = {os.fsencode(f"{name}={environ[name]}") for name in RANK_VARIABLES if name in environ}
    pid = os.getppid()
    while variables and pid > 0:
        try:
            if not variables <= set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")):
                return pid, _name(pid)
        except OSError:
            # Another user's process, such as a batch system's daemon.
            return pid, _name(pid)
        pid = _parent(pid)
    return None


def _wait(pid: int, name: str, end: Callable[[str], None]) -> None:
    if pid == os.getppid():
        # Works also where other processes are hidden (hidepid).
        while os.getppid() == pid:
            time.sleep(LOOK)
    elif is_gone(pid):
        # It is not visible.
        return
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
