"""Every error that mpips raises on purpose.

    MpipsError
    +-- InputError (ValueError)        what the user gave is wrong: one clear line, exit code 2
    |   +-- JobError                   the job file or an override
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
    +-- Diverged (RuntimeError)        a run that is done again does something else than is recorded
    +-- ClosedError (RuntimeError)     used after close

Each is also the builtin that it is, so `except ValueError` works at the edges.
"""

from __future__ import annotations


class MpipsError(Exception):
    """Root of the tree; never raised itself."""


class InputError(MpipsError, ValueError):
    """The user's input is wrong. Its text is one line: what, where, and what would be right."""


class JobError(InputError):
    """The job file or an override of it is wrong."""


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


class JournalLost(MpipsError, RuntimeError):
    """Every rank that knew what the scheduler's program was told has died: nobody can go on with it."""


class RemoteError(MpipsError, RuntimeError):
    """A task failed on another rank.

    `text` is the remote error in one line, `trace` its traceback there; `is_input` tells whether it was
    an `InputError`, that is the user's to mend.
    """

    def __init__(
        self, rank: int, role: str, host: str, text: str, trace: str = "", is_input: bool = False
    ) -> None:
        super().__init__(f"rank {rank} ({role} on {host}): {text}")
        self.rank = rank
        self.role = role
        self.host = host
        self.text = text
        self.trace = trace
        self.is_input = is_input
