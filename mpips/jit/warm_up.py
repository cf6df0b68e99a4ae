"""Records that a job's kernels are compiled on this machine, so that they are not compiled while N ranks start.

A mark file in the folder of compiled kernels (`mpips.jit.kernel_cache`) is valid for these source files, this Python
and this machine. It holds the number of kernels, so that a cleared cache is detected.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

from mpips.files.safe_open import read_text, replacing
from mpips.jit.kernel_cache import choose
from mpips.process.host import host_name

PACKAGE = Path(__file__).parents[1]


class Mark:
    """The mark of a job: of its program, found from the folder `base`, and its filters."""

    def __init__(self, program: str, base: Path, filters: Iterable[object], package: Path = PACKAGE) -> None:
        # `jobs` may be a link
        folders = [package, package / "jobs"]
        if program.endswith(".py"):
            folders.append((base / program).parent)
        digest = hashlib.blake2b(digest_size=16)
        about = (
            sys.executable,
            host_name(),
            version("numba"),
            version("numpy"),
            program,
            *map(str, filters),
        )
        digest.update(os.fsencode("\0".join(about)))
        sources = sorted({path for folder in folders for path in _files(folder, ".py")})
        for path in sources:
            with suppress(OSError):
                stat = path.stat()
                digest.update(os.fsencode(f"{path}\0{stat.st_mtime_ns} {stat.st_size}\0"))
        places = {choose(str(path.parent)).folder for path in sources if package in path.parents}
        self._folders = sorted({os.path.realpath(folder) for folder in places if folder is not None})
        kept = choose(str(package)).folder
        self.path = None if kept is None else kept / f"warm-{digest.hexdigest()}"
        """The file; None if kernels cannot be cached."""

    @property
    def is_set(self) -> bool:
        """Whether the kernels are compiled and still cached."""
        if self.path is None:
            return False
        try:
            return self._compiled() >= int(read_text(self.path, follow=False, most=100))
        except (OSError, ValueError):
            return False

    def set(self) -> None:
        """Record that the kernels are compiled; if the mark cannot be written, the next start checks again."""
        if self.path is not None:
            with suppress(OSError), replacing(self.path) as file:
                file.write(str(self._compiled()).encode())

    def _compiled(self) -> int:
        return len({path for folder in self._folders for path in _files(Path(folder), ".nbc")})


def _files(folder: Path, suffix: str) -> Iterable[Path]:
    """List files below a folder."""
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names if name.endswith(suffix))
