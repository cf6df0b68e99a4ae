"""Leases: numbered, exclusive decisions in a run's folder, where the votes of ranks cannot decide.

Lease n is a file that only one rank can create. Each view says how many leases its predecessors have used, so sides of
a split network that both try the next one try the same number. A lease contains the view that it was taken for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread

from mpips.files.safe_open import create_exclusively, read_bytes

PREFIX = ".lease-"
IN_TIME = 0.5
"""Seconds after which a file system that has not answered counts as one that cannot be reached."""


class Leases:
    """The leases of one start of a run in `folder`; `start` is its id.

    A number would not do: a rank of an earlier start may take a lease after its run has ended.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     one, other = (Leases(Path(folder), "1") for _ in range(2))
    ...     one.take(1, "a"), other.take(1, "b"), other.holder(1), other.holder(2), other.take(2, "b")
    ('a', 'a', 'a', '', 'b')
    """

    taking = False
    """Whether a request to take one is not answered; see `LeasesInTime`."""

    def __init__(self, folder: Path, start: str) -> None:
        self._folder, self._start = folder, start
        # Those of this rank: what each contains.
        self._held: dict[int, str] = {}

    def _path(self, number: int) -> Path:
        return self._folder / f"{PREFIX}{self._start}-{number}"

    def take(self, number: int, view: str) -> str | None:
        """Create a lease for a view; return the view that it contains. None: the folder cannot be read or written."""
        if number in self._held:
            return self._held[number]
        try:
            if not create_exclusively(self._path(number), view.encode()):
                return self._read(number)
        except OSError:
            return None
        self._held[number] = view
        return view

    def holder(self, number: int) -> str | None:
        """Return the view that a lease contains, "" if it is free. None: the folder cannot be reached."""
        if number in self._held:
            return self._held[number]
        try:
            # A new listing: clients of NFS cache the absence of a name.
            return self._read(number) if self._path(number).name in os.listdir(self._folder) else ""
        except OSError:
            return None

    def _read(self, number: int) -> str | None:
        # Where there are no links, it is empty for a moment.
        return read_bytes(self._path(number), follow=False).decode(errors="replace") or None


class LeasesInTime:
    """Leases in a file system that may not answer, such as an NFS hard mount without its server.

    A request is made in a thread. If it is not answered within `seconds`, the folder counts as one that cannot be
    reached, and so it does at once until the answer is there. The lease may still be taken then: `taking`.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     leases = LeasesInTime(Leases(Path(folder), "1"))
    ...     leases.take(1, "a"), leases.holder(1), leases.taking
    ('a', 'a', False)
    """

    def __init__(self, leases: Leases, seconds: float = IN_TIME) -> None:
        self._leases, self._seconds = leases, seconds
        self._request: Thread | None = None
        self._takes = False

    @property
    def taking(self) -> bool:
        """Whether a lease may have been taken, or may be later, by a request that is not answered yet."""
        return self._takes and self._is_waiting

    @property
    def _is_waiting(self) -> bool:
        return self._request is not None and self._request.is_alive()

    def take(self, number: int, view: str) -> str | None:
        """Create a lease for a view; return the view that it contains. None: not in time, or see `Leases.take`."""
        return self._ask(lambda: self._leases.take(number, view), takes=True)

    def holder(self, number: int) -> str | None:
        """Return the view that a lease contains, "" if it is free. None: not in time, or see `Leases.holder`."""
        return self._ask(lambda: self._leases.holder(number), takes=False)

    def _ask(self, request: Callable[[], str | None], takes: bool) -> str | None:
        if self._is_waiting:
            return None
        answers: list[str | None] = []
        thread = Thread(target=lambda: answers.append(request()), daemon=True)
        # RuntimeError: the system allows no more threads now.
        with suppress(RuntimeError):
            thread.start()
            self._request, self._takes = thread, takes
            thread.join(self._seconds)
        return answers[0] if answers else None


def remove(folder: Path) -> None:
    """Remove the leases of earlier starts from a folder."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if name.startswith(PREFIX):
                with suppress(OSError):
                    (folder / name).unlink()
