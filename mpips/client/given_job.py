"""The job that a caller gives: a job file, or its tables as a dict, for which a file is written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mpips.config.toml_text import toml_value, write_toml
from mpips.errors import JobError, cannot_write
from mpips.files.json_values import json_data, keep
from mpips.files.safe_open import replacing

JobLike = str | os.PathLike[str] | Mapping[str, Mapping[str, Any]]
"""A job file, or the tables of one."""
RUNS = Path("runs")
"""The folder for the file: ranks of other hosts read it, too."""


@contextmanager
def job_file(job: JobLike) -> Iterator[Path]:
    """Return a job's file; one that is written for a dict is removed at the end.

    Relative paths in a dict start from the working folder, unless its `job.base` is another. A key whose value is None
    is not set.

    Raises:
        JobError: a value of the dict has no form in TOML, or it is not a dict of tables.
        InputError, OSError: the file cannot be written.
    """
    if not isinstance(job, Mapping):
        yield Path(job)
        return
    for name, table in job.items():
        if not isinstance(table, Mapping):
            raise JobError(f"job: {name!r} must be a table: a dict of its keys, not {table!r}")
    tables = {
        str(name): {
            str(key): plain(value, f"{name}.{key}") for key, value in table.items() if value is not None
        }
        for name, table in job.items()
    }
    tables["job"] = {"base": os.getcwd()} | tables.get("job", {})
    path = RUNS / f".job-{secrets.token_hex(4)}.toml"
    is_new = not RUNS.exists()
    try:
        RUNS.mkdir(exist_ok=True)
        with replacing(path, "w", durable=False) as file:
            file.write(write_toml(tables))
    except OSError as error:
        raise cannot_write(path, error) from None
    try:
        yield path
    finally:
        with suppress(OSError):
            path.unlink()
        if is_new:
            # Unless there is a run in it.
            with suppress(OSError):
                RUNS.rmdir()


def overrides(settings: Mapping[str, Any]) -> list[str]:
    """Return overrides, as for `--set`: {"sparse_lr.l1": 0.5} or {"sparse_lr": {"l1": 0.5}}.

    Raises:
        JobError: a value has no form in TOML, or a key no table.
    """
    found = []
    for name, value in settings.items():
        keys = {name: value}
        if isinstance(value, Mapping) and "." not in name:
            keys = {f"{name}.{key}": each for key, each in value.items()}
        for key, each in keys.items():
            if "." not in key:
                raise JobError(f"set: {key!r} must be a table and its key, as in 'layout.servers'")
            found.append(f"{key}={toml_value(plain(each, key))}")
    return found


def plain(value: Any, key: str) -> Any:
    """Return a value as TOML has it: numpy's numbers and arrays, tuples and paths are converted.

    Raises:
        JobError: it has no form in TOML.
    """
    return json_data(value, keep, key)
