"""A run's folder: every path of a run is a property here, and every file in it is written from here.

Files that others read while the run goes on, or after it was killed, are replaced whole (temporary file,
fsync, rename): whoever sees `result.json` sees all of it. Lines of `metrics.jsonl` and of the logs are
appended one at a time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mpips.errors import InputError
from mpips.files.json_lines import Lines as Lines
from mpips.files.json_lines import Read, read_lines
from mpips.files.json_shape import ANY, LARGEST, NUMBER, Each, Table, misfit, read_json
from mpips.files.json_values import plain
from mpips.files.safe_open import read_text, replacing
from mpips.rundir.claim import Claim, release, take

_STATE = {
    "dirty?": (bool, None),
    **{f"{name}?": (str, None) for name in ("commit", "diff_sha256", "record_sha256", "remote", "problem")},
}
_FILE = {"bytes?": int, "sha256?": str, "sample_sha256?": str, "modified?": str}
_TEXTS = (
    "id", "folder", "started", "ended", "working_directory", "host", "platform", "cpu", "python", "executable", "hdf5",
    "blas", "job_digest", "job_file", "mpi",
)  # fmt: skip

RUN = {
    **{f"{name}?": str for name in _TEXTS},
    "cores?": int,
    "argv?": Each(str),
    "packages?": Table(str),
    "environment?": Table(str),
    "modules?": Each({"name": str}),
    "batch?": Table(ANY),
    "source?": (_STATE, None),
    "repository?": (_STATE, None),
    "job?": Table(Table(ANY)),
    "program?": {"name?": str, "file?": str, "sha256?": (str, None)},
    "ranks?": Each(
        {
            "rank?": int,
            "role?": str,
            "host?": str,
            "index?": int,
            "pid?": int,
            "group?": str,
            "ranges?": Each(str),
        }
    ),
    "inputs?": Each({"role?": str, "path?": str, **_FILE}),
    "ancestry?": Each(
        {"checkpoint": str, "step?": (int, None), "id?": str, "manifest_sha256?": str, "commit?": str}
    ),
    "exit?": {"status?": str, "reason?": str},
    "outputs?": {
        "files?": Each({"name": str, **_FILE}),
        "checkpoints?": Each({"folder": str, "step?": (int, None), "manifest_sha256": str}),
        "parameters_sha256?": str,
    },
}
"""What `run.json` is, and the provenance in a checkpoint, as far as it says anything."""

RESULT = {
    "status?": str,
    "exit_code?": (int, None),
    "error?": str,
    "stopped_by?": (str, None),
    "seconds?": Table((*NUMBER, None)),
    "metrics?": (Table(ANY), None),
    "waiting?": NUMBER,
    "traffic?": Table(ANY),
    "layout?": Table(ANY),
    "parameters_sha256?": str,
    "ranks?": Each({"rank?": int, "role?": str}),
    "recoveries?": Each({"rank?": int, "role?": str, "cause?": str, "seconds?": NUMBER}),
    "first_failure?": {
        "rank": int,
        "role": str,
        "host": str,
        "wall": NUMBER,
        "error": str,
        "cause?": (str, None),
        "log?": (str, None),
    },
}
"""What `result.json` is, as far as it says anything."""

JOB = Table(Table(ANY))
"""What `job.toml` is."""


def utc_now() -> datetime:
    """Give the time of day in UTC, to the second."""
    return datetime.now(UTC).replace(microsecond=0)


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder; made when first written to.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.held: Claim | None = None
        """The claim by which the folder is this process's, if it is."""

    def __repr__(self) -> str:
        """Show the path."""
        return f"RunFolder({str(self.path)!r})"

    @classmethod
    def create(cls, name: str, runs: str | Path = "runs", now: Callable[[], datetime] = utc_now) -> RunFolder:
        """Make a new folder ``runs/NAME-UTC``; a run of the same second gets ``-2``, ``-3`` ...

        Raises:
            InputError: the folder cannot be made.
        """
        stem = f"{re.sub(r'[^A-Za-z0-9._+-]', '_', name)}-{now():%Y%m%dT%H%M%SZ}"
        number = 1
        while True:
            path = Path(runs) / (stem if number == 1 else f"{stem}-{number}")
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                number += 1
            except OSError as error:
                raise InputError(
                    f"{path}: the run folder cannot be made: {error.strerror or error}"
                ) from None
        folder = cls(path)
        folder.held = take(folder.path)
        return folder

    @classmethod
    def claim(cls, path: str | Path, resume: bool = False, handed: str = "") -> RunFolder:
        """Take a folder that the user named.

        A folder that holds a run already is taken only to resume; its `result.json` is then set aside, so
        that nobody reads an old verdict as the new one, and its trace likewise.

        Args:
            path: the folder; made if need be.
            resume: whether the run goes on from a checkpoint.
            handed: the id of the claim of the launcher that has started this process, see `mpips.rundir.claim`.

        Raises:
            InputError: it holds a run already, or another start has it, or it is no folder, or it cannot be made.
        """
        folder = cls(path)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise InputError(f"{path}: the run folder is a file") from None
        except OSError as error:
            raise InputError(f"{path}: the run folder cannot be made: {error.strerror or error}") from None
        if not os.access(folder.path, os.W_OK | os.X_OK):
            raise InputError(f"{path}: the run folder cannot be written")
        for each in (folder.logs, folder.trace, folder.record, folder.replay, folder.path / "orders"):
            if each.is_symlink():  # ranks would write where it leads to
                raise InputError(f"{each}: is a symbolic link, which is not followed; name another --run-dir")
        if not resume:
            folder._check_new(path)
        folder.held = take(folder.path, handed, folder.result)
        try:
            if resume:
                folder._set_aside()
            else:
                folder._check_new(path)  # since it was looked at, another start may have come and gone
        except OSError as error:
            release(folder.path)
            raise InputError(
                f"{path}: the run before cannot be set aside: {error.strerror or error}"
            ) from None
        except InputError:
            release(folder.path)
            raise
        return folder

    def handed_on(self) -> list[str]:
        """Give the arguments by which ranks that this process starts take the folder over."""
        return ["--run-dir", str(self.path), *([] if self.held is None else ["--claim", self.held.id])]

    def _check_new(self, path: str | Path) -> None:
        if self.run.exists() or self.result.exists():
            raise InputError(
                f"{path}: holds a run already; name another --run-dir, or go on with it by --resume latest"
            )

    def _set_aside(self) -> None:
        if self.result.exists():
            os.replace(self.result, self.path / "result.previous.json")
        if self.run.exists():  # it stays, too: without it the folder is no run's
            write_text(self.path / "run.previous.json", read_text(self.run, follow=False))
        for folder in (self.trace, self.record):
            if folder.exists():
                previous = folder.with_name(f"{folder.name}.previous")
                shutil.rmtree(previous, ignore_errors=True)
                os.replace(folder, previous)

    @property
    def job(self) -> Path:
        """The job as resolved."""
        return self.path / "job.toml"

    @property
    def run(self) -> Path:
        """Provenance: what ran, where, of which versions, as which ranks."""
        return self.path / "run.json"

    @property
    def result(self) -> Path:
        """What came of it; written last."""
        return self.path / "result.json"

    @property
    def metrics(self) -> Path:
        """One line of JSON per event of the training."""
        return self.path / "metrics.jsonl"

    @property
    def logs(self) -> Path:
        """The ranks' logs."""
        return self.path / "logs"

    def log(self, rank: int) -> Path:
        """One rank's log."""
        return self.logs / f"rank-{rank:04d}.jsonl"

    @property
    def trace(self) -> Path:
        """The ranks' traces."""
        return self.path / "trace"

    def trace_of(self, rank: int) -> Path:
        """One rank's trace."""
        return self.trace / f"rank-{rank:04d}.bin"

    @property
    def record(self) -> Path:
        """What took effect in which order, if the run is recorded."""
        return self.path / "record"

    @property
    def replay(self) -> Path:
        """The course of the run that this one does again."""
        return self.path / "replay"

    @property
    def report(self) -> Path:
        """The report that `mpips report` writes."""
        return self.path / "report.html"

    def read_result(self) -> dict[str, Any] | None:
        """Read `result.json`; None when the run did not get to write one.

        Raises:
            InputError: it is damaged, or not what a run writes.
        """
        return self._read(self.result, RESULT)

    def read_run(self) -> dict[str, Any] | None:
        """Read `run.json`; None if there is none. InputError as `read_result`."""
        return self._read(self.run, RUN)

    def read_job(self) -> dict[str, Any]:
        """Read the tables of `job.toml`. InputError if there is none, or as `read_result`."""
        try:
            job: dict[str, Any] = tomllib.loads(read_text(self.job, follow=False, most=LARGEST))
        except OSError as error:
            raise InputError(f"{self.job}: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.job}: is damaged: no TOML: {' '.join(str(error).split())}") from None
        problem = misfit(job, JOB)
        if problem:
            raise InputError(f"{self.job}: is not what a run writes: {problem}")
        return job

    def read_metrics(self) -> Read:
        """Read `metrics.jsonl`, as far as there is one. InputError if it is no regular file, or too large."""
        try:
            return read_lines(self.metrics)
        except OSError as error:
            raise InputError(f"{self.metrics}: {error.strerror or error}") from None

    def _read(self, path: Path, form: Any) -> dict[str, Any] | None:
        try:
            read: dict[str, Any] = read_json(path, form)
        except FileNotFoundError:
            return None
        return read


def write_text(path: Path, text: str) -> None:
    """Replace a file by a text, whole or not at all, and durably: also the name survives a crash.

    Names of files that are not UTF-8 stand in it as their bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a file by a JSON object; numpy's numbers and arrays count as such, what is not finite as null."""
    write_text(path, json.dumps(plain(value, _null), indent=2, allow_nan=False) + "\n")


def _null(key: str, value: Any, why: str) -> None:
    """Let a number that is not finite be null; TypeError for what is no data."""
    if not isinstance(value, float):
        raise TypeError(f"{key} {why}")
