"""A run's folder: each path of a run is a property, and its files are written by this module.

Files that may be read during a run, or after it was killed, are replaced atomically (temporary file, fsync, rename), so
that no reader sees a part of `result.json`. Lines of `metrics.jsonl` and of the logs are appended one at a time.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mpips.errors import InputError, cannot_write
from mpips.files.json_lines import JsonLines, read_lines
from mpips.files.json_lines import JsonLinesWriter as JsonLinesWriter
from mpips.files.json_schema import ANY, LARGEST_FILE, NUMBER, Each, Table, read_json, schema_error
from mpips.files.json_values import json_data
from mpips.files.listing import refresh
from mpips.files.safe_open import make_folder, read_bytes, read_text, replacing
from mpips.process.first_rank import SUPERVISED
from mpips.rundir import output_files
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
    "earlier?": Each(str),
    "exit?": {"status?": str, "reason?": str, "before_training?": bool},
    "outputs?": {
        "files?": Each({"name": str, **_FILE}),
        "own?": Each({"name": str, **_FILE}),
        "checkpoints?": Each({"folder": str, "step?": (int, None), "manifest_sha256": str}),
        "parameters_sha256?": str,
    },
}
"""The form of `run.json`, and of the provenance in a checkpoint; keys may be missing."""

RESULT = {
    "status?": str,
    "exit_code?": (int, None),
    "error?": str,
    "stopped_by?": (str, None),
    "before_training?": bool,
    "evaluation_cut_by?": (str, None),
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
"""The form of `result.json`; keys may be missing."""

JOB = Table(Table(ANY))
"""The form of `job.toml`."""


def utc_now() -> datetime:
    """Return the current time in UTC, in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


class RunFolder:
    """The folder of one run.

    Args:
        path: the folder; made when first written to.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()
        self.held: Claim | None = None
        """This process's claim of the folder, if it has one."""
        self.start = ""
        """The random id of this start, the same on all ranks of the run and in `run.json`; "" outside of a run."""

    def __repr__(self) -> str:
        """Show the path."""
        return f"RunFolder({str(self.path)!r})"

    @classmethod
    def create(cls, name: str, runs: str | Path = "runs", now: Callable[[], datetime] = utc_now) -> RunFolder:
        """Create a new folder ``runs/NAME-UTC``; a run of the same second gets ``-2``, ``-3`` ...

        Raises:
            InputError: the folder cannot be made.
            OSError: there is no room for it.
        """
        stem = f"{re.sub(r'[^A-Za-z0-9._+-]', '_', name)}-{now():%Y%m%dT%H%M%SZ}"
        number = 1
        cls(Path(runs) / stem)._check_place()
        while True:
            path = Path(runs) / (stem if number == 1 else f"{stem}-{number}")
            try:
                make_folder(path)
                break
            except FileExistsError:
                number += 1
            except OSError as error:
                raise cannot_write(path, error, "the run folder cannot be made") from None
        folder = cls(path)
        try:
            folder.held = take(folder.path)
        except OSError:
            with suppress(OSError):
                path.rmdir()
            raise
        return folder

    @classmethod
    def claim(cls, path: str | Path, resume: bool = False, launcher_claim: str = "") -> RunFolder:
        """Take a folder that the user named.

        A folder that holds a run already is taken only to resume; its `result.json` and trace are then renamed, so that
        the old result is not read as the new one.

        Args:
            path: the folder; created if necessary.
            resume: whether the run continues from a checkpoint.
            launcher_claim: the id of the claim of the launcher that has started this process, see `mpips.rundir.claim`.

        Raises:
            InputError: it holds a run already, is claimed by another start, is not a folder, or cannot be created.
            OSError: there is no room for what a start writes.
        """
        folder = cls(path)
        folder._check_place()
        try:
            make_folder(folder.path, exist_ok=True)
        except FileExistsError:
            raise InputError(f"{path}: the run folder is a file") from None
        except OSError as error:
            raise cannot_write(path, error, "the run folder cannot be made") from None
        if not os.access(folder.path, os.W_OK | os.X_OK):
            raise InputError(f"{path}: the run folder cannot be written")
        output = folder.path / output_files.FOLDER
        for each in (folder.logs, folder.trace, folder.record, folder.replay, folder.path / "orders", output):
            # Ranks would write to its target.
            if each.is_symlink():
                raise InputError(f"{each}: is a symbolic link, which is not followed; name another --run-dir")
        if resume:
            folder._check_appendable()
        else:
            folder._check_new(path)
        folder.held = take(folder.path, launcher_claim, folder.has_result)
        try:
            if resume:
                # A client of NFS may show files that another host has renamed.
                refresh(folder.path)
                folder._set_aside()
                folder.remove_shared()
            else:
                # Another start may have begun and ended since the first check.
                folder._check_new(path)
        except OSError as error:
            release(folder.path)
            raise cannot_write(path, error, "the previous run cannot be moved") from None
        except InputError:
            release(folder.path)
            raise
        return folder

    def claim_arguments(self) -> list[str]:
        """Return the arguments by which ranks that this process starts take over the folder."""
        return ["--run-dir", str(self.path), *([] if self.held is None else ["--claim", self.held.id])]

    def claim_environment(self) -> dict[str, str]:
        """Return the variable by which these ranks know that this process reads their result, and reports it."""
        return {} if self.held is None else {SUPERVISED: self.held.id}

    def _check_place(self) -> None:
        """Raise InputError if the folder is in a checkpoint, or below a link to nothing, where none can be made."""
        for each in (self.path, *self.path.parents):
            if each.is_symlink() and not each.exists():
                raise InputError(f"{self.path}: the run folder cannot be made: {each} is a link to nothing")
            if each.name.startswith("step-") and os.path.lexists(each / "manifest.json"):
                raise InputError(
                    f"{self.path}: {each} is a checkpoint, which may be removed with all that is in it; name another"
                )

    def _check_new(self, path: str | Path) -> None:
        if self.run.exists() or self.result.exists():
            raise InputError(
                f"{path}: holds a run already; name another --run-dir, or continue it by --resume latest"
            )
        if self.has_own_job():
            return
        if os.path.lexists(self.job):
            raise InputError(
                f"{path}: has a job file, {self.job.name}, which the run would replace; name another --run-dir"
            )
        taken = [self.metrics, *self.logs.glob("rank-*.jsonl"), *self.trace.glob("rank-*.bin"), self.record]
        for each in taken:
            if os.path.lexists(each):
                raise InputError(
                    f"{each}: no run has written it, and a new one would; name another --run-dir"
                )

    def _check_appendable(self) -> None:
        """Raise InputError if a file or folder of an earlier start, perhaps of another user, cannot be written."""
        output = self.path / output_files.FOLDER
        folders = (self.logs, self.path / "orders", output)
        for each in (self.metrics, *folders, *self.logs.glob("rank-*.jsonl"), *output.glob("host-*")):
            needed = os.W_OK | os.X_OK if each in folders else os.W_OK
            if each.exists() and not os.access(each, needed):
                raise InputError(
                    f"{each}: is of an earlier start, and cannot be written; continue in another --run-dir, by "
                    "--resume CHECKPOINT"
                )

    def has_own_job(self) -> bool:
        """Return whether `job.toml` is one that a run has written: an earlier start, whose other files were moved."""
        try:
            return set(self.read_job().get("job", {})) >= {"program", "name", "seed", "base"}
        except InputError:
            return False

    def _set_aside(self) -> None:
        """Rename the files of the run before. Those of one that failed do not replace those of one that did not."""
        run, result = self.path / "run.previous.json", self.path / "result.previous.json"
        drops = self._failed(self.result) and not self._failed(result)
        # A copy: without run.json, the folder is not a run folder; first, since there may be no room for it.
        if self.run.exists() and not drops:
            with replacing(run) as file:
                file.write(read_bytes(self.run, follow=False))
        if self.result.exists():
            os.replace(self.result, result) if not drops else self.result.unlink()
        for folder in (self.trace, self.record):
            if folder.exists():
                previous = folder.with_name(f"{folder.name}.previous")
                shutil.rmtree(folder if drops and previous.exists() else previous, ignore_errors=True)
                with suppress(FileNotFoundError):
                    os.replace(folder, previous)

    def _failed(self, result: Path) -> bool:
        """Return whether a result is that of a run that failed, or there is none."""
        with suppress(InputError):
            return bool((self._read(result, RESULT) or {}).get("status", "failed") == "failed")
        return False

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
        """The result of the run; written last."""
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
        """The record of the run's events in order, if it is recorded."""
        return self.path / "record"

    @property
    def replay(self) -> Path:
        """The event history of the run that this one replays."""
        return self.path / "replay"

    @property
    def shared(self) -> Path:
        """Files that ranks keep for their successors in this start, until its end."""
        return self.path / f".shared-{self.start}"

    def make_shared(self) -> None:
        """Make the folder for them; without room for it, nothing is kept."""
        with suppress(OSError):
            self.shared.mkdir(exist_ok=True)

    def remove_shared(self) -> None:
        """Remove them, and those of starts that were killed; nothing else has such a name."""
        with suppress(OSError):
            for name in os.listdir(self.path):
                if re.fullmatch(r"\.shared-[0-9a-f]{32}(\.over)?", name):
                    path, over = self.path / name, self.path / f"{name.removesuffix('.over')}.over"
                    shutil.rmtree(over, ignore_errors=True)
                    # A rank may still write to it, which fails after this.
                    with suppress(OSError):
                        path.rename(over)
                    shutil.rmtree(over, ignore_errors=True)

    @property
    def fault_times(self) -> Path:
        """One line of JSON per injected fault."""
        return self.path / "strikes.jsonl"

    @property
    def report(self) -> Path:
        """The report that `mpips report` writes."""
        return self.path / "report.html"

    def read_result(self) -> dict[str, Any] | None:
        """Read `result.json`; None if the run has not written one.

        Raises:
            InputError: it is damaged, or not what a run writes.
        """
        return self._read(self.result, RESULT)

    def has_result(self) -> bool:
        """Return whether the run has written its result; a provisional one is that of a run that may still be alive."""
        with suppress(InputError):
            result = self.read_result()
            return result is not None and not result.get("provisional")
        return False

    def read_run(self) -> dict[str, Any] | None:
        """Read `run.json`; None if there is none. InputError as `read_result`."""
        return self._read(self.run, RUN)

    def read_job(self) -> dict[str, Any]:
        """Read the tables of `job.toml`. InputError if there is none, or as `read_result`."""
        try:
            job: dict[str, Any] = tomllib.loads(read_text(self.job, follow=False, most=LARGEST_FILE))
        except OSError as error:
            raise InputError(f"{self.job}: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{self.job}: is damaged: not TOML: {' '.join(str(error).split())}") from None
        problem = schema_error(job, JOB)
        if problem:
            raise InputError(f"{self.job}: is not what a run writes: {problem}")
        return job

    def read_metrics(self) -> JsonLines:
        """Read `metrics.jsonl`, as far as there is one. InputError if it is not a regular file, or too large."""
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
    """Replace a file by a text, atomically and durably: the new name survives a crash, too.

    Names of files that are not UTF-8 are written as their bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a file by a JSON object, see `json_of`."""
    write_text(path, json_of(value))


def json_of(value: Mapping[str, Any]) -> str:
    """Return a JSON object as text; numpy's numbers and arrays are converted, non-finite numbers are null.

    Raises:
        TypeError, ValueError: JSON cannot represent it.
    """
    return json.dumps(json_data(value, _null), indent=2, allow_nan=False) + "\n"


def _null(key: str, value: Any, why: str) -> None:
    """Replace a number that is not finite by null; TypeError for other values."""
    if not isinstance(value, float):
        raise TypeError(f"{key} {why}")
