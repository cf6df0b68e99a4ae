"""Who falls silent is found, and nobody else."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips import heartbeat
from mpips.heartbeat import ADDRESS_BYTES, Address, Attention, Heart

SOON = 20.0
"""Seconds within which what must come has come, on the busiest of machines."""


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def hearts() -> Iterator[Callable[..., list[Heart]]]:
    """Make hearts that know each other and have no targets yet."""
    made: list[Heart] = []

    def make(count: int, period: float = 0.02) -> list[Heart]:
        made.extend(Heart(rank, period) for rank in range(count))
        for heart in made:
            heart.start([other.address for other in made])
        return made

    yield make
    for heart in made:
        heart.close()


def heard(heart: Heart, rank: int) -> bool:
    return rank in heart._counts


# --- when somebody is silent ---------------------------------------------------------------------


def test_a_rank_never_heard_is_never_silent() -> None:
    attention = Attention(lapse=1.0)
    for now in range(100):
        attention.listen(float(now))
    assert attention.silent([0, 1, 2], 5.0) == []


def test_a_rank_nearby_that_was_never_heard_is_silent_in_the_end() -> None:
    attention = Attention(lapse=1.0, near={1, 2})
    silent = []
    for now in range(40):
        attention.listen(float(now))
        if now == 30:
            attention.hear(2)
        silent.append(attention.silent([0, 1, 2] if now >= 10 else [], 3.0))
    first = 10 + int(heartbeat.FIRST * 3.0)
    assert silent[:first] == [[]] * first, "not before it was asked for, and then longer than others have"
    assert silent[first:30] == [[1, 2]] * (30 - first)
    assert silent[30:33] == [[1]] * 3 and silent[33:] == [[1, 2]] * 7


def test_a_rank_is_silent_after_patience_and_no_longer_when_heard_again() -> None:
    attention = Attention(lapse=1.0)
    attention.listen(0.0)
    attention.hear(1)
    attention.hear(2)
    for now in range(1, 5):
        attention.listen(float(now))
        attention.hear(2)
    assert attention.silent([1, 2], 5.0) == []
    attention.listen(5.0)
    assert attention.silent([2, 1], 5.0) == [1]
    assert attention.silent([2], 5.0) == []
    attention.hear(1)
    assert attention.silent([1, 2], 5.0) == []


def test_a_listener_that_slept_blames_nobody() -> None:
    attention = Attention(lapse=1.0)
    attention.listen(0.0)
    attention.hear(1)
    attention.listen(3600.0)
    assert attention.silent([1], 1.5) == []
    attention.listen(3600.6)
    assert attention.silent([1], 1.5) == [1]


@given(
    gaps=st.lists(st.floats(0.0, 100.0), max_size=50),
    lapse=st.floats(0.1, 2.0),
    patience=st.floats(0.1, 50.0),
)
def test_silence_is_never_longer_than_the_turns_that_were_listened(
    gaps: list[float], lapse: float, patience: float
) -> None:
    attention, now = Attention(lapse), 0.0
    attention.listen(now)
    attention.hear(0)
    for gap in gaps:
        now += gap
        attention.listen(now)
    listened = sum(min(gap, lapse) for gap in gaps)
    assert bool(attention.silent([0], patience)) <= (listened >= patience - 1e-6)
    assert bool(attention.silent([0], patience)) >= (listened >= patience + 1e-6)


# --- hearts --------------------------------------------------------------------------------------


def test_hearts_hear_those_whose_targets_they_are(hearts: Callable[..., list[Heart]]) -> None:
    first, second, third = hearts(3)
    first.targets, second.targets = [1], [0, 2]
    wait_for(lambda: heard(first, 1) and heard(second, 0) and heard(third, 1))
    assert not heard(third, 0)
    assert not heard(first, 2)


def test_a_heart_that_stops_is_found_silent_and_its_neighbour_is_not(
    hearts: Callable[..., list[Heart]],
) -> None:
    watcher, stopping, beating = hearts(3)
    stopping.targets = beating.targets = [0]
    wait_for(lambda: heard(watcher, 1) and heard(watcher, 2))
    stopping.close()
    wait_for(lambda: watcher.silent([1], 0.5) == [1])
    wait_for(lambda: watcher.silent([1, 2], 0.5) == [1])


def test_forged_torn_and_repeated_datagrams_do_not_count(hearts: Callable[..., list[Heart]]) -> None:
    watcher, other, third = hearts(3)
    token, where = other.address.token, ("127.0.0.1", watcher.address.port)
    genuine = heartbeat._BEAT.pack(token, 1, 7)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for raw in (
            heartbeat._BEAT.pack(bytes(16), 1, 1),
            heartbeat._BEAT.pack(third.address.token, 1, 1),
            heartbeat._BEAT.pack(token, 99, 1),
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
        third.close()
        # The same one again and again is no sign of life, and the watcher does listen meanwhile.
        deadline = time.monotonic() + SOON
        while watcher.silent([1, 2], 0.5) != [1, 2]:
            assert time.monotonic() < deadline
            stranger.sendto(genuine, where)
            time.sleep(0.01)


def test_closing_twice_or_before_the_start_is_fine(hearts: Callable[..., list[Heart]]) -> None:
    lone = Heart(0)
    lone.close()
    lone.close()
    lone.start([lone.address])
    assert lone.silent([0], 1.0) == []
    first, second = hearts(2)
    first.close()
    first.close()
    second.targets = [0]  # whose socket is gone


def test_without_sockets_nobody_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no sockets here")

    monkeypatch.setattr(heartbeat.socket, "socket", refuse)
    mute = Heart(0)
    assert mute.address.port == 0
    mute.start([mute.address])
    assert mute.silent([0], 0.0) == []
    mute.close()


# --- addresses -----------------------------------------------------------------------------------


@given(
    token=st.binary(min_size=16, max_size=16),
    machine=st.binary(min_size=8, max_size=8),
    host=st.ip_addresses(v=4),
    port=st.integers(0, 65535),
)
def test_an_address_survives_the_exchange(token: bytes, machine: bytes, host: object, port: int) -> None:
    address = Address(token, machine, str(host), port)
    raw = address.to_bytes()
    assert len(raw) == ADDRESS_BYTES
    assert Address.from_bytes(raw) == address


def test_those_on_one_machine_use_loopback() -> None:
    here, also = (
        Address(bytes(16), b"machine1", "10.0.0.1", 7),
        Address(bytes(16), b"machine1", "10.0.0.1", 8),
    )
    there = Address(bytes(16), b"machine2", "10.0.0.2", 9)
    assert here.seen_from(also) == ("127.0.0.1", 7)
    assert here.seen_from(there) == ("10.0.0.1", 7)


@pytest.mark.parametrize(
    ("found", "expected"),
    [(["127.0.1.1", "10.1.2.3"], "10.1.2.3"), (["192.168.0.5", "10.1.2.3"], "192.168.0.5")],
)
def test_the_host_address_is_what_the_name_stands_for(
    monkeypatch: pytest.MonkeyPatch, found: list[str], expected: str
) -> None:
    answer = [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (host, 0)) for host in found]
    monkeypatch.setattr(heartbeat.socket, "getaddrinfo", lambda *_: answer)
    assert heartbeat.host_address() == expected


def test_a_machine_without_a_name_or_a_route_has_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(heartbeat.socket, "getaddrinfo", refuse)
    monkeypatch.setattr(heartbeat.socket.socket, "connect", refuse)
    assert heartbeat.host_address() == "127.0.0.1"
