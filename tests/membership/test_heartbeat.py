"""Silent ranks are detected, and no others."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.membership import heartbeat
from mpips.membership.heartbeat import ADDRESS_BYTES, Address, Heartbeat, SilenceClock
from mpips.transport import socket_filter

SOON = 20.0
"""Seconds within which what must come has come, on the busiest of machines."""


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def hearts() -> Iterator[Callable[..., list[Heartbeat]]]:
    """Make heartbeats that know each other's addresses and have no targets yet."""
    made: list[Heartbeat] = []

    def make(count: int, period: float = 0.02) -> list[Heartbeat]:
        made.extend(Heartbeat(rank, period) for rank in range(count))
        for heart in made:
            heart.start([other.address for other in made])
        return made

    yield make
    for heart in made:
        heart.close()


def heard(heart: Heartbeat, rank: int) -> bool:
    return rank in heart._counts


# --- when somebody is silent ---------------------------------------------------------------------


def test_a_rank_that_was_never_received_from_does_not_count_as_silent() -> None:
    clock = SilenceClock(longest_gap=1.0)
    for now in range(100):
        clock.advance(float(now))
    assert clock.silent([0, 1, 2], 5.0) == []


def test_a_rank_of_the_same_host_that_was_never_received_from_counts_as_silent_later() -> None:
    clock = SilenceClock(longest_gap=1.0, near={1, 2})
    silent = []
    for now in range(40):
        clock.advance(float(now))
        if now == 30:
            clock.record(2)
        silent.append(clock.silent([0, 1, 2] if now >= 10 else [], 3.0))
    first = 10 + int(heartbeat.FIRST * 3.0)
    assert silent[:first] == [[]] * first, "not before it was asked for, and then longer than others have"
    assert silent[first:30] == [[1, 2]] * (30 - first)
    assert silent[30:33] == [[1]] * 3 and silent[33:] == [[1, 2]] * 7


def test_a_rank_is_silent_after_patience_until_its_next_heartbeat() -> None:
    clock = SilenceClock(longest_gap=1.0)
    clock.advance(0.0)
    clock.record(1)
    clock.record(2)
    for now in range(1, 5):
        clock.advance(float(now))
        clock.record(2)
    assert clock.silent([1, 2], 5.0) == []
    clock.advance(5.0)
    assert clock.silent([2, 1], 5.0) == [1]
    assert clock.silent([2], 5.0) == []
    clock.record(1)
    assert clock.silent([1, 2], 5.0) == []


def test_a_stopped_receiver_suspects_no_other_rank() -> None:
    clock = SilenceClock(longest_gap=1.0)
    clock.advance(0.0)
    clock.record(1)
    clock.advance(3600.0)
    assert clock.silent([1], 1.5) == []
    clock.advance(3600.6)
    assert clock.silent([1], 1.5) == [1]


@given(
    gaps=st.lists(st.floats(0.0, 100.0), max_size=50),
    longest_gap=st.floats(0.1, 2.0),
    patience=st.floats(0.1, 50.0),
)
def test_silence_is_measured_while_receiving_only(
    gaps: list[float], longest_gap: float, patience: float
) -> None:
    clock, now = SilenceClock(longest_gap), 0.0
    clock.advance(now)
    clock.record(0)
    for gap in gaps:
        now += gap
        clock.advance(now)
    listened = sum(min(gap, longest_gap) for gap in gaps)
    assert bool(clock.silent([0], patience)) <= (listened >= patience - 1e-6)
    assert bool(clock.silent([0], patience)) >= (listened >= patience + 1e-6)


# --- hearts --------------------------------------------------------------------------------------


def test_heartbeats_reach_their_targets_only(hearts: Callable[..., list[Heartbeat]]) -> None:
    first, second, third = hearts(3)
    first.targets, second.targets = [1], [0, 2]
    wait_for(lambda: heard(first, 1) and heard(second, 0) and heard(third, 1))
    assert not heard(third, 0)
    assert not heard(first, 2)


def test_ranks_that_are_seldom_sent_to_get_every_so_manyth_heartbeat(
    hearts: Callable[..., list[Heartbeat]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "SELDOM", 0.2)
    first, often, seldom = hearts(3)
    first.targets, first.seldom = [1], [2]
    wait_for(lambda: seldom._counts.get(0, 0) > 10 and often._counts.get(0, 0) > 10)
    assert (seldom._counts[0] + 2) % 10 == 0


def test_a_rank_whose_heartbeats_end_is_silent_and_another_is_not(
    hearts: Callable[..., list[Heartbeat]],
) -> None:
    watcher, stopping, beating = hearts(3)
    stopping.targets = beating.targets = [0]
    wait_for(lambda: heard(watcher, 1) and heard(watcher, 2))
    stopping.close()
    wait_for(lambda: watcher.silent([1], 0.5) == [1])
    wait_for(lambda: watcher.silent([1, 2], 0.5) == [1])


def test_forged_truncated_and_repeated_datagrams_do_not_count(hearts: Callable[..., list[Heartbeat]]) -> None:
    watcher, other, third = hearts(3)
    to, where = watcher.address, ("127.0.0.1", watcher.address.port)
    genuine = heartbeat.datagram(other.address, to, 1, 7)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for raw in (
            heartbeat.datagram(other.address, third.address, 1, 7),
            heartbeat.datagram(third.address, to, 1, 7),
            heartbeat.datagram(other.address, to, 2, 7)[:20] + genuine[20:],
            heartbeat.datagram(other.address, to, 99, 7),
            heartbeat.datagram(other.address, to, 1, 2**63)[:-16] + genuine[-16:],
            genuine[:-1],
            genuine + b"\0",
            b"",
        ):
            stranger.sendto(raw, where)
        third.targets = [0]
        wait_for(lambda: heard(watcher, 2))
        assert not heard(watcher, 1)
        stranger.sendto(genuine, where)
        wait_for(lambda: heard(watcher, 1))
        assert watcher._counts[1] == 7
        third.close()
        # The same one again and again is no sign of life, and the watcher does listen meanwhile.
        deadline = time.monotonic() + SOON
        while watcher.silent([1, 2], 0.5) != [1, 2]:
            assert time.monotonic() < deadline
            stranger.sendto(genuine, where)
            time.sleep(0.01)


# --- floods --------------------------------------------------------------------------------------

FLOODER = """
import os, socket, sys, time
os.nice(10)
end = time.monotonic() + float(sys.argv[1])
places = [("127.0.0.1", int(port)) for port in sys.argv[2:]]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
    while time.monotonic() < end and os.getppid() != 1:
        for place in places:
            for size in (0, 44, 44, 1400, 60000):
                try:
                    out.sendto(os.urandom(size), place)
                except OSError:
                    pass
"""


@pytest.fixture
def flood() -> Iterator[Callable[..., None]]:
    """Send junk to the ports of heartbeats, from four processes, for so many seconds at most."""
    flooders: list[subprocess.Popen[bytes]] = []

    def begin(*hearts: Heartbeat, seconds: float = 60.0) -> None:
        ports = [str(heart.address.port) for heart in hearts]
        line = [sys.executable, "-c", FLOODER, str(seconds), *ports]
        flooders.extend(subprocess.Popen(line) for _ in range(4))

    yield begin
    for flooder in flooders:
        flooder.kill()
        flooder.wait()


def flooded(heart: Heartbeat) -> Callable[[], bool]:
    """Return a condition: many more datagrams were dropped than there were."""
    assert heart._socket is not None
    mail = heart._socket
    return lambda: (heartbeat._dropped_datagrams(mail) or 0) > 1000 or heart._flooded


def test_a_flood_of_datagrams_neither_causes_nor_hides_silence(
    hearts: Callable[..., list[Heartbeat]], flood: Callable[..., None]
) -> None:
    watcher, stopping, beating = made = hearts(3)
    if not watcher._filters:
        pytest.skip("the kernel takes no socket filter")
    stopping.targets, beating.targets = [0], [0]
    wait_for(lambda: heard(watcher, 1) and heard(watcher, 2))
    flood(*made)
    wait_for(flooded(watcher))
    end = time.monotonic() + 2.0
    while time.monotonic() < end:
        assert watcher.silent([1, 2], 1.5) == []
        time.sleep(0.01)
    assert watcher._filters, "no stranger's datagram was ever read"
    stopping.close()
    wait_for(lambda: watcher.silent([1, 2], 1.5) == [1])


def test_a_flood_that_the_kernel_does_not_filter_is_no_silence(
    hearts: Callable[..., list[Heartbeat]], flood: Callable[..., None], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO")
    monkeypatch.setattr(socket_filter, "attach", lambda *_: False)
    watcher, stopping, beating = hearts(3)
    stopping.targets, beating.targets = [0], [0]
    wait_for(lambda: heard(watcher, 1) and heard(watcher, 2))
    assert watcher._socket is not None
    watcher._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # so that it overflows for sure
    flood(watcher)
    wait_for(flooded(watcher))
    stopping.close()
    end = time.monotonic() + 2.0
    while time.monotonic() < end:
        assert 2 not in watcher.silent([1, 2], 1.0)
        time.sleep(0.01)
    assert [record.message for record in caplog.records if record.message == "flooded"] == ["flooded"]


def test_time_in_which_datagrams_may_be_lost_does_not_count_as_silence() -> None:
    clock = SilenceClock(longest_gap=1.0)
    clock.advance(0.0)
    clock.record(1)
    for now in range(1, 100):
        clock.advance(float(now), missed=True)
    assert clock.silent([1], 1.5) == []
    clock.advance(100.0)
    assert clock.silent([1], 1.5) == []
    clock.advance(101.0)
    assert clock.silent([1], 1.5) == [1]


def test_reading_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    heart = Heartbeat(0)

    class Endless:
        def recv(self, size: int) -> bytes:
            return bytes(size)

    assert heart._read_datagrams(Endless()) == (set(), True)  # type: ignore[arg-type]
    assert not heart._filters, "what does not filter is not believed to"
    heart.close()


@pytest.mark.parametrize("drops", [None, 3])
def test_foreign_datagrams_count_as_loss_only_without_a_drop_counter(
    monkeypatch: pytest.MonkeyPatch, drops: int | None
) -> None:
    monkeypatch.setattr(socket_filter, "attach", lambda *_: False)
    heart = Heartbeat(0)
    mail = heart._socket
    assert mail is not None
    monkeypatch.setattr(heartbeat, "_dropped_datagrams", lambda mail: drops)
    heart._dropped = 3
    assert heart._read_datagrams(mail) == (set(), False)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"junk", ("127.0.0.1", heart.address.port))
    assert heart._read_datagrams(mail) == (set(), drops is None)
    heart._dropped = 2
    assert heart._read_datagrams(mail) == (set(), drops is not None)
    heart.close()


def test_closing_twice_or_before_the_start_is_fine(hearts: Callable[..., list[Heartbeat]]) -> None:
    lone = Heartbeat(0)
    lone.close()
    lone.close()
    lone.start([lone.address])
    assert lone.silent([0], 1.0) == []
    first, second = hearts(2)
    first.close()
    first.close()
    second.targets = [0]  # whose socket is gone


def test_without_sockets_no_rank_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no sockets here")

    monkeypatch.setattr(heartbeat.socket, "socket", refuse)
    mute = Heartbeat(0)
    assert mute.address.port == 0
    mute.start([mute.address])
    assert mute.silent([0], 0.0) == []
    mute.close()


# --- addresses -----------------------------------------------------------------------------------


@given(
    token=st.binary(min_size=16, max_size=16),
    key=st.binary(min_size=16, max_size=16),
    machine=st.binary(min_size=8, max_size=8),
    host=st.ip_addresses(v=4),
    port=st.integers(0, 65535),
)
def test_an_address_survives_the_exchange(
    token: bytes, key: bytes, machine: bytes, host: object, port: int
) -> None:
    address = Address(machine, str(host), port, token, key)
    raw = address.to_bytes()
    assert len(raw) == ADDRESS_BYTES
    assert Address.from_bytes(raw) == address


def test_tokens_and_keys_are_unique() -> None:
    first, second = Heartbeat(0), Heartbeat(0)
    assert len({first.address.token, first.address.key, second.address.token, second.address.key}) == 4
    first.close()
    second.close()


# --- echoes --------------------------------------------------------------------------------------


def test_a_leader_is_confirmed_by_those_that_follow_it(hearts: Callable[..., list[Heartbeat]]) -> None:
    leader, follower, other = hearts(3)
    for each in (leader, follower, other):
        each.targets = [rank for rank in range(3) if rank != each._rank]
    follower.follows, other.follows = 0, -1
    wait_for(lambda: heard(leader, 1) and heard(leader, 2))
    leader.unconfirmed([1, 2], 0.2)
    wait_for(lambda: leader.unconfirmed([1, 2], 0.2) == [2])
    assert leader.deaf([1, 2], SOON) == []
    leader.targets = [2]
    wait_for(lambda: leader.unconfirmed([1], 0.2) == [1] and leader.deaf([1, 2], 0.2) == [1])


def test_a_rank_that_is_a_target_again_has_time_to_echo() -> None:
    now = [0.0]
    heart = Heartbeat(0, clock=lambda: now[0])
    heart.targets = [1, 2]
    heart._counts |= {1: 1, 2: 1}
    heart._echoed |= {1: 0.0, 2: 0.0}
    heart.targets = [2]
    now[0] = 9.0
    heart.targets = [1, 2]
    assert heart.deaf([1, 2], 1.0) == [2]
    now[0] = 10.0
    assert heart.deaf([1, 2], 1.0) == [1, 2]
    heart.close()


def test_echoes_are_dated_and_the_dates_take_no_more_room() -> None:
    heart = Heartbeat(0)
    tracemalloc.start()
    try:
        heart._count(0.5)
        begin = tracemalloc.get_traced_memory()[0]
        for count in range(2, 2 * heartbeat._DATED):
            heart._count(count - 0.5)
        assert tracemalloc.get_traced_memory()[0] < begin + 1000
    finally:
        tracemalloc.stop()
    last = 2 * heartbeat._DATED - 1
    # One that is too old, and one that was not sent.
    for rank, echo in enumerate((last, heartbeat._DATED, heartbeat._DATED - 1, last + 1, 0), start=1):
        heart._record_echo(rank, echo, follows=False)
    assert heart._echoed == {1: last - 0.5, 2: heartbeat._DATED - 0.5}
    heart.close()


def test_a_muted_rank_is_silent_and_confirmed(hearts: Callable[..., list[Heartbeat]]) -> None:
    leader, follower = hearts(2)
    leader.targets, follower.targets, follower.follows = [1], [0], 0
    wait_for(lambda: heard(follower, 0) and heard(leader, 1))
    leader.muted = True
    wait_for(lambda: follower.silent([0], 0.2) == [0])
    assert leader.unconfirmed([1], SOON) == [] and leader.deaf([1], SOON) == []
    follower.hears_muted = True
    wait_for(lambda: follower.silent([0], 0.2) == [])
    follower.hears_muted = False
    wait_for(lambda: follower.silent([0], 0.2) == [0])
    leader.muted = False
    wait_for(lambda: follower.silent([0], 0.2) == [])
