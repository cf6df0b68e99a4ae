"""The exit codes of the commands and of a rank; slurm/job.sbatch goes by them as well."""

import enum


class ExitCode(enum.IntEnum):
    """How a process ended; one that a signal ended before it had a run: `by_signal`."""

    COMPLETED = 0
    FAILED = 1
    BAD_INPUT = 2
    UNWRITABLE = 74
    """The output could not be written: the disk is full, read-only or fails (EX_IOERR)."""
    STOPPED = 85
    """Stopped on request, with a checkpoint if anything was trained; asks a batch system to start the run again."""
    READER_GONE = 141
    """Who reads the output of a command has gone, as in `| head`: 128 + SIGPIPE."""


def by_signal(number: int) -> int:
    """Return the exit code of a process that a signal has ended, as a shell has it."""
    return 128 + number
