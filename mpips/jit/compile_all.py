"""Compiles the kernels of all modules of mpips, for all users of an installation: `python -P -m mpips.jit.compile_all`.

Otherwise the first run of each job compiles those that it needs. Two processes do it, one from each end of the list of
modules: what one has compiled the other finds in the cache.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

from mpips.process import interpreter

PACKAGE = Path(__file__).parents[1]
BACKWARDS = "--backwards"


def modules() -> list[str]:
    """List the modules that define kernels."""
    found = []
    # `jobs` may be a link, which `glob` does not follow.
    for folder, _, files in os.walk(PACKAGE, followlinks=True):
        for file in (Path(folder, name) for name in files if name.endswith(".py")):
            if "\n@kernel" in file.read_text(encoding="utf-8"):
                found.append(".".join((PACKAGE.name, *file.relative_to(PACKAGE).with_suffix("").parts)))
    return sorted(found)


def main(arguments: list[str]) -> int:
    """Compile by importing; return the exit code."""
    import mpi4py

    mpi4py.rc.initialize = False
    backwards = BACKWARDS in arguments
    other = None
    if not backwards:
        other = subprocess.Popen([*interpreter.python(), "-m", "mpips.jit.compile_all", BACKWARDS])
    for name in reversed(modules()) if backwards else modules():
        importlib.import_module(name)
    return 0 if other is None else other.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
