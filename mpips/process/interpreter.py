"""The command that starts Python for a process of ours: this interpreter, and never modules of the working folder.

`python -m` and `python -c` put the working folder in front of `sys.path`, and so does an empty part of PYTHONPATH, as
in ``PYTHONPATH=/my/modules:``. A folder that holds a `mpi4py.py` or an `mpips/` of somebody's would then be run in
place of the real ones. `-P` (Python 3.11) leaves it out; for lines that are typed without it, and for empty parts,
`forget_working_folder` does what can still be done.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def python(executable: str | None = None) -> list[str]:
    """Give the beginning of a command line that starts Python, by default the one that runs this."""
    return [executable or sys.executable, "-P"]


def forget_working_folder(by_module: bool = False) -> None:
    """Take the working folder out of `sys.path`, and out of PYTHONPATH for the processes that this one starts.

    It stays where the user has named it in PYTHONPATH, where a package is installed in it, and where this mpips is.

    Args:
        by_module: Python was started by `-m`, and so has put it in front unless it was told not to.
    """
    named = os.environ.get("PYTHONPATH", "")
    parts = [part for part in named.split(os.pathsep) if part]
    unmeant = bool(named) and len(parts) <= named.count(os.pathsep)
    if unmeant:
        os.environ["PYTHONPATH"] = os.pathsep.join(parts)
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        return
    if here == str(Path(__file__).absolute().parents[2]):
        return
    unmeant = unmeant and here not in map(os.path.abspath, parts)
    for _ in range(unmeant + (by_module and not sys.flags.safe_path)):
        if here in sys.path:
            sys.path.remove(here)
