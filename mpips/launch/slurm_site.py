"""The site file: settings that are the same for all jobs on one cluster, in a small TOML file.

It is `--site FILE`, else `$MPIPS_SITE`, else `~/.config/mpips/site.toml`, or none. Its values go into batch scripts:
those that Slurm parses must match a strict pattern, since Slurm's quoting there is unreliable; those that the script
itself uses are quoted (`mpips.launch.sbatch`), and may be any text without control characters.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mpips import typed
from mpips.config.toml_text import line_of, read_toml
from mpips.errors import InputError
from mpips.process import user_folders

WORD = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_.,:+@/-]*")
"""A partition, an account, a module: no blanks, quotes, or special characters of a shell or Slurm."""

OPTION = re.compile(r"--([a-z][a-z0-9-]*)(=[A-Za-z0-9_.,:+@%/&|*()\[\]=-]+)?")
"""A further option of sbatch: --NAME or --NAME=VALUE, in one word."""

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

SET_ELSEWHERE = {
    "job-name": "the job file's [job] name",
    "nodes": "--nodes",
    "ntasks": "the job file's [layout]",
    "ntasks-per-node": "--ntasks-per-node",
    "cpus-per-task": "--cpus-per-task",
    "mincpus": "--ntasks-per-node",
    "time": "--time",
    "array": "--seeds or --sweep",
    "signal": "--grace",
    "requeue": "--requeue",
    "no-requeue": "--requeue",
    "open-mode": "mpips, which appends",
    "wrap": "mpips",
    "parsable": "mpips",
    "chdir": "the folder that mpips is called in",
    "distribution": "mpips, which places ranks round-robin",
    "partition": "--partition",
    "account": "--account",
    "qos": "--qos",
}
"""Options of sbatch that cannot be set here, and the settings to use instead."""


@dataclass(frozen=True)
class Site:
    """Settings of all jobs on a cluster. `mpips render --help` names the file."""

    partition: str = ""
    """sbatch --partition."""
    account: str = ""
    """sbatch --account."""
    qos: str = ""
    """sbatch --qos."""
    options: tuple[str, ...] = ()
    """Further options of sbatch, such as "--constraint=ib" or "--mail-type=END"; --NAME or --NAME=VALUE each."""
    ntasks_per_node: int = field(default=0, metadata={"at_least": 0, "at_most": 1 << 20})
    """Ranks per node unless --ntasks-per-node is given; 0: as many as the job needs on its nodes."""
    launcher: Literal["mpirun", "srun"] = "mpirun"
    """Launcher of the ranks: that of the MPI that mpi4py loads (needed for live recovery), or srun."""
    pmi: str = ""
    """srun --mpi, where it is not pmix (Open MPI) or pmi2 (MPICH and Intel MPI): "cray_shasta", "pmix_v4"."""
    module_paths: tuple[str, ...] = ()
    """Folders for `module use`."""
    modules: tuple[str, ...] = ()
    """Modules to load, in this order."""
    setup: str = ""
    """A file that the job sources after loading the modules; it runs unchecked."""
    python: str = ""
    """The Python that has mpips; default: the one that renders the script."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables to export after all that, literally: nothing in them is expanded."""

    def __post_init__(self) -> None:
        for name in ("partition", "account", "qos", "pmi"):
            if value := getattr(self, name):
                check_word(name, value)
        for name in ("modules", "module_paths"):
            for value in getattr(self, name):
                check_word(name, value)
        for option in self.options:
            check_option("options", option)
        for name in ("setup", "python"):
            if (value := getattr(self, name)) and not value.startswith("/"):
                raise ValueError(f"{name} must be an absolute path, got {value!r}")
            check_text(name, value)
        for name, value in self.environment.items():
            if not VARIABLE.fullmatch(name):
                raise ValueError(f"environment: {name!r} is not a variable name")
            check_text(f"environment.{name}", value)


def check_word(name: str, value: str) -> None:
    """Raise ValueError unless the value is one plain word for Slurm and a shell."""
    if not WORD.fullmatch(value):
        raise ValueError(f"{name} must be one word of letters, digits and _.,:+@/-, got {value!r}")


def check_option(name: str, option: str) -> None:
    """Raise ValueError unless an option of sbatch has the form --NAME or --NAME=VALUE and may be set here."""
    found = OPTION.fullmatch(option)
    if found is None:
        raise ValueError(
            f"{name}: write --NAME or --NAME=VALUE, in letters, digits and _.,:+@%/&|*()[]=-, got {option!r}"
        )
    if found[1] in SET_ELSEWHERE:
        raise ValueError(f"{name}: --{found[1]} is decided by {SET_ELSEWHERE[found[1]]}")


def check_text(name: str, value: str) -> None:
    """Raise ValueError for control characters, newlines, and invalid text."""
    kinds = {unicodedata.category(each) for each in value}
    if "Cs" in kinds:
        raise ValueError(f"{name} must be UTF-8, got {value!r}")
    if kinds & {"Cc", "Zl", "Zp"}:
        raise ValueError(f"{name} must have no newline or other control character, got {value!r}")


def find(named: str | None, environ: Mapping[str, str]) -> Path | None:
    """Return the path of the site file; None if there is none.

    Raises:
        InputError: the named one does not exist.
    """
    for who, path in (("--site", named), ("MPIPS_SITE", environ.get("MPIPS_SITE") or None)):
        if path is not None:
            if not Path(path).is_file():
                raise InputError(f"{who} {path}: no such file")
            return Path(path)
    config = user_folders.config(environ)
    file = None if config is None else config / "mpips" / "site.toml"
    return file if file is not None and file.is_file() else None


def load(path: Path | None) -> Site:
    """Read a site file; the defaults where there is none.

    Raises:
        InputError: one line with the error, its line, and a correct value.
    """
    if path is None:
        return Site()
    text, table = read_toml(path, "site file")
    try:
        return typed.build(Site, table)
    except typed.InvalidValue as error:
        line = line_of(text, error.path)
        raise InputError(f"{path}{f':{line}' if line else ''}: {error}") from error
