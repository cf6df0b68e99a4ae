"""The MPI van passes the conformance suite that its twin passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conformance import PROGRAMS
from mpi4py import MPI

from mpips.van import MPIVan, Van


@pytest.mark.mpi
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_conformance(program: Callable[[Van], None]) -> None:
    comm = MPI.COMM_WORLD.Dup()
    if program.__name__ == "ping_pong" and comm.Get_size() < 2:
        pytest.skip("takes two")
    program(MPIVan(comm))
    comm.Barrier()
    comm.Free()
