"""Every error that mpips raises on purpose.

    MpipsError
    +-- InputError (ValueError)        what the user gave is wrong: one clear line, exit code 2
    |   +-- JobError                   the job file or an override
    |   |   +-- UsageError             its program makes an invalid call: unsorted keys, rows of another type
    |   +-- DataError                  a data file: names file and line
    |   +-- LayoutError                ranks and roles do not fit
    |   +-- CheckpointError            a checkpoint is missing, incomplete or of another job
    |   +-- RecordError                a record of a run is missing, incomplete, or cannot be replayed
    +-- ProtocolError (RuntimeError)   a message that no correct rank sends
    |   +-- FilterError                a filter cannot decode a message: it is damaged or of another filter
    +-- RemoteError (RuntimeError)     something failed on another rank; says which
    +-- CutShort (RuntimeError)        a call was ended early, since the run is to stop and does not need its result
    +-- WorkerLost (RuntimeError)      a worker died during a call: the program may continue without it
    +-- NoWorkerLeft (RuntimeError)    all workers have died, and there is no spare
    +-- ShardLost (RuntimeError)       all servers that held a shard have died
    +-- JournalLost (RuntimeError)     all ranks that held the scheduler's journal have died
    +-- Outdated (RuntimeError)        a followed model is further behind the run than the caller allows
    +-- RunFailed (RuntimeError)       a run that this process has started has failed
    +-- StopOverdue (RuntimeError)     a run that was asked to stop has not stopped in time
    +-- Diverged (RuntimeError)        a replay differs from the recorded run
    +-- ClosedError (RuntimeError)     used after close

Each is also a subclass of a builtin exception, so that `except ValueError` works.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpips.exit_codes import ExitCode

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Errors of a file system that is full or read-only: clear without a file's name."""


class MpipsError(Exception):
    """Root of the tree; never raised itself."""


class InputError(MpipsError, ValueError):
    """The user's input is wrong. Its text is one line: what, where, and what would be right."""


class JobError(InputError):
    """The job file or an override of it is wrong."""


class UsageError(JobError):
    """A program makes an invalid call. The report adds the program's file and line, the rank and its log."""


class DataError(InputError):
    """A data file is wrong."""


class LayoutError(InputError):
    """The ranks that were started cannot take the roles that the job asks for."""


class CheckpointError(InputError):
    """A checkpoint is missing, incomplete, damaged, or belongs to another job."""


class RecordError(InputError):
    """A record of a run is missing or incomplete, or the run cannot be replayed."""


class Diverged(MpipsError, RuntimeError):
    """A replay cannot continue as recorded. Its text says which rank waits for what."""


class ProtocolError(MpipsError, RuntimeError):
    """A message that no correct rank sends: wrong magic, truncated, or of an unknown kind."""


class FilterError(ProtocolError):
    """A filter cannot decode a message: it is damaged, truncated, or of another version."""


class ClosedError(MpipsError, RuntimeError):
    """A van, store or file was used after it was closed."""


class CutShort(MpipsError, RuntimeError):
    """A call of a worker was ended early: the run was asked to stop, and does not need its result."""


class WorkerLost(MpipsError, RuntimeError):
    """A worker has died, and with it its part of a collective call or aggregation.

    The scheduler's program gets this error from the call in progress, after all surviving workers have ended theirs; a
    worker's program gets it from pushes that were to be aggregated with those of the dead worker.
    """


class NoWorkerLeft(MpipsError, RuntimeError):
    """Every worker has died, and there is no spare. It is not a `WorkerLost`, since a retry is not possible."""


class ShardLost(MpipsError, RuntimeError):
    """Every server that held a shard has died: its parameters are lost. Its text says what would help."""


class StopOverdue(MpipsError, RuntimeError):
    """A run that was asked to stop has not finished its step in time. Its text says what it waits for."""


class Outdated(MpipsError, RuntimeError):
    """A model that follows a run is further behind it than `max_lag` allows; see `mpips.follow`."""


class RunFailed(MpipsError, RuntimeError):
    """A run that `mpips.run` has started has failed, not by wrong input.

    The text is a line: the reason, the rank that failed first, and how to resume. `folder` is the run's folder, None if
    there is none; `code` the exit code; `output` the last lines that the run has printed, such as a traceback.

    >>> error = RunFailed("rank 2 (worker on n1): ZeroDivisionError: division by zero", code=1)
    >>> error.code, error.folder
    (1, None)
    """

    def __init__(self, text: str, code: int = 1, folder: Path | None = None, output: str = "") -> None:
        super().__init__(text)
        self.code, self.folder, self.output = code, folder, output


class JournalLost(MpipsError, RuntimeError):
    """Every rank that held the scheduler's journal has died: no rank can take over the scheduler's program."""


class RemoteError(MpipsError, RuntimeError):
    """A task failed on another rank.

    `text` is the remote error in one line, `trace` its traceback; `at` is the program's line that raised it, if any;
    `is_input`: it is an `InputError`, which the user can correct; `is_usage`: a `UsageError`, which the program's
    author can correct; `is_environment`: files or MPI failed; `no_room`: the disk is full, or fails; `is_cut_short`: a
    `CutShort`. `asked` names the rank that issued the task, and its line of the program.
    """

    def __init__(
        self,
        rank: int,
        role: str,
        host: str,
        text: str,
        trace: str = "",
        is_input: bool = False,
        is_usage: bool = False,
        asked: str = "",
        at: str = "",
        is_environment: bool = False,
        no_room: bool = False,
        is_cut_short: bool = False,
    ) -> None:
        super().__init__(rank, role, host, text)
        self.rank = rank
        self.role = role
        self.host = host
        self.text = text
        self.trace = trace
        self.is_input = is_input
        self.is_usage = is_usage
        self.asked = asked
        self.at = at
        self.is_environment = is_environment
        self.no_room = no_room
        self.is_cut_short = is_cut_short

    def __str__(self) -> str:
        """Return which rank failed, for which caller, and why."""
        return f"{self.where}: {self.text}"

    @property
    def where(self) -> str:
        """The rank that failed, and the caller."""
        asked = f", for {self.asked}" if self.asked else ""
        return f"rank {self.rank} ({self.role} on {self.host}{asked})"

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any], sender: int) -> RemoteError:
        """Return the error of a message's metadata from rank `sender`, with defaults for missing fields."""
        return cls(
            int(meta.get("rank", sender)),
            str(meta.get("role", "?")),
            str(meta.get("host", "?")),
            str(meta.get("text", "failed")),
            str(meta.get("trace", "")),
            bool(meta.get("is_input", False)),
            bool(meta.get("is_usage", False)),
            str(meta.get("asked", "")),
            str(meta.get("at", "")),
            bool(meta.get("is_environment", False)),
            bool(meta.get("no_room", False)),
            bool(meta.get("is_cut_short", False)),
        )

    def to_meta(self) -> dict[str, Any]:
        """Return the error as JSON-able data, without empty fields."""
        more = {
            "is_usage": self.is_usage,
            "asked": self.asked,
            "at": self.at,
            "is_environment": self.is_environment,
            "no_room": self.no_room,
            "is_cut_short": self.is_cut_short,
        }
        return {
            "rank": self.rank,
            "role": self.role,
            "host": self.host,
            "text": self.text,
            "trace": self.trace,
            "is_input": self.is_input,
            **{name: value for name, value in more.items() if value},
        }


def in_a_line(error: BaseException) -> str:
    """Return an error in one line: a file's name and the reason; others with their type, unless it is an MpipsError."""
    try:
        text = str(error)
    # A program's own exception, whose text fails too.
    except Exception as failed:
        text = f"(its text cannot be made: {type(failed).__name__})"
    if not isinstance(error, MpipsError):
        text = f"{type(error).__name__}: {text}"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    return " ".join(text.split()).removesuffix(":")


def cannot_write(
    path: str | Path, error: OSError, what: str = "cannot be written", kind: type[InputError] = InputError
) -> InputError | OSError:
    """Return the error of a file or folder that cannot be written: OSError without room, else one of a `kind`.

    >>> import errno
    >>> cannot_write("a.h5", PermissionError(errno.EACCES, "Permission denied"))
    InputError('a.h5: cannot be written: Permission denied')
    >>> cannot_write("a.h5", OSError(errno.ENOSPC, "No space left on device")).filename
    'a.h5'
    """
    text = f"{what}: {error.strerror or error}"
    return OSError(error.errno, text, str(path)) if has_no_room(error) else kind(f"{path}: {text}")


def has_no_room(error: BaseException) -> bool:
    """Tell whether the disk is full, read-only or fails, here or on another rank."""
    if isinstance(error, RemoteError):
        return error.no_room
    return isinstance(error, OSError) and error.errno in (*NO_ROOM, errno.EIO)


def exit_code(error: BaseException) -> ExitCode:
    """Return the exit code of a process that an error ends."""
    if has_no_room(error):
        return ExitCode.UNWRITABLE
    is_input = error.is_input if isinstance(error, RemoteError) else isinstance(error, InputError)
    return ExitCode.BAD_INPUT if is_input else ExitCode.FAILED


def is_environment(error: BaseException) -> bool:
    """Return whether files or MPI failed, here or on another rank, so that another start may succeed."""
    if isinstance(error, RemoteError):
        return error.is_environment
    return isinstance(error, OSError) or is_mpi(error)


def is_mpi(error: BaseException) -> bool:
    """Return whether MPI raised it; mpi4py is not imported for that."""
    return type(error).__module__.startswith("mpi4py")


def needs_no_traceback(error: BaseException) -> bool:
    """Return whether an error is one of the file system for which a traceback is not needed."""
    return isinstance(error, OSError) and (error.filename is not None or error.errno in NO_ROOM)
