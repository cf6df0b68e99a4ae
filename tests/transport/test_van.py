"""The MPI van survives deaths if MPI does: real ranks that die, and a fake communicator with chosen outcomes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Started
from mpi4py import MPI

from mpips.launch import mpi_launcher
from mpips.transport.message import Command, Kind, Message, encode
from mpips.transport.mpi import deaths
from mpips.transport.mpi.van import MPIVan


@pytest.mark.drawn(3)
@pytest.mark.ranks
@pytest.mark.parametrize("how", ["killed", "ended", "stopped"])
@pytest.mark.parametrize("victim", [0, 2])
def test_the_remaining_ranks_continue(
    start: Callable[..., Started], starter: Any, how: str, victim: int
) -> None:
    if not (starter.kind == "openmpi" and starter.mpi.ulfm):
        pytest.skip("this MPI ends all ranks when one dies")
    script = ROOT / "tests" / "mpi" / "dying.py"
    program = [sys.executable, str(script), how, str(victim)]
    planned = mpi_launcher.plan(starter, 4, program, survive=mpi_launcher.Survival.RANKS)
    done = start(planned.line, environ=planned.added).finish(timeout=30)
    assert done.code == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == [
        "",
        *(f"rank {rank} ok" for rank in range(4) if rank != victim),
    ]
    # Open MPI's launcher closes its pipes to a rank that was killed, of which its event library complains now and then.
    said = [line for line in done.stderr.splitlines() if not line.startswith("[warn] Epoll")]
    assert said == []


def test_without_the_launchers_option_mpi_does_not_survive_deaths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMPI_MCA_mpi_ft_enable", raising=False)
    assert not deaths.survives_deaths()


DIED = MPI.ERR_PROC_FAILED


class FakeRequest:
    """Completes when its `outcome` is set: True, or an error class."""

    def __init__(self, outcome: bool | int = False) -> None:
        self.outcome = outcome

    def Cancel(self) -> None:
        self.cancelled = True

    def Test(self) -> bool:
        if self.outcome is True or self.outcome is False:
            return self.outcome
        raise MPI.Exception(self.outcome)


class FakeGroup:
    def __init__(self, ranks: Sequence[int]) -> None:
        self.ranks = list(ranks)

    def Get_size(self) -> int:
        return len(self.ranks)

    def Translate_ranks(self, ranks: Sequence[int], other: FakeGroup) -> list[int]:
        return [other.ranks.index(self.ranks[rank]) for rank in ranks]

    def Free(self) -> None:
        pass


class FakeMessage:
    def __init__(self, frame: bytes, request: FakeRequest) -> None:
        self.frame, self.request = frame, request

    def Irecv(self, into: tuple[bytearray, object]) -> FakeRequest:
        into[0][:] = self.frame
        return self.request

    def Recv(self, into: tuple[bytearray, object]) -> None:
        into[0][:] = self.frame
        assert self.request.Test(), "this would have hung"


class FakeComm:
    """The part of a communicator that the van uses; the test sets the outcome of each call."""

    def __init__(self) -> None:
        self.dead: list[int] = []
        self.acknowledged = 0
        self.arriving: list[tuple[int, bytes, FakeRequest]] = []
        self.sends: list[tuple[int, FakeRequest]] = []
        self.receives: list[tuple[int, FakeRequest]] = []
        self.outcome: bool | int = False

    def Get_rank(self) -> int:
        return 0

    def Get_size(self) -> int:
        return 4

    def Get_group(self) -> FakeGroup:
        return FakeGroup(range(4))

    def Get_failed(self) -> FakeGroup:
        return FakeGroup(self.dead)

    def Ack_failed(self, count: int) -> int:
        assert count <= len(self.dead)
        self.acknowledged = count
        return count

    def Isend(self, what: object, dest: int, tag: int) -> FakeRequest:
        self.sends.append((dest, FakeRequest(self.outcome)))
        return self.sends[-1][1]

    def Irecv(self, into: object, source: int, tag: int) -> FakeRequest:
        self.receives.append((source, FakeRequest()))
        return self.receives[-1][1]

    def Improbe(self, source: int, tag: int, status: FakeStatus) -> FakeMessage | None:
        if self.arriving:
            status.source, frame, request = self.arriving.pop(0)
            status.count = len(frame)
            return FakeMessage(frame, request)
        if len(self.dead) > self.acknowledged:
            raise MPI.Exception(DIED)
        return None


class FakeStatus:
    source = count = 0

    def Get_source(self) -> int:
        return self.source

    def Get_count(self, datatype: object) -> int:
        return self.count


@pytest.fixture
def comm(monkeypatch: pytest.MonkeyPatch) -> FakeComm:
    monkeypatch.setattr(deaths, "survives_deaths", lambda: True)
    return FakeComm()


def van_over(comm: FakeComm) -> MPIVan:
    van = MPIVan(comm)  # type: ignore[arg-type]
    van._status = FakeStatus()  # type: ignore[assignment]
    return van


def frame_of(source: int, number: int, rows: int = 1) -> bytes:
    message = Message(Kind.REQUEST, Command.PUSH, source, time=number, values=np.ones((rows, 1)))
    return bytes(encode(message)[0])


def taken(van: MPIVan, times: int = 6) -> list[tuple[int, int]]:
    got = (van.receive() for _ in range(times))
    return [(message.sender, message.time) for message in got if message is not None]


MEDIUM, LARGE = 500, 10_000


def test_a_death_is_reported_once_and_acknowledged(comm: FakeComm) -> None:
    van = van_over(comm)
    assert van.failed() == []
    comm.dead = [2]
    assert van.receive() is None
    assert comm.acknowledged == 1
    comm.dead = [2, 1]
    assert van.failed() == [2, 1]
    assert comm.acknowledged == 2
    assert van.failed() == []
    assert van.receive() is None


def test_the_end_of_a_watched_process_is_a_death(comm: FakeComm) -> None:
    van = van_over(comm)
    processes = {rank: subprocess.Popen(["sleep", "60"]) for rank in (1, 3)}
    van.watch({rank: process.pid for rank, process in processes.items()} | {2: 2**22 + 1})
    assert van.failed() == []
    processes[3].kill()
    processes[3].wait()
    assert van.failed() == [3]
    assert van.failed() == []
    van.send(3, Message(Kind.REQUEST, Command.PUSH, 0))
    assert comm.sends == [], "nothing is sent to it any more"
    comm.arriving = [(3, frame_of(3, 5), FakeRequest(True))]
    assert taken(van) == [(3, 5)], "what has come from it is received"
    van.watch({})
    processes[1].kill()
    processes[1].wait()
    assert van.failed() == []


def test_what_had_come_from_the_dead_is_received(comm: FakeComm) -> None:
    van = van_over(comm)
    comm.dead = [2]
    assert van.failed() == [2]
    comm.arriving = [(2, frame_of(2, 5), FakeRequest(True))]
    assert taken(van) == [(2, 5)]


def test_an_incomplete_message_of_a_dead_rank_and_later_ones_are_dropped(comm: FakeComm) -> None:
    van = van_over(comm)
    comm.arriving = [
        (2, frame_of(2, 1, LARGE), FakeRequest(True)),
        (1, frame_of(1, 1, LARGE), FakeRequest(True)),
    ]
    assert taken(van) == []
    (_, torn), (_, whole) = comm.receives
    comm.dead, torn.outcome, whole.outcome = [2], DIED, True
    comm.arriving = [
        (2, frame_of(2, 2, LARGE), FakeRequest(True)),
        (2, frame_of(2, 3), FakeRequest(True)),
    ]
    assert taken(van) == [(1, 1)]
    assert (
        len(comm.receives) == 2
    )  # the bodies that were left would have been taken for those of the next frame
    assert van.failed() == [2]


def test_a_late_frame_delays_only_frames_of_its_sender(comm: FakeComm) -> None:
    van, slow = van_over(comm), FakeRequest()
    comm.arriving = [
        (2, frame_of(2, 1, MEDIUM), slow),
        (2, frame_of(2, 2), FakeRequest(True)),
        (1, frame_of(1, 1), FakeRequest(True)),
    ]
    assert taken(van) == [(1, 1)]
    slow.outcome = True
    assert taken(van) == [(2, 1), (2, 2)]


def test_a_frame_whose_sender_dies_is_dropped(comm: FakeComm) -> None:
    van, slow = van_over(comm), FakeRequest()
    comm.arriving = [(2, frame_of(2, 1, MEDIUM), slow)]
    assert taken(van) == []
    comm.dead, slow.outcome = [2], DIED
    assert taken(van) == []
    assert van.failed() == [2]
    assert van._incoming.frames == []


def test_sends_to_the_dead_do_not_count_and_their_buffers_are_kept_until_mpi_is_done(comm: FakeComm) -> None:
    van = van_over(comm)
    message = Message(Kind.REQUEST, Command.PUSH, 0, values=np.ones((LARGE, 1)))
    van.send(1, message)
    van.send(2, message)
    assert van.pending() == 4
    comm.dead = [2]
    assert van.failed() == [2]
    assert van.pending() == 2
    assert len(van._deaths.abandoned) == 2
    before = van.sent_bytes
    van.send(2, message)
    assert van.sent_bytes == before
    assert [dest for dest, _ in comm.sends] == [1, 1, 2, 2]
    for (_, request), outcome in zip(comm.sends, (True, True, True, DIED), strict=True):
        request.outcome = outcome
    assert van.pending() == 0
    assert van._deaths.abandoned == []


@pytest.mark.parametrize("find", [MPIVan.pending, MPIVan.receive])
def test_a_send_that_fails_tells_of_the_death(comm: FakeComm, find: Callable[[MPIVan], object]) -> None:
    van = van_over(comm)
    van.send(2, Message(Kind.REQUEST, Command.CALL, 0))
    van.send(1, Message(Kind.REQUEST, Command.CALL, 0))
    comm.dead, comm.sends[0][1].outcome = [2], DIED
    find(van)
    assert van.pending() == 1
    assert van.failed() == [2]


def test_a_send_that_fails_at_once_tells_of_the_death_too(comm: FakeComm) -> None:
    van = van_over(comm)
    comm.outcome = DIED
    van.send(3, Message(Kind.REQUEST, Command.CALL, 0))
    assert van.failed() == [3]
    assert van.pending() == 0


def test_excluded_ranks_are_not_reported(comm: FakeComm) -> None:
    van = van_over(comm)
    comm.arriving = [
        (2, frame_of(2, 1, LARGE), FakeRequest(True)),
        (2, frame_of(2, 2, MEDIUM), FakeRequest()),
    ]
    assert taken(van) == []
    van.exclude(2)
    assert len(van._deaths.abandoned) == 2
    comm.receives[0][1].outcome = True
    comm.arriving = [(2, frame_of(2, 3), FakeRequest(True))]
    assert taken(van) == []
    comm.dead = [2]
    assert van.failed() == []
    assert taken(van) == []


def test_other_mpi_errors_and_fatal_deaths_are_raised(
    comm: FakeComm, monkeypatch: pytest.MonkeyPatch
) -> None:
    van = van_over(comm)
    comm.outcome = MPI.ERR_TRUNCATE
    with pytest.raises(MPI.Exception):
        van.send(1, Message(Kind.REQUEST, Command.CALL, 0))
    monkeypatch.setattr(deaths, "survives_deaths", lambda: False)
    frail = van_over(comm)
    comm.dead = [2]
    assert frail.failed() == []
    with pytest.raises(MPI.Exception):
        frail.receive()
