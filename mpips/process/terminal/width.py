"""The width of the terminal that standard output is."""

from __future__ import annotations

import shutil
import sys

UNLIMITED = 1000
"""Characters of a line where the output is no terminal: other programs read it line by line."""


def width() -> int:
    """Return the number of characters of a line of the terminal; `UNLIMITED` where the output is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else UNLIMITED
