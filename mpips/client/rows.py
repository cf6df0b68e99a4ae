"""The checkpoints of a run, wherever this process is, and their vectors."""

from __future__ import annotations

import os
from pathlib import Path

from mpips.checkpoint.loading import load_range, vectors
from mpips.config.program import VECTORS
from mpips.errors import CheckpointError, InputError
from mpips.files import hdf5
from mpips.keys import KEY64, KEY128, ascend, from_pairs
from mpips.provenance import run_json
from mpips.ranges import ALL
from mpips.rundir.folder import RunFolder
from mpips.storage.segment import Rows


def checkpoints_of(folder: RunFolder) -> Path:
    """Return the folder of a run's checkpoints, whatever the present working folder. InputError: it is no run."""
    job, about = folder.read_job(), run_json.read_run(folder) or {}
    head, where = job.get("job", {}), str(job.get("checkpoint", {}).get("directory", ""))
    if where:
        return Path(str(head.get("base", "")), os.path.expanduser(where))
    return Path(about.get("working_directory", ""), "checkpoints", str(head.get("name", "")))


def newest_checkpoint(folder: RunFolder) -> Path | None:
    """Return the newest checkpoint that a run can resume from; None if there is none. InputError: it is no run."""
    return run_json.latest(folder, checkpoints_of(folder))


def rows_at_end(folder: RunFolder, name: str | None) -> Rows | None:
    """Read a vector that a completed run has left in its folder, None: the only one; None if there is none of the name.

    Raises:
        InputError: the file is damaged.
    """
    path = folder.path / VECTORS
    if (folder.read_result() or {}).get("status") != "completed" or not path.exists():
        return None
    try:
        with hdf5.reading(path, follow=False) as file:
            if name is None and len(file) == 1:
                (name,) = file
            if name not in file:
                return None
            keys, values = (hdf5.array(file[name], each) for each in ("keys", "values"))
        keys = from_pairs(keys)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is damaged: {' '.join(str(error).split())}") from None
    if values.ndim != 2 or len(keys) != len(values):
        raise InputError(f"{path}: is damaged: its arrays have wrong sizes")
    if keys.dtype not in (KEY64, KEY128) or not ascend(keys):
        raise InputError(f"{path}: is damaged: its keys do not ascend")
    return Rows(keys, values, {})


def rows_of(checkpoint: Path, name: str | None) -> Rows:
    """Read a vector of a checkpoint; None: the only one.

    Raises:
        CheckpointError: it has no such vector, or is damaged.
    """
    # Others belong to a vector, such as its history.
    names = sorted(each for each in vectors(checkpoint) if "." not in each)
    if name is None and len(names) != 1:
        raise CheckpointError(
            f"{checkpoint}: choose a vector by --vector NAME; it has: {', '.join(names) or 'none'}"
        )
    return load_range(checkpoint, name or names[0], [ALL])
