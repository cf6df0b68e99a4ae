"""Every error that mpips raises on purpose.

    MpipsError
    +-- InputError (ValueError)        what the user gave is wrong: one clear line, exit code 2
    |   +-- JobError                   the job file or an override
    |   |   +-- UsageError             its program asks for what cannot be: unsorted keys, rows of another type
    |   +-- DataError                  a data file: names file and line
    |   +-- LayoutError                ranks and roles do not fit
    |   +-- CheckpointError            a checkpoint is missing, torn or of another job
    |   +-- RecordError                a record of a run is missing, torn, or tells of no run that can be done again
    +-- ProtocolError (RuntimeError)   a message that no correct rank sends
    |   +-- FilterError                what a filter is to decode is nothing that it encodes
    +-- RemoteError (RuntimeError)     something failed on another rank; says which
    +-- WorkerLost (RuntimeError)      a worker died while a call was under way: the program may go on without it
    +-- NoWorkerLeft (RuntimeError)    all workers have died, and there is no spare: no program can go on
    +-- ShardLost (RuntimeError)       all servers that held a shard have died
    +-- JournalLost (RuntimeError)     all who knew what the scheduler's program was told have died
    +-- StopOverdue (RuntimeError)     a run that was asked to stop has not stopped in time
    +-- Diverged (RuntimeError)        a run that is done again does something else than is recorded
    +-- ClosedError (RuntimeError)     used after close

Each is also the builtin that it is, so `except ValueError` works at the edges.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from typing import Any

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of a disk that say enough without a file."""


class MpipsError(Exception):
    """Root of the tree; never raised itself."""


class InputError(MpipsError, ValueError):
    """The user's input is wrong. Its text is one line: what, where, and what would be right."""


class JobError(InputError):
    """The job file or an override of it is wrong."""


class UsageError(JobError):
    """A program asks for what cannot be. Who tells people adds the program's file and line, the rank, and its log."""


class DataError(InputError):
    """A data file is wrong."""


class LayoutError(InputError):
    """The ranks that were started cannot take the roles that the job asks for."""


class CheckpointError(InputError):
    """A checkpoint is missing, incomplete, damaged, or belongs to another job."""


class RecordError(InputError):
    """A record of a run is missing or torn, or the run cannot be done again."""


class Diverged(MpipsError, RuntimeError):
    """A run that is done again cannot go on as is recorded. Its text says who waits for what."""


class ProtocolError(MpipsError, RuntimeError):
    """A message that no correct rank sends: wrong magic, truncated, or of an unknown kind."""


class FilterError(ProtocolError):
    """What a filter is given to decode is nothing that it encodes: damaged, truncated, or of another version."""


class ClosedError(MpipsError, RuntimeError):
    """A van, store or file was used after it was closed."""


class WorkerLost(MpipsError, RuntimeError):
    """A worker has died, and with it its part of what the workers were doing together.

    The scheduler's program gets it from the call that was under way, once all survivors have ended theirs; a worker's
    gets it from pushes that were to be aggregated with the dead one's.
    """


class NoWorkerLeft(MpipsError, RuntimeError):
    """Every worker has died, and no spare is there to take a place. No `WorkerLost`: there is nothing to try again."""


class ShardLost(MpipsError, RuntimeError):
    """Every server that held a shard has died: its parameters are gone. Its text says what would help."""


class StopOverdue(MpipsError, RuntimeError):
    """A run that was asked to stop has not come to the end of its step in time. Its text says what it waits for."""


class JournalLost(MpipsError, RuntimeError):
    """Every rank that knew what the scheduler's program was told has died: nobody can go on with it."""


class RemoteError(MpipsError, RuntimeError):
    """A task failed on another rank.

    `text` is the remote error in one line, `trace` its traceback there; `at` is the program's line where it arose, if
    it did so in a program; `is_input` tells whether it was an `InputError`, that is the user's to mend, `is_usage`
    whether the program's author's, and `is_environment` whether files or MPI failed. `asked` says who asked for it,
    and on which line of the program.
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

    def __str__(self) -> str:
        """Say who failed, for whom, and why."""
        return f"{self.where}: {self.text}"

    @property
    def where(self) -> str:
        """Return who failed, and for whom."""
        asked = f", for {self.asked}" if self.asked else ""
        return f"rank {self.rank} ({self.role} on {self.host}{asked})"

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any], sender: int) -> RemoteError:
        """Return the error that `to_meta` was given, or that rank `sender` said less of."""
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
        )

    def to_meta(self) -> dict[str, Any]:
        """Return it as JSON-able data, without what it does not say."""
        more = {
            "is_usage": self.is_usage,
            "asked": self.asked,
            "at": self.at,
            "is_environment": self.is_environment,
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
    """Say what an error says, in a line; of one that is not of mpips, its kind first."""
    text = str(error) if isinstance(error, MpipsError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split()).removesuffix(":")


def is_environment(error: BaseException) -> bool:
    """Tell whether files or MPI failed, here or on another rank, which may not happen at another start."""
    if isinstance(error, RemoteError):
        return error.is_environment
    return isinstance(error, OSError) or is_mpi(error)


def is_mpi(error: BaseException) -> bool:
    """Tell whether MPI raised it; mpi4py is not imported for that."""
    return type(error).__module__.startswith("mpi4py")


def says_all(error: BaseException) -> bool:
    """Tell whether it is an error of the file system that a traceback would add nothing to."""
    return isinstance(error, OSError) and (error.filename is not None or error.errno in NO_ROOM)
