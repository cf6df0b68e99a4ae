"""The stages of a rank's waiting, on a simulated clock."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.transport import wakeup as wakeups
from mpips.transport.backoff import BRIEF, POLLS, Backoff
from mpips.transport.wakeup import Wakeup

LOOK = 1e-6
"""Seconds that a look takes here."""
PATIENCE, CAP, DEEP = 1e-3, 0.9e-3, 5e-3


class Clock:
    """A clock that advances only by polls, yields and sleeps; it records each of them, and its time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.done: list[tuple[str, float]] = []

    def __call__(self) -> float:
        return self.now

    def yields(self) -> None:
        self.done.append(("yield", self.now))

    def sleep(self, seconds: float) -> None:
        self.done.append(("sleep", seconds))
        self.now += seconds


class Ringer:
    """A wakeup that another rank triggers at `rings` (s), if it is given."""

    def __init__(self, clock: Clock, rings: float = float("inf")) -> None:
        self.clock, self.rings, self.armed = clock, rings, False
        self.done: list[str] = []

    def arm(self) -> None:
        self.armed = True
        self.done.append("arm")

    def disarm(self) -> None:
        self.armed = False
        self.done.append("disarm")

    def sleep(self, seconds: float) -> None:
        assert self.armed
        self.done.append("sleep")
        self.clock.sleep(max(min(seconds, self.rings - self.clock.now), 0.0))


def made(clock: Clock, wakeup: Ringer | None = None, *, oversubscribed: bool = False) -> Backoff:
    return Backoff(
        PATIENCE,
        CAP,
        clock.sleep,
        deep=DEEP,
        wakeup=wakeup,
        oversubscribed=oversubscribed,
        clock=clock,
        yield_core=clock.yields,
    )


def wait(backoff: Backoff, clock: Clock, until: float, *, moving: bool = False) -> int:
    """Poll until a time; return the number of polls."""
    looks = 0
    while clock.now < until:
        backoff.wait(lambda: moving)
        clock.now += LOOK
        looks += 1
    return looks


def kinds(clock: Clock) -> set[str]:
    return {kind for kind, _ in clock.done}


def test_with_a_core_of_its_own_a_short_wait_makes_no_system_call() -> None:
    clock = Clock()
    backoff = made(clock, Ringer(clock))
    for _ in range(50):
        wait(backoff, clock, clock.now + 0.9 * BRIEF)
        backoff.reset()
    assert clock.done == []
    wait(backoff, clock, clock.now + 0.9 * PATIENCE)
    assert kinds(clock) == {"yield"}


def test_with_oversubscribed_cores_it_yields_before_the_first_poll() -> None:
    clock = Clock()
    made(clock, oversubscribed=True).wait()
    assert clock.done == [("yield", 0.0)]


@given(st.floats(2e-3, 5.0))
def test_the_delay_is_at_most_a_sixteenth_of_the_wait(comes: float) -> None:
    clock = Clock()
    wait(made(clock), clock, comes)
    sleeps = [seconds for kind, seconds in clock.done if kind == "sleep"]
    assert sleeps and max(sleeps) <= CAP
    assert clock.now - comes <= min(comes / 16, CAP) + LOOK


def test_between_two_sleeps_it_polls_several_times() -> None:
    clock = Clock()
    looks = wait(made(clock), clock, 1.0)
    sleeps = sum(kind == "sleep" for kind, _ in clock.done)
    before = PATIENCE / LOOK
    assert looks - before == pytest.approx(POLLS * sleeps, abs=POLLS)


def test_with_a_wakeup_it_sleeps_longer_and_is_woken_at_once() -> None:
    clock = Clock()
    wakeup = Ringer(clock, rings=0.5)
    backoff = made(clock, wakeup)
    looks = wait(backoff, clock, 0.4)
    assert wakeup.armed and wakeup.done.count("arm") == 1
    assert looks - PATIENCE / LOOK < (POLLS + 1) * (0.4 / DEEP + 3)
    wait(backoff, clock, 0.5)
    assert clock.now == pytest.approx(0.5, abs=2 * LOOK)
    backoff.reset()
    assert not wakeup.armed and not backoff.waiting


@given(st.floats(2e-3, 5.0))
def test_a_lost_wakeup_costs_no_more_than_the_wait_so_far(comes: float) -> None:
    clock = Clock()
    wait(made(clock, Ringer(clock)), clock, comes)
    assert clock.now - comes <= min(comes, DEEP) + LOOK


def test_it_polls_between_arming_the_wakeup_and_sleeping() -> None:
    clock = Clock()
    wakeup = Ringer(clock)
    backoff = made(clock, wakeup)
    wait(backoff, clock, PATIENCE)
    while "arm" not in wakeup.done:
        backoff.wait()
    assert (
        "sleep" not in wakeup.done
    )  # a message that came before others saw the flag is found by the next look


def test_during_a_transfer_it_sleeps_briefly_without_the_wakeup() -> None:
    clock = Clock()
    wakeup = Ringer(clock)
    backoff = made(clock, wakeup)
    wait(backoff, clock, 0.2, moving=True)
    assert wakeup.done == [] and max(seconds for kind, seconds in clock.done if kind == "sleep") <= CAP
    wait(backoff, clock, 0.4)
    assert wakeup.armed
    wait(backoff, clock, 0.6, moving=True)
    assert not wakeup.armed


@given(st.lists(st.tuples(st.floats(1e-6, 0.1), st.booleans(), st.booleans()), max_size=30))
def test_after_progress_the_wakeup_is_disarmed(waits: list[tuple[float, bool, bool]]) -> None:
    clock = Clock()
    wakeup = Ringer(clock)
    backoff = made(clock, wakeup)
    for seconds, moving, progress in waits:
        wait(backoff, clock, clock.now + seconds, moving=moving)
        assert backoff.waiting
        if progress:
            backoff.reset()
            assert not wakeup.armed and not backoff.waiting
            before = len(clock.done)
            backoff.wait()
            assert clock.done[before:] == []


# --- the wakeup ------------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[list[Wakeup]]:
    """Return the wakeups of two ranks."""
    path = wakeups._create_flags_file(2)
    made = [wakeups._open(rank, 2, path) for rank in range(2)]
    os.unlink(path)
    assert made[0] is not None and made[1] is not None
    yield [each for each in made if each is not None]
    for each in made:
        assert each is not None
        each.close()
        each.close()


def test_a_wakeup_ends_a_sleep_and_the_sleeper_is_armed_again(pair: list[Wakeup]) -> None:
    sleeper, sender = pair
    sleeper.arm()
    assert sender.asleep[0] == 1 and sender.asleep[1] == 0 and sender.flags.tolist() == [1, 0]
    sender.wake(0)
    assert sender.asleep[0] == 0
    sleeper.sleep(60.0)  # would time the test out
    assert sender.asleep[0] == 1
    sleeper.disarm()
    assert sender.asleep[0] == 0


def test_many_wakeups_end_one_sleep(pair: list[Wakeup]) -> None:
    sleeper, sender = pair
    for _ in range(3):
        sender.wake(0)
    sleeper.sleep(60.0)
    assert not select.select([sleeper._socket], [], [], 0)[0]
    sleeper.sleep(0.001)


def test_waking_dead_ranks_and_full_sockets_has_no_effect(pair: list[Wakeup]) -> None:
    sleeper, sender = pair
    for _ in range(10_000):
        sender.wake(0)
    sleeper.sleep(60.0)
    sleeper.close()
    sender.wake(0)
    assert sender.asleep[0] == 0


def test_datagrams_of_other_users_wake_no_rank(pair: list[Wakeup]) -> None:
    sleeper, sender = pair
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
        stranger.setblocking(False)
        for junk in (b"", b"!", bytes(16), bytes(17)) * 100:
            stranger.sendto(junk, wakeups._address(sleeper._name, 0))
    assert not select.select([sleeper._socket], [], [], 0)[0]
    sender.wake(0)
    sleeper.sleep(60.0)


def test_a_socket_name_in_use_gives_no_wakeup(pair: list[Wakeup]) -> None:
    path = wakeups._create_flags_file(2)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind(wakeups._address(os.path.basename(path), 1))
            assert wakeups._open(1, 2, path) is None
    finally:
        os.unlink(path)
    assert wakeups._open(1, 2, path) is None


def letters(*ranks: tuple[bytes, list[int]]) -> Any:
    return np.stack([wakeups._descriptor(host, cores, "/dev/shm/page") for host, cores in ranks])


def test_ranks_are_counted_against_the_cores_that_any_of_them_has() -> None:
    here, there = b"a" * 8, b"b" * 8
    two = [(here, [0, 1])] * 2
    assert not wakeups.is_oversubscribed(letters(*two), 0)
    assert wakeups.is_oversubscribed(letters(*two, (here, [1])), 2)
    assert not wakeups.is_oversubscribed(letters(*two, (there, [0]), (there, [900])), 3)
    assert not wakeups.is_oversubscribed(letters((here, [0]), (here, [1]), (here, [5, 6])), 0)


def test_wakeups_exist_on_one_host_only() -> None:
    assert wakeups._shared(letters((b"a" * 8, [0]), (b"a" * 8, [0]))) == ("/dev/shm/page", True)
    assert not wakeups._shared(letters((b"a" * 8, [0]), (b"b" * 8, [0])))[1]
