"""What all estimators do to be fitted: a run in a folder of its own, which also holds its data."""

from __future__ import annotations

import io
import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mpips.client.given_job import overrides, plain
from mpips.client.run import Run, run
from mpips.config.job_file import load
from mpips.config.program import load_program
from mpips.config.toml_text import write_toml
from mpips.errors import InputError, RemoteError
from mpips.rank.twin import run_twin
from mpips.rundir import claim
from mpips.rundir.folder import RunFolder

TWIN = "twin"


@contextmanager
def fit_folder(named: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Return a new folder for one fit; a temporary one is removed. Searches fit copies of an estimator at once."""
    if named is None:
        with tempfile.TemporaryDirectory(prefix="mpips-fit-") as temporary:
            yield Path(temporary)
        return
    Path(named).mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = Path(named).absolute() / f"fit-{number}"
        with suppress(FileExistsError):
            folder.mkdir()
            break
    yield folder


def run_job(
    estimator: Any,
    folder: Path,
    examples: int,
    head: dict[str, Any],
    data: dict[str, Any],
    settings: dict[str, dict[str, Any]],
) -> Run:
    """Run a job in a new folder that holds its data; `head`, `data` and `settings` are tables of the job."""
    workers = min(estimator.workers, examples)
    tables = {
        "job": {"base": str(folder), **head},
        "layout": {"servers": estimator.servers, "workers": workers, "spares": estimator.spares},
        "checkpoint": {"directory": str(folder / "checkpoints")},
        "data": data,
        **settings,
    }
    job = folder / "job.toml"
    job.write_text(write_toml(plain(tables, "")))
    runs = folder / "run"
    if estimator.launcher != TWIN:
        return run(job, set=estimator.settings, run_dir=runs, launcher=estimator.launcher)
    loaded, claimed = load(job, overrides(estimator.settings or {})), RunFolder.claim(runs)
    try:
        run_twin(loaded, load_program(loaded.program, loaded.base), claimed, None, io.StringIO())
    except RemoteError as error:
        if error.is_input:
            raise InputError(error.text) from None
        raise
    finally:
        claim.release(claimed.path)
    return Run(runs)
