"""The user's own folders, where there are any.

In a container, under cron and in a service of systemd, HOME may be unset, missing or somebody else's, and the user may
have no entry in the system's table. Nobody here fails for that: what is not there is None.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path

NONE = "/nonexistent"
"""What HOME is set to where there is none and a program wants one."""


def home(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Give the home folder: HOME, else what the system's table says; None where there is no such folder."""
    named = environ.get("HOME", "")
    if not named:
        try:
            named = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            return None
    return Path(named) if os.path.isabs(named) and os.path.isdir(named) else None


def config(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Give the folder of the user's configuration: XDG_CONFIG_HOME, else `.config` at home."""
    return _folder("XDG_CONFIG_HOME", ".config", environ)


def cache(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Give the folder of what can be made again: XDG_CACHE_HOME, else `.cache` at home."""
    return _folder("XDG_CACHE_HOME", ".cache", environ)


def _folder(variable: str, name: str, environ: Mapping[str, str]) -> Path | None:
    named = environ.get(variable, "")
    if os.path.isabs(named):
        return Path(named)
    folder = home(environ)
    return None if folder is None else folder / name
