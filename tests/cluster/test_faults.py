"""Injected faults affect the intended rank, at the intended time, once; random ones are determined by the seed."""

from __future__ import annotations

import signal
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.cluster.faults import NORMAL, Chance, Faults, FaultsSpec, InjectedSignal, Slow, Used, used
from mpips.cluster.observer import Observers
from mpips.cluster.outbox import Outbox
from mpips.cluster.splits import Split, Splits
from mpips.transport.in_memory import Network
from mpips.transport.message import Command, Kind, Message


class Clock:
    """A clock that only sleeping moves, or the test, and a thread's use of its processor."""

    def __init__(self) -> None:
        self.time, self.computed, self.waits = 100.0, 3.0, 7
        self.slept: list[float] = []

    def used(self) -> Used:
        return Used(self.computed, self.waits)

    def compute(self, seconds: float) -> None:
        self.time += seconds
        self.computed += seconds

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


def make(
    spec: FaultsSpec, role: str = "server", index: int = 0
) -> tuple[Faults, Clock, list[signal.Signals]]:
    clock, struck = Clock(), []
    return Faults(spec, role, index, clock.now, clock.sleep, clock.used, struck.append), clock, struck


def work(faults: Faults, clock: Clock, seconds: float, preempted: float = 0.0) -> None:
    """Do a piece of work; other processes occupy the core for some time meanwhile."""
    faults.begin_work()
    clock.compute(seconds)
    clock.time += preempted
    faults.end_work()


def test_a_fault_at_a_step_happens_once_also_when_that_step_is_skipped() -> None:
    faults, _, struck = make(
        FaultsSpec(
            kill=(InjectedSignal("server", 0, at_step=5),), stop=(InjectedSignal("server", 0, at_step=2),)
        )
    )
    for step in (0, 1):
        faults.step(step)
    assert struck == []
    faults.step(3)
    faults.step(4)
    assert struck == [signal.SIGSTOP]
    faults.step(5)
    faults.step(6)
    assert struck == [signal.SIGSTOP, signal.SIGKILL]


def test_a_fault_at_a_time_happens_once() -> None:
    faults, clock, struck = make(FaultsSpec(kill=(InjectedSignal("server", 0, at_seconds=1.5),)))
    clock.time += 1.4
    faults.poll()
    assert struck == []
    clock.time += 0.2
    faults.poll()
    faults.poll()
    assert struck == [signal.SIGKILL]


def test_faults_that_were_not_reached_are_named_as_in_the_job() -> None:
    first, second = InjectedSignal("server", 1, at_step=1), InjectedSignal("server", 0, at_step=5)
    spec = FaultsSpec(kill=(first, second), stop=(InjectedSignal("server", 0, at_seconds=9.0),))
    faults, _, struck = make(spec)
    assert faults.not_reached() == ["faults.kill[1]", "faults.stop[0]"]
    faults.step(5)
    assert struck == [signal.SIGKILL] and faults.not_reached() == ["faults.stop[0]"]


@pytest.mark.parametrize(("role", "index"), [("worker", 0), ("server", 1)])
def test_faults_affect_their_own_rank_only(role: str, index: int) -> None:
    spec = FaultsSpec(kill=(InjectedSignal("server", 0, at_step=0),), slow=(Slow("server", 0, 9.0),))
    faults, clock, struck = make(spec, role, index)
    faults.step(10)
    work(faults, clock, 1.0)
    assert (struck, clock.slept) == ([], [])


@given(st.lists(st.floats(0, 1e-4), max_size=50), st.floats(1, 10))
def test_slow_work_takes_factor_times_as_long(pieces: list[float], factor: float) -> None:
    faults, clock, _ = make(FaultsSpec(slow=(Slow("server", 0, factor),)))
    for piece in pieces:
        work(faults, clock, piece)
    owed = (factor - 1) * sum(pieces)
    assert owed - 60e-6 <= sum(clock.slept) <= owed + 1e-9
    assert all(seconds >= 50e-6 for seconds in clock.slept)


def test_a_sleep_that_was_too_long_shortens_the_next_ones() -> None:
    clock, slept = Clock(), []

    def oversleep(seconds: float) -> None:
        slept.append(seconds)
        clock.time += seconds + 0.010

    faults = Faults(FaultsSpec(slow=(Slow("worker", 0, 2.0),)), "worker", 0, clock.now, oversleep, clock.used)
    for _ in range(100):
        work(faults, clock, 0.001)
    assert clock.time - 100.0 == pytest.approx(0.200, abs=0.012)
    assert len(slept) < 12


@given(st.lists(st.tuples(st.floats(0, 1e-3), st.floats(0, 1e-2)), max_size=50), st.floats(2, 10))
def test_slow_work_takes_no_longer_when_other_processes_occupy_its_core(
    pieces: list[tuple[float, float]], factor: float
) -> None:
    faults, clock, _ = make(FaultsSpec(slow=(Slow("server", 0, factor),)))
    pieces.append((10.0, 0.0))  # enough to make up for all preemptions
    for computed, preempted in pieces:
        work(faults, clock, computed, preempted)
    assert clock.time - 100.0 == pytest.approx(factor * sum(computed for computed, _ in pieces), abs=60e-6)


def test_time_in_which_work_itself_waits_does_not_become_longer() -> None:
    faults, clock, _ = make(FaultsSpec(slow=(Slow("server", 0, 3.0),)))
    faults.begin_work()
    clock.compute(0.5)
    clock.time, clock.waits = clock.time + 10.0, clock.waits + 1  # it reads a file, say
    faults.end_work()
    assert clock.slept == [pytest.approx(1.0)]


def test_a_threads_use_of_its_processor_is_measured() -> None:
    before = used()
    while used().seconds < before.seconds + 0.01:
        pass
    busy = used()
    time.sleep(0.001)
    asleep = used()
    assert asleep.waits > busy.waits >= before.waits and asleep.seconds >= busy.seconds


def slept(spec: Slow, pieces: int, between: float) -> list[bool]:
    """Say of pieces of work of 1 ms, so many seconds after each other, which of them were slow."""
    faults, clock, _ = make(FaultsSpec(slow=(spec,)))
    out = []
    for _ in range(pieces):
        clock.slept.clear()
        work(faults, clock, 0.001)
        out.append(bool(clock.slept))
        clock.time += between
    return out


@pytest.mark.parametrize(
    ("spec", "role", "expected"),
    [
        (FaultsSpec(seed=3, slow=(Slow("worker", 0, 9.0),)), "worker", True),
        (FaultsSpec(seed=3, slow=(Slow("worker", 0, 9.0),)), "server", True),
        (FaultsSpec(slow=(Slow("server", 0, 9.0),)), "server", False),
        (FaultsSpec(slow=(Slow("server", 0, 9.0),)), "worker", True),
        (FaultsSpec(slow=(Slow("worker", 0, 9.0),), drop=Chance(0.1)), "worker", False),
        (FaultsSpec(kill=(InjectedSignal("server", 0, at_step=5),)), "worker", False),
    ],
)
def test_faults_that_only_slow_programs_leave_messages_to_compiled_code(
    spec: FaultsSpec, role: str, expected: bool
) -> None:
    assert make(spec, role)[0].in_programs is expected


def test_an_intermittent_straggler_is_slow_with_its_probability_by_the_seed() -> None:
    spec = Slow("server", 0, 3.0, probability=0.25)
    found = slept(spec, 4000, 0.0)
    assert sum(found) == pytest.approx(1000, abs=4 * 27.4)  # four standard deviations
    assert found == slept(spec, 4000, 0.0)
    alike = sum(a == b for a, b in pairwise(found))
    assert alike == pytest.approx(3999 * (0.25**2 + 0.75**2), abs=150)  # each piece is drawn anew


def test_a_straggler_stays_slow_for_its_spell() -> None:
    found = slept(Slow("server", 0, 1.5, probability=0.5, spell=0.1), 4000, 0.01)
    changes = sum(a != b for a, b in pairwise(found))
    assert sum(found) == pytest.approx(2000, abs=400)
    assert 120 <= changes <= 280  # some 10 pieces a spell, and every other spell is like the one before it


def test_messages_are_delivered_once_without_delay_by_default() -> None:
    faults, _, _ = make(FaultsSpec())
    assert not faults.affects_messages
    assert faults.message() is NORMAL
    assert not make(FaultsSpec(drop=Chance(0.0)))[0].affects_messages


def test_a_fault_of_probability_1_affects_every_message() -> None:
    assert make(FaultsSpec(drop=Chance(1.0)))[0].message() == ()
    assert make(FaultsSpec(delay=Chance(1.0, 0.5)))[0].message() == (0.5,)
    assert make(FaultsSpec(duplicate=Chance(1.0, 0.25)))[0].message() == (0.0, 0.25)
    both = FaultsSpec(delay=Chance(1.0, 0.5), duplicate=Chance(1.0, 0.25))
    assert make(both)[0].message() == (0.5, 0.75)


def fates(seed: int, role: str, index: int) -> list[tuple[float, ...]]:
    spec = FaultsSpec(seed=seed, drop=Chance(0.2), delay=Chance(0.3, 1.0), duplicate=Chance(0.1, 2.0))
    faults, _, _ = make(spec, role, index)
    return [faults.message() for _ in range(2000)]


def test_chances_follow_seed_and_rank() -> None:
    assert fates(1, "server", 0) == fates(1, "server", 0)
    assert fates(1, "server", 0) != fates(2, "server", 0)
    assert fates(1, "server", 0) != fates(1, "server", 1)
    assert fates(1, "server", 0) != fates(1, "worker", 0)
    dropped = sum(not fate for fate in fates(1, "server", 0))
    assert 320 < dropped < 480


def test_a_fault_has_either_a_step_or_a_time() -> None:
    with pytest.raises(ValueError, match="at_step or at_seconds"):
        InjectedSignal("server", 0)
    with pytest.raises(ValueError, match="at_step or at_seconds"):
        InjectedSignal("server", 0, at_step=1, at_seconds=1.0)


# Failures of the network.


def splits(rank: int, *specs: Split, hosts: tuple[str, ...] = ("a", "b", "a", "b")) -> tuple[Splits, Clock]:
    clock = Clock()
    return Splits(specs, rank, hosts, clock.now), clock


def kept(rank: int, *specs: Split, at: float = 1.5) -> set[int]:
    made, clock = splits(rank, *specs)
    clock.time += at
    return {dest for dest in range(4) if made.keeps(dest)}


@pytest.mark.parametrize(
    ("way", "inside", "outside"),
    [("both", {0, 3}, {1, 2}), ("from", {0, 3}, set()), ("to", set(), {1, 2})],
)
def test_a_split_keeps_messages_back_in_its_direction(way: str, inside: set[int], outside: set[int]) -> None:
    split = Split(1.0, 1.0, ranks=(1, 2), way=way)  # type: ignore[arg-type]
    assert kept(1, split) == kept(2, split) == inside
    assert kept(0, split) == kept(3, split) == outside
    assert kept(1, split, at=0.9) == kept(0, split, at=2.1) == set()


def test_a_host_is_split_off_and_splits_add_up() -> None:
    assert kept(0, Split(1.0, 1.0, host=1)) == {1, 3} and kept(3, Split(1.0, 1.0, host=1)) == {0, 2}
    assert kept(0, Split(1.0, 1.0, ranks=(1,)), Split(1.4, 1.0, ranks=(2,))) == {1, 2}


@pytest.mark.parametrize("keys", [{}, {"ranks": (1,), "host": 0}])
def test_a_split_has_one_side(keys: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="either ranks or host"):
        Split(**keys)  # type: ignore[arg-type]


def test_messages_of_a_failed_link_arrive_in_order_when_it_is_mended() -> None:
    network = Network(2)
    now = network.vans[0].now
    faults = Faults(FaultsSpec(split=(Split(1.0, 1.0, ranks=(0,)),)), "server", 0, now, hosts=("a", "a"))
    outbox = Outbox(network.vans[0], faults, Observers())
    arrived = []
    for number in range(5):
        network.time = 0.5 * number
        outbox.send_delayed(network.time)
        for kind in (Kind.CONTROL, Kind.CHAIN):
            outbox.send(1, Message(kind, Command.GONE, meta={"number": number}))
        while (message := network.vans[1].receive()) is not None:
            arrived.append((number, message.meta["number"]))
    assert arrived == [(0, 0), (0, 0), (1, 1), (1, 1), *((4, at) for at in (2, 2, 3, 3, 4, 4))]


def test_a_rank_that_is_excluded_while_its_link_has_failed_gets_what_was_sent_before() -> None:
    # Such as the view without it: else it would wait for `give_up` when the network is whole again.
    network = Network(2)
    now = network.vans[0].now
    faults = Faults(FaultsSpec(split=(Split(1.0, 1.0, ranks=(0,)),)), "server", 0, now, hosts=("a", "a"))
    outbox = Outbox(network.vans[0], faults, Observers())
    for number, at in enumerate((0.5, 1.2, 1.4, 2.1)):
        network.time = at
        outbox.send_delayed(network.time)
        outbox.send(1, Message(Kind.CONTROL, Command.VIEW, meta={"number": number}))
        if number == 1:
            outbox.exclude(1)
    received = iter(network.vans[1].receive, None)
    assert [message.meta["number"] for message in received] == [0, 1]
