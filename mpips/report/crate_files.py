"""The files that a crate packs (`mpips.report.ro_crate`): regular files only, the run's own without personal data."""

from __future__ import annotations

import os
import pwd
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mpips.errors import InputError
from mpips.files.safe_open import open_regular, read_bytes
from mpips.process import user_folders
from mpips.rundir.folder import RunFolder, write_json

COPIED = ("job.toml", "run.json", "result.json", "metrics.jsonl")
"""A run's own files, all of them text."""
METADATA = "ro-crate-metadata.json"
"""The name that no other file of a crate may have."""
PERSONAL = re.compile(r"(^|_)(USER|UID|GID|ACCOUNT|GROUP)(_|$)")
"""Environment variables that identify a person."""


def stage(folder: RunFolder, facts: Mapping[str, Any], staged: Path, personal: bool) -> None:
    """Copy the run's own files (`COPIED`), as far as there are any, without personal data unless that is wanted.

    Raises:
        InputError: one cannot be read, or is not a regular file.
    """
    names = set() if personal else _names(folder, facts)
    for name in COPIED:
        source = folder.path / name
        try:
            with open_regular(source, follow=False) as file:
                when = os.fstat(file.fileno())
            text = read_bytes(source, follow=False).decode("utf-8", "replace")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InputError(f"{source}: {error.strerror}") from None
        if name == "run.json" and not personal:
            shown = dict(facts)
            shown["environment"] = {
                key: value for key, value in facts.get("environment", {}).items() if not PERSONAL.search(key)
            }
            if shown["environment"] != facts.get("environment", {}):
                write_json(staged / name, shown)
                text = (staged / name).read_text(encoding="utf-8")
        (staged / name).write_text(impersonal(text, names), encoding="utf-8")
        os.utime(staged / name, ns=(when.st_atime_ns, when.st_mtime_ns))


def take(source: Path, staged: Path, limit: float, *, follow: bool = False) -> Path | None:
    """Copy a file to be packed, so that the packed bytes are the checked ones; None if it must not be packed."""
    target = staged / source.name
    with suppress(OSError), open_regular(source, follow=follow) as file:
        about = os.fstat(file.fileno())
        if about.st_size <= limit and target.name != METADATA:
            # Two files of one name would collide in the crate.
            with target.open("xb") as copy:
                shutil.copyfileobj(file, copy)
            os.utime(target, ns=(about.st_atime_ns, about.st_mtime_ns))
            return target
    return None


def _names(folder: RunFolder, facts: Mapping[str, Any]) -> set[str]:
    """Return the user names that a run's files may contain: of the run, and of the export."""
    home = user_folders.home()
    names = {str(facts.get("environment", {}).get("SLURM_JOB_USER", "")), "" if home is None else home.name}
    for uid in (os.getuid(), folder.run.stat().st_uid):
        with suppress(KeyError):
            names.add(pwd.getpwuid(uid).pw_name)
    return names - {"", "root", "home"}


def impersonal(text: str, names: Iterable[str]) -> str:
    """Remove user names from the paths in a text: ``/home/NAME/x`` becomes ``~/x``, ``/data/NAME`` ``/data/user``."""
    for name in names:
        one = re.escape(name)
        text = re.sub(rf"/(?:home|users|Users|u)/{one}(?![\w.-])", "~", text)
        text = re.sub(rf"(?<=/){one}(?![\w.-])", "user", text)
    return text
