"""The data that ranks exchange at the start: their processes, and whether their filters are the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mpips.checkpoint.lineage import Lineage, of_run
from mpips.cluster.layout import Layout
from mpips.config.job_file import Job, load
from mpips.process.host import host_name
from mpips.rank.start_up import Process, exchange_processes, share_folder, write_run
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


class Start:
    """One start of a run in a folder: what its first rank writes, and tells the others."""

    def __init__(self, path: Path, job: Job) -> None:
        self.first = RunFolder(path)
        prepared: Any = SimpleNamespace(job=job, facts=None, resume=None)
        processes = [Process(1, "a"), Process(2, "a"), Process(3, "b")]
        write_run(self.first, prepared, Layout.of(3, job.layout), processes, "MPI X")
        told = np.empty(0, np.uint8)

        def tell(buffer: NDArray[np.uint8], root: int) -> None:
            nonlocal told
            told = buffer.copy()

        def hear(buffer: NDArray[np.uint8], root: int) -> None:
            buffer[:] = told

        telling: Any = SimpleNamespace(Bcast=tell)
        hearing: Any = SimpleNamespace(Bcast=hear)
        share_folder(telling, self.first, None)
        self.other, _ = share_folder(hearing, None, None)

    def lineages(self) -> list[Lineage]:
        """Return that of the first rank, of another one, and of one on whose node that folder is missing."""
        read = [self.first.read_run(), self.other.read_run(), None]
        return [
            of_run(folder, facts) for folder, facts in zip([self.first, *2 * [self.other]], read, strict=True)
        ]


def test_all_ranks_of_a_start_know_its_id_and_it_is_that_of_no_other(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('[job]\nprogram = "sparse_lr"\n')
    job = load(tmp_path / "job.toml")
    ended, late, present = (Start(tmp_path / "run", job) for _ in range(3))
    ids = [{each.run for each in start.lineages()} for start in (ended, late)]
    assert all(len(each) == 1 for each in ids) and ids[0] != ids[1]
    assert present.lineages()[0].earlier == tuple(one for each in ids for one in each)
    # On another node another run has the folder of that path.
    stranger = present.other.read_run()
    foreign = {} if stranger is None else stranger | {"id": "f" * 32}
    assert of_run(present.other, foreign).run == present.lineages()[0].run
    leases = [Leases(start.other.path, start.other.start) for start in (ended, late, present)]
    assert leases[0].take(1, "a") and leases[1].take(1, "b")
    assert leases[2].holder(1) == "" and leases[2].take(1, "c") == "c"
