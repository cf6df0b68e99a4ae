"""The exit codes of the commands and of a rank; slurm/job.sbatch uses them, too."""

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
    """The reader of a command's output has ended, as in `| head`: 128 + SIGPIPE."""


def by_signal(number: int) -> int:
    """Return the exit code that a shell reports for a process that was ended by a signal."""
    return 128 + number
