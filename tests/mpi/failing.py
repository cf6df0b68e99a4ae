"""Not collected by name: tests/test_mpi_sizes.py runs it, to check that a failure on one rank ends all."""

import pytest
from mpi4py import MPI


@pytest.mark.mpi(min_size=2)
def test_that_fails_on_rank_1_while_the_others_wait() -> None:
    assert MPI.COMM_WORLD.rank != 1, "only rank 1 fails"
    MPI.COMM_WORLD.Barrier()
