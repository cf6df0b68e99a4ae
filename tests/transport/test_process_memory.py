"""Ranks permit writing to their memory to the descendants of their launcher only."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Finished

from mpips.transport.mpi.process_memory import _ancestors, common

MEETING = """
import ctypes
import os
from mpi4py import MPI
from mpips.transport.mpi import process_memory

allowed = []
class System(ctypes.CDLL):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.prctl = lambda option, *rest: allowed.append((option, rest[0].value))

process_memory.ctypes.CDLL = System
found = process_memory.discover(MPI.COMM_WORLD)
(option, pid), = allowed
name = open(f"/proc/{pid}/comm").read().strip()
both = bool(found.pids.all()) and len(set(found.pids.tolist())) == 2
os.write(1, f"{hex(option)} {name} {both}\\n".encode())  # in one piece beside the other rank's
"""


def test_the_nearest_process_above_all_ranks_is_found() -> None:
    assert common([7, 5, 3], [[7, 5, 3], [9, 5, 3], [5, 3]]) == 5
    assert common([7, 5], [[7, 5], [9, 8]]) == 0
    assert common([], [[], [5]]) == 0


def test_the_ancestors_of_a_process() -> None:
    mine = _ancestors(os.getpid())
    code = "import os; from mpips.transport.mpi.process_memory import _ancestors; print(*_ancestors(os.getpid()))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )  # fmt: skip
    found = [int(each) for each in done.stdout.split()]
    assert found == [os.getpid(), *mine] and not {0, 1} & set(found)


@pytest.mark.ranks
def test_ranks_allow_their_launcher(run_ranks: Callable[..., Finished]) -> None:
    done = run_ranks(2, "-c", MEETING)
    lines = [line.split() for line in done.stdout.splitlines()]
    assert done.code == 0 and len(lines) == 2, done
    for option, name, both in lines:
        assert (option, both) == ("0x59616d61", "True")
        assert name in ("mpirun", "mpiexec", "prterun", "prted", "hydra_pmi_proxy", "mpiexec.hydra"), name
