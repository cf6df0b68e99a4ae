"""Ranks, one of which dies or hangs while it sends messages: `dying.py killed|ended|stopped VICTIM`.

Started by tests/test_van.py under an MPI that survives. Each rank that is left writes `rank R ok` and leaves without
finalizing MPI, as runs do.
"""

from __future__ import annotations

import os
import signal
import sys
import time

import numpy as np
from mpi4py import MPI

from mpips.membership.heartbeat import ADDRESS_BYTES, Address, Heartbeat
from mpips.transport.message import Command, Kind, Message
from mpips.transport.mpi.van import MPIVan

ROWS = 300_000
END = 10.0


def message(van: MPIVan, number: int, rows: int) -> Message:
    """Return a message that can be checked for completeness."""
    values = np.full((rows, 1), 100.0 * van.rank + number)
    return Message(Kind.REQUEST, Command.PUSH, van.rank, time=number, values=values)


def intact(got: Message) -> bool:
    """Return whether a message is as `message` made it."""
    return got.values is not None and bool(np.all(got.values == 100.0 * got.sender + got.time))


def die(van: MPIVan, how: str) -> None:
    """Send messages of every size that no rank can have received completely, and die."""
    for number, rows in enumerate((ROWS, 1, 2000, ROWS)):
        for dest in range(van.size):
            if dest != van.rank:
                van.send(dest, message(van, number, rows))
    if how == "ended":
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGSTOP)


def beat(comm: MPI.Intracomm) -> Heartbeat:
    """Start a heartbeat on every rank, and wait until all have heard all: collective."""
    heartbeat = Heartbeat(comm.Get_rank(), period=0.05)
    raw = np.zeros((comm.Get_size(), ADDRESS_BYTES), np.uint8)
    comm.Allgather(np.frombuffer(heartbeat.address.to_bytes(), np.uint8), raw)
    heartbeat.targets = [rank for rank in range(comm.Get_size()) if rank != comm.Get_rank()]
    heartbeat.start([Address.from_bytes(row.tobytes()) for row in raw])
    deadline = time.monotonic() + END
    while len(heartbeat.silent(heartbeat.targets, 0.0)) < len(heartbeat.targets):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    comm.Barrier()
    return heartbeat


def exchange_with_survivors(van: MPIVan, heartbeat: Heartbeat, how: str, victim: int, pid: int) -> None:
    """Exchange complete messages with the remaining ranks, before and after the victim is excluded."""
    left = [rank for rank in range(van.size) if rank != victim]
    missing = {(source, number) for source in left for number in (1, 2)}
    dead: list[int] = []
    deadline = van.now() + END

    def take() -> None:
        """Take a message; the others may have gone on already."""
        assert van.now() < deadline, (missing, dead, van.pending())
        got = van.receive()
        if got is None:
            van.idle()
            return
        assert intact(got)
        if got.sender == victim:
            assert how != "stopped" or not van._deaths.ignored[victim]
        else:
            missing.remove((got.sender, got.time))

    van.send(victim, message(van, 9, ROWS))
    if how == "stopped":
        while not heartbeat.silent([victim], 0.5):
            take()
        assert van.failed() == []
        van.exclude(victim)
        assert van._deaths.abandoned  # MPI may still read what was sent to it
    else:
        while not dead:
            take()
            dead += van.failed()
        assert dead == [victim]
    before = van.sent_bytes
    van.send(victim, message(van, 9, ROWS))
    assert van.sent_bytes == before
    for dest in left:
        van.send(dest, message(van, 1, ROWS))
        van.send(dest, message(van, 2, 2000))
    while missing or van.pending():
        take()
    if how == "stopped" and van.rank == left[0]:
        os.kill(pid, signal.SIGKILL)
    while van._deaths.abandoned:
        take()
        assert victim not in van.failed()  # the others may have left already


def main() -> None:
    """Run one rank."""
    how, victim = sys.argv[1], int(sys.argv[2])
    world = MPI.COMM_WORLD
    van = MPIVan(world.Dup())
    assert van.survives
    pids = np.zeros(van.size, np.int64)
    world.Allgather(np.array([os.getpid()], np.int64), pids)
    heartbeat = beat(world)
    if van.rank == victim:
        die(van, how)
    exchange_with_survivors(van, heartbeat, how, victim, int(pids[victim]))
    os.write(1, f"rank {van.rank} ok\n".encode())
    os._exit(0)


if __name__ == "__main__":
    main()
