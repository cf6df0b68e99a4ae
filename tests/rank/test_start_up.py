"""The data that ranks exchange at the start: their processes, and whether their filters are the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mpips.process.host import host_name
from mpips.rank.start_up import exchange_processes, share_folder
from mpips.rundir.folder import RunFolder
from mpips.rundir.lease import Leases


class World:
    """Ranks with other filters each: None is a rank that cannot start, and knows none."""

    def __init__(self, filters: list[tuple[str, ...] | None]) -> None:
        self.filters = filters
        self.sent: list[NDArray[np.uint8]] = []

    def Get_size(self) -> int:
        return len(self.filters)

    def Allgather(self, mine: NDArray[np.uint8], everyone: NDArray[np.uint8]) -> None:
        self.sent.append(mine.copy())
        everyone[:] = (self.sent * len(self.filters))[: len(self.filters)]

    def problem(self) -> str:
        """Return the error of the last rank."""
        found = ""
        for each in self.filters:
            job = SimpleNamespace(filters=SimpleNamespace(push=each, pull=()))
            prepared: Any = None if each is None else SimpleNamespace(job=job)
            _, error = exchange_processes(self, prepared)
            found = "" if error is None else str(error)
        return found


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        ([(), ()], ""),
        ([None, (), ()], ""),
        ([(), None, ()], ""),
        ([None, ("zeros",), ("zeros",)], ""),
        ([(), ("zeros",)], "rank 1 has other filters than rank 0: zeros must be the same everywhere"),
        ([None, (), ("zeros",)], "rank 2 has other filters than rank 1: zeros must be the same everywhere"),
    ],
)
def test_only_ranks_that_can_start_are_compared(filters: list[tuple[str, ...] | None], said: str) -> None:
    found = World(filters).problem().replace(f" on {host_name()}", "")
    assert found == said


def test_a_lease_that_an_ended_start_takes_late_is_none_of_the_next_start(tmp_path: Path) -> None:
    alone: Any = SimpleNamespace(Bcast=lambda buffer, root: None)

    def start() -> Leases:
        folder, _ = share_folder(alone, RunFolder(tmp_path), None)
        return Leases(folder.path, folder.start)

    ended, late, present = start(), start(), start()
    assert ended.take(1) and late.take(1)
    assert present.is_taken(1) is False and present.take(1)
