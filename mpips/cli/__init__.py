"""The commands of the login node: `mpips run`, `doctor`, `inspect` and the rest, one module each.

`launching` starts runs, `runs` is about run directories, `models` about checkpoints, data and models.
Nothing is imported here that a command does not need: `mpips --help` answers at once.
"""

from mpips.cli.main import main

__all__ = ["main"]
