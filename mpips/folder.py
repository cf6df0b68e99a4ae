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
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from mpips.errors import ClosedError, InputError
from mpips.files import open_own, read_text, replacing
from mpips.plain import Nulls, plain


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
                return cls(path)
            except FileExistsError:
                number += 1
            except OSError as error:
                raise InputError(
                    f"{path}: the run folder cannot be made: {error.strerror or error}"
                ) from None

    @classmethod
    def claim(cls, path: str | Path, resume: bool = False) -> RunFolder:
        """Take a folder that the user named.

        A folder that holds a run already is taken only to resume; its `result.json` is then set aside, so
        that nobody reads an old verdict as the new one, and its trace likewise.

        Raises:
            InputError: it holds a run already, or it is no folder, or it cannot be made.
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
        if resume:
            try:
                folder._set_aside()
            except OSError as error:
                raise InputError(
                    f"{path}: the run before cannot be set aside: {error.strerror or error}"
                ) from None
        elif folder.run.exists() or folder.result.exists():
            raise InputError(
                f"{path}: holds a run already; name another --run-dir, or go on with it by --resume latest"
            )
        return folder

    def _set_aside(self) -> None:
        if self.result.exists():
            os.replace(self.result, self.path / "result.previous.json")
        if self.run.exists():  # it stays, too: without it the folder is no run's
            write_text(self.path / "run.previous.json", read_text(self.run, follow=False))
        for folder in (self.trace, self.record):
            if folder.exists():
                before = folder.with_name(f"{folder.name}.previous")
                shutil.rmtree(before, ignore_errors=True)
                os.replace(folder, before)

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
        """Read `result.json`; None when the run did not get to write one."""
        try:
            result = json.loads(self.result.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return result if isinstance(result, dict) else None


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


class Lines:
    """A file of JSON lines that grows: each line is in the file, whole, when `append` returns.

    Use it with `with`, or call `close`, any number of times.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = FileIO(open_own(path, append=True), "a")

    def append(self, value: Mapping[str, Any]) -> None:
        """Write one object as one line; what is not finite, and what JSON cannot say, as null.

        Raises:
            ClosedError: after `close`.
            OSError: it cannot be written; names the file.
        """
        if self._file is None:
            raise ClosedError(f"{self.path} was closed")
        line = json.dumps(plain(value, Nulls()), allow_nan=False, separators=(", ", ": ")).encode() + b"\n"
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Lines:
        """Give itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file."""
        self.close()
