"""The commands of the login node: `mpips run`, `doctor`, `inspect` and the rest, one module each.

`launching` starts runs, `runs` works on run directories, `models` on checkpoints, data and models.
A command imports what it needs when it runs, so that `mpips --help` is fast.
"""

from mpips.cli.interruption import silent

# Before `main` handles Ctrl-C, it would end in a traceback.
with silent():
    from mpips.cli.main import main

__all__ = ["main"]
