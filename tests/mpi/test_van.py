"""The conformance tests of vans, on the MPI van."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from conformance import FOR_TWO, PROGRAMS
from mpi4py import MPI

from mpips.transport.message import Command, Kind, Message
from mpips.transport.mpi.van import _MANY, MPIVan
from mpips.transport.van import Van


@pytest.mark.mpi
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_conformance(program: Callable[[Van], None]) -> None:
    comm = MPI.COMM_WORLD.Dup()
    if program.__name__ in FOR_TWO and comm.Get_size() < 2:
        pytest.skip("takes two")
    program(MPIVan(comm))
    comm.Barrier()
    comm.Free()


@pytest.mark.mpi(min_size=3)
def test_a_rank_that_does_not_receive_keeps_only_its_own_messages_in_the_outbox() -> None:
    comm = MPI.COMM_WORLD.Dup()
    van, count = MPIVan(comm), 60
    if van.rank == 0:
        rows = np.ones((100_000, 1))
        van.send(1, Message(Kind.REQUEST, Command.PUSH, 0, values=rows))
        for number in range(count):
            van.send(2, Message(Kind.REQUEST, Command.PUSH, 0, time=number, values=rows.copy()))
        assert len(van._outbox) > count
        heard, deadline = False, van.now() + 20.0
        # What MPI is done with may show a little later.
        while not (heard and len(van._outbox) <= _MANY) and van.now() < deadline:
            heard = van.receive() is not None or heard
            van.idle()
        assert heard
        assert len(van._outbox) <= _MANY
    elif van.rank == 2:
        for _ in range(count):
            while van.receive() is None:
                van.idle()
        van.send(0, Message(Kind.REPLY, Command.PUSH, 2))
    comm.Barrier()
    if van.rank == 1:
        while van.receive() is None:
            van.idle()
    while van.pending():
        van.receive()
    comm.Barrier()
    comm.Free()
