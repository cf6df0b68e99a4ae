"""The user's folders: home, configuration and cache.

In a container, under cron and in a systemd service, HOME may be unset, missing or another user's, and the user may have
no entry in the system's table. A folder that does not exist is None.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path

NONE = "/nonexistent"
"""The value of HOME for child processes that need one where there is none."""


def home(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the home folder: HOME, or else that of the system's table; None if it does not exist."""
    named = environ.get("HOME", "")
    if not named:
        try:
            named = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            return None
    return Path(named) if os.path.isabs(named) and os.path.isdir(named) else None


def config(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder of the user's configuration: XDG_CONFIG_HOME, or else `.config` in the home folder."""
    return _folder("XDG_CONFIG_HOME", ".config", environ)


def cache(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the user's cache folder: XDG_CACHE_HOME, or else `.cache` in the home folder."""
    return _folder("XDG_CACHE_HOME", ".cache", environ)


def _folder(variable: str, name: str, environ: Mapping[str, str]) -> Path | None:
    named = environ.get(variable, "")
    if os.path.isabs(named):
        return Path(named)
    folder = home(environ)
    return None if folder is None else folder / name
