"""The process that supervises a run (`mpips run`), as ranks that outlive their launcher are told of it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from mpips.process.host import process_space

OPTION = "--detached"
"""The option of a rank that shall outlive its launcher; its value is a `Supervisor`, as text."""


class Supervisor(NamedTuple):
    """A process, on a machine; `launcher` is the kind of launcher that it has started the ranks with.

    >>> Supervisor.parse("openmpi:00ff:17")
    Supervisor(launcher='openmpi', machine='00ff', pid=17)
    >>> str(Supervisor("srun", "00ff", 17))
    'srun:00ff:17'
    """

    launcher: str
    machine: str
    pid: int

    @classmethod
    def here(cls, launcher: str) -> Supervisor:
        """Return this process."""
        return cls(launcher, process_space(), os.getpid())

    @classmethod
    def parse(cls, text: str) -> Supervisor:
        """Return a supervisor from its text.

        Raises:
            ValueError: it is not one.
        """
        launcher, where, pid = text.split(":")
        return cls(launcher, where, int(pid))

    def __str__(self) -> str:
        """Return it as text."""
        return ":".join(map(str, self))

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine that this process can see."""
        return self.machine == process_space()


def given(argv: Sequence[str]) -> Supervisor | None:
    """Return the supervisor that a rank's command line names; None if it names none."""
    with suppress(ValueError, IndexError):
        return Supervisor.parse(argv[argv.index(OPTION) + 1])
    return None


def option(argv: Sequence[str], name: str) -> str:
    """Return the value of an option that `mpips run` passes to ranks; "" if it is not there."""
    return argv[argv.index(name) + 1] if name in argv[:-1] else ""
