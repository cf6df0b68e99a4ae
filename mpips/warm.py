"""Whether the kernels that a job needs have been compiled on this machine: N ranks would each do it, at the same time.

A mark in the user's cache folder says that they were, for these files, this Python and this machine. The compiled
kernels stand beside the files (`__pycache__`); the mark holds how many there were, so that a cache that was cleared is
seen.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from mpips.host import host_name

PACKAGE = Path(__file__).parent


def mark_of(program: str, base: Path, filters: Iterable[object], package: Path = PACKAGE) -> Path:
    """Return the mark of a job: of its program, found from the folder `base`, and its filters."""
    folders = [package, package / "jobs"]
    if program.endswith(".py"):
        folders.append((base / program).parent)
    digest = hashlib.blake2b(digest_size=16)
    about = (sys.executable, host_name(), version("numba"), version("numpy"), program, *map(str, filters))
    digest.update("\0".join(about).encode())
    for path in sorted({path for folder in folders for path in _files(folder, ".py")}):
        with suppress(OSError):
            stat = path.stat()
            digest.update(f"{path}\0{stat.st_mtime_ns} {stat.st_size}\0".encode())
    cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(cache, "mpips", f"warm-{digest.hexdigest()}")


def is_warm(mark: Path, package: Path = PACKAGE) -> bool:
    """Tell whether the kernels were compiled, and are there still."""
    try:
        return _compiled(package) >= int(mark.read_text())
    except (OSError, ValueError):
        return False


def set_warm(mark: Path, package: Path = PACKAGE) -> None:
    """Note that the kernels are compiled; where that cannot be written, they are looked for again next time."""
    with suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text(str(_compiled(package)))


def _compiled(package: Path) -> int:
    return len(
        {os.path.realpath(path) for folder in (package, package / "jobs") for path in _files(folder, ".nbc")}
    )


def _files(folder: Path, suffix: str) -> Iterable[Path]:
    """List files below a folder; `jobs` may be a link to it."""
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names if name.endswith(suffix))
