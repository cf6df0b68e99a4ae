"""The command that starts Python for a process of ours: this interpreter, and never modules of the working folder.

`python -m` and `python -c` put the working folder in front of `sys.path`. A folder that holds a `mpi4py.py` or an
`mpips/` of somebody's would then be run in place of the real ones. `-P` (Python 3.11) leaves it out.
"""

from __future__ import annotations

import sys


def python(executable: str | None = None) -> list[str]:
    """Give the beginning of a command line that starts Python, by default the one that runs this."""
    return [executable or sys.executable, "-P"]
