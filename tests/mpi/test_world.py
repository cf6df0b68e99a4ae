"""The launch itself: the requested number of ranks, in one world."""

from __future__ import annotations

import os

import numpy as np
import pytest
from mpi4py import MPI


@pytest.mark.mpi
def test_one_world_of_the_size_asked_for() -> None:
    world = MPI.COMM_WORLD
    assert world.size == int(os.environ["RANKS_ASKED_FOR"])
    ranks = np.empty(world.size, np.int64)
    world.Allgather(np.array([world.rank], np.int64), ranks)
    assert ranks.tolist() == list(range(world.size))


@pytest.mark.mpi(min_size=2)
def test_a_ring_of_messages_closes() -> None:
    world = MPI.COMM_WORLD
    received = np.empty(1, np.int64)
    right, left = (world.rank + 1) % world.size, (world.rank - 1) % world.size
    world.Sendrecv(np.array([world.rank], np.int64), right, 0, received, left, 0)
    assert received[0] == left
