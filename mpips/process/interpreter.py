"""The command that starts Python for mpips' own processes: this interpreter, without modules of the working folder.

`python -m`, `python -c` and an empty part of PYTHONPATH, as in ``PYTHONPATH=/my/modules:``, put the working folder
first in `sys.path`. A `mpi4py.py` or `mpips/` in that folder would then be imported instead of the installed one. `-P`
(Python 3.11) prevents that; for commands that are typed without it, and for empty parts, there is
`forget_working_folder`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def python(executable: str | None = None) -> list[str]:
    """Return the beginning of a command line that starts Python, by default the running interpreter."""
    return [executable or sys.executable, "-P"]


def check_working_folder() -> None:
    """Raise InputError if the working folder was removed: relative names, launchers and much else need one."""
    try:
        os.getcwd()
    except OSError:
        # Imported late: before `forget_working_folder` modules of the working folder may be found.
        from mpips.errors import InputError

        raise InputError("the working folder was removed: change to one that exists") from None


def forget_working_folder(by_module: bool = False) -> None:
    """Remove the working folder from `sys.path`, and from PYTHONPATH for child processes.

    It stays if the user has named it in PYTHONPATH, if a package is installed in it, and if this mpips is in it.

    Args:
        by_module: Python was started by `-m`, and so has put it first unless `-P` was given.
    """
    named = os.environ.get("PYTHONPATH", "")
    parts = [part for part in named.split(os.pathsep) if part]
    has_empty_part = bool(named) and len(parts) <= named.count(os.pathsep)
    if has_empty_part:
        os.environ["PYTHONPATH"] = os.pathsep.join(parts)
    try:
        here = os.getcwd()
    # The folder was removed.
    except OSError:
        return
    if here == str(Path(__file__).absolute().parents[2]):
        return
    has_empty_part = has_empty_part and here not in map(os.path.abspath, parts)
    for _ in range(has_empty_part + (by_module and not sys.flags.safe_path)):
        if here in sys.path:
            sys.path.remove(here)
