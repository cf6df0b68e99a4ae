"""Compile all kernels before tests run in parallel: otherwise each process would compile those that are missing.

Two processes do it, one from each end of the list of modules: what one has compiled the other finds in the cache.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import mpi4py

ROOT = Path(__file__).resolve().parent.parent


def modules() -> list[str]:
    """List the modules that define kernels."""
    files = {*ROOT.glob("mpips/**/*.py"), *ROOT.glob("mpips/jobs/**/*.py")}
    found = [file.relative_to(ROOT).with_suffix("") for file in files if "\n@kernel" in file.read_text()]
    return sorted(".".join(path.parts) for path in found)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    mpi4py.rc.initialize = False
    names = modules()
    backwards = "--backwards" in sys.argv
    other = None if backwards else subprocess.Popen([sys.executable, __file__, "--backwards"])
    for name in reversed(names) if backwards else names:
        importlib.import_module(name)
    sys.exit(0 if other is None else other.wait())
