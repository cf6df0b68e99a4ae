"""Compile all kernels, before tests run side by side: each process compiles for itself what it finds missing."""

from __future__ import annotations

import importlib
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
    for name in modules():
        importlib.import_module(name)
