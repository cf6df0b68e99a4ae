"""The signal by which `mpips run` was asked to stop, as its ranks learn it.

`mpips run` forwards every stop signal as USR1, since a launcher ends its ranks when it gets another one. Before that,
it writes the name of the signal that came into the run's folder. The file's name has the id of the claim that the ranks
were given, so no other start reads it. A run that outlives its launcher gets an order instead
(`mpips.launch.detached_run`).
"""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path

from mpips.files.safe_open import read_text, replacing

_LARGEST = 64


def write(folder: Path, claim: str, number: int) -> None:
    """Write the name of a signal; errors are ignored."""
    with suppress(OSError), replacing(_path(folder, claim), "w", durable=False) as file:
        file.write(signal.Signals(number).name)


def remove(folder: Path, claim: str) -> None:
    """Remove the file, if there is one."""
    with suppress(OSError):
        _path(folder, claim).unlink()


def name_of(number: int, folder: Path, claim: str) -> str:
    """Return the name of the signal that has reached a rank as `number`; `claim`: that of `mpips run`, or "".

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write(Path(folder), "ab", signal.SIGINT)
    ...     [name_of(signal.SIGUSR1, Path(folder), claim) for claim in ("ab", "cd", "")]
    ['SIGINT', 'SIGUSR1', 'SIGUSR1']
    """
    if number == signal.SIGUSR1 and claim:
        with suppress(OSError, ValueError, KeyError):
            return signal.Signals[read_text(_path(folder, claim), follow=False, most=_LARGEST)].name
    return signal.Signals(number).name


def _path(folder: Path, claim: str) -> Path:
    return folder / f".stop-{claim}"
