"""The in-memory twin conforms to the interface of vans, and its faults are as documented."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conformance import PROGRAMS

from mpips.transport.in_memory import Deadlock, Network, TwinVan
from mpips.transport.message import Command, Kind, Message
from mpips.transport.network_faults import Fault, no_delay, random_arrivals, random_delays
from mpips.transport.van import Van


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("delay", [0.0, 0.01])
def test_conformance(program: Callable[[Van], None], size: int, delay: float) -> None:
    if program.__name__ == "ping_pong" and size < 2:
        pytest.skip("takes two")
    delays = random_delays(7, delay=delay) if delay else no_delay
    Network(size, delays, seed=3).run([program] * size)


def numbers(count: int, delays: Callable[..., object], seed: int = 0) -> list[int]:
    """Send 0 .. count-1 from rank 0 to rank 1 and give the order of arrival."""
    arrived: list[int] = []

    def source(van: TwinVan) -> None:
        for number in range(count):
            van.send(1, Message(Kind.REQUEST, Command.CALL, 0, time=number))

    def sink(van: TwinVan) -> None:
        while van.now() < 1.0:
            message = van.receive()
            if message is None:
                van.idle()
            else:
                arrived.append(message.time)

    Network(2, delays, seed).run([source, sink])  # type: ignore[arg-type]
    return arrived


def test_without_delays_messages_arrive_in_order() -> None:
    assert numbers(50, no_delay) == list(range(50))


def test_delay_reorders_and_loses_nothing() -> None:
    got = numbers(50, random_delays(1, delay=0.1))
    assert got != list(range(50)) and sorted(got) == list(range(50))


def test_drop_and_duplicate() -> None:
    got = numbers(300, random_delays(1, drop=0.2, duplicate=0.2))
    missing = 300 - len(set(got))
    repeated = len(got) - len(set(got))
    assert 30 < missing < 90 and 30 < repeated < 90


def test_a_simulation_is_a_function_of_its_seed() -> None:
    runs = [numbers(100, random_delays(5, delay=0.1, drop=0.1, duplicate=0.1), seed=9) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0] != numbers(100, random_delays(6, delay=0.1, drop=0.1, duplicate=0.1), seed=9)


def test_waiting_for_nothing_is_a_deadlock() -> None:
    def forever(van: TwinVan) -> None:
        while van.receive() is None:
            van.idle()

    with pytest.raises(Deadlock):
        Network(3).run([forever] * 3, horizon=10.0)


def test_an_error_in_one_program_ends_all() -> None:
    def fails(van: TwinVan) -> None:
        raise KeyError("here")

    def forever(van: TwinVan) -> None:
        while van.receive() is None:
            van.idle()

    with pytest.raises(KeyError, match="here"):
        Network(3).run([forever, fails, forever])


def test_a_deadlock_is_raised_also_where_a_program_takes_it_for_an_error_of_its_own() -> None:
    def swallows(van: TwinVan) -> str:
        try:
            while van.receive() is None:
                van.idle()
        except Exception:
            return "never mind"
        return "a message"

    for seed in range(4):
        with pytest.raises(Deadlock):
            Network(3, seed=seed).run([swallows] * 3, horizon=1.0)


def test_control_messages_are_delayed_only() -> None:
    delays = random_delays(1, delay=0.1, drop=1.0)
    request, control = Message(Kind.REQUEST, Command.CALL), Message(Kind.CONTROL, Command.STOP)
    assert [len(delays(0, 1, request)) for _ in range(20)] == [0] * 20
    drawn = [delays(0, 1, control) for _ in range(20)]
    assert all(len(copies) == 1 and 0 <= copies[0] < 0.1 for copies in drawn) and len(set(drawn)) > 1
    assert list(random_delays(1, drop=1.0, spare_control=False)(0, 1, control)) == []


# Deaths.


def forever(van: TwinVan) -> None:
    while True:
        van.receive()
        van.idle()


def watcher(until: float) -> Callable[[TwinVan], list[tuple[float, int]]]:
    """Return a program that records when it detects which death."""

    def watch(van: TwinVan) -> list[tuple[float, int]]:
        seen: list[tuple[float, int]] = []
        while van.wall() < until:
            seen += [(van.wall(), rank) for rank in van.failed()]
            van.idle()
        return seen

    return watch


@pytest.mark.parametrize("instant", [{"at": 0.0}, {"at": 0.0125}, {"after_messages": 0}])
def test_a_death_is_detected_once_by_each_other_rank_within_the_time(instant: dict[str, Any]) -> None:
    fault = Fault("kill", 0, **instant)
    network = Network(4, seed=5, faults=[fault], detection=0.2)
    results = network.run([forever] + [watcher(1.0)] * 3)
    assert results[0] is None
    died = fault.at or 0.0
    times = []
    for seen in results[1:]:
        ((time, rank),) = seen
        assert rank == 0 and died + 0.2 <= time <= died + 0.3
        times.append(time)
    assert len(set(times)) == 3
    again = Network(4, seed=5, faults=[fault], detection=0.2).run([forever] + [watcher(1.0)] * 3)
    assert again == results
    assert Network(4, seed=6, faults=[fault], detection=0.2).run([forever] + [watcher(1.0)] * 3) != results


def test_simulated_time_stops_at_faults_and_detections() -> None:
    """Nothing else happens: a tick of ten seconds would step over both."""
    network = Network(2, tick=10.0, faults=[Fault("kill", 0, at=1.5)], detection=0.25)
    ((time, rank),) = network.run([forever, watcher(5.0)])[1]
    assert rank == 0 and 1.75 <= time <= 1.875


def test_a_killed_rank_never_comes_back_from_its_van() -> None:
    log: list[str] = []

    def victim(van: TwinVan) -> str:
        try:
            for number in range(100):
                van.send(1, Message(Kind.REQUEST, Command.CALL, 0, time=number))
                log.append(f"sent {number}")
                van.idle()
        except Exception:
            log.append("caught")
        finally:
            log.append("left")
            van.send(1, Message(Kind.REQUEST, Command.CALL, 0, time=1000))
            log.append("posted from the grave")
        return "done"

    def sink(van: TwinVan) -> list[int]:
        got: list[int] = []
        while not van.failed():
            while (message := van.receive()) is not None:
                got.append(message.time)
            van.idle()
        return got

    network = Network(2, faults=[Fault("kill", 0, after_messages=3)])
    assert network.run([victim, sink]) == [None, [0, 1, 2]]
    assert log == ["sent 0", "sent 1", "left"]
    assert network.posted == 3


def test_an_idle_rank_that_is_killed_unwinds() -> None:
    log: list[str] = []

    def victim(van: TwinVan) -> None:
        try:
            forever(van)
        finally:
            log.append("left")

    def killer(van: TwinVan) -> str:
        van.idle()
        network.kill(1)
        network.kill(1)
        return "done"

    network = Network(2)
    assert network.run([killer, victim]) == ["done", None]
    assert log == ["left"]


def test_a_rank_may_kill_itself_and_ended_ranks_are_not_killed() -> None:
    def suicide(van: TwinVan) -> str:
        network.kill(van.rank)
        van.now()
        return "alive"

    def late(van: TwinVan) -> list[int]:
        while van.now() < 1.0:
            van.idle()
        network.kill(2)
        network.stop(2)
        while van.now() < 2.0:
            van.idle()
        return van.failed()

    network = Network(3)
    assert network.run([suicide, late, lambda van: "early"]) == [None, [0], "early"]


def test_an_error_of_a_dying_rank_is_not_an_error() -> None:
    def victim(van: TwinVan) -> None:
        try:
            forever(van)
        finally:
            raise KeyError("in the grave")

    assert Network(2, faults=[Fault("kill", 0, at=0.1)]).run([victim, watcher(0.5)])[0] is None


def collector(van: TwinVan) -> list[int]:
    got: list[int] = []
    while van.now() < 1.0:
        while (message := van.receive()) is not None:
            got.append(message.time)
        van.idle()
    return got


def burst(count: int) -> Callable[[TwinVan], None]:
    """Return a program that sends numbers to rank 1 and then waits."""

    def program(van: TwinVan) -> None:
        for number in range(count):
            van.send(1, Message(Kind.REQUEST, Command.CALL, van.rank, time=number))
        forever(van)

    return program


def test_what_a_killed_rank_had_posted_arrives_unless_the_policy_says_otherwise() -> None:
    faults = [Fault("kill", 0, after_messages=100)]
    got = Network(2, random_delays(1, delay=0.2), faults=faults).run([burst(200), collector])[1]
    assert sorted(got) == list(range(100))
    got = Network(2, random_delays(1, delay=0.2), faults=faults, arrives=random_arrivals(1, 0.5)).run(
        [burst(200), collector]
    )[1]
    assert 30 < len(got) < 70 and set(got) < set(range(100))


def test_an_excluded_rank_is_neither_received_from_nor_sent_to_nor_reported() -> None:
    def chatter(van: TwinVan) -> list[int]:
        for number in range(20):
            van.send(1, Message(Kind.REQUEST, Command.CALL, 0, time=number))
            van.idle()
        return collector(van)

    def undertaker(van: TwinVan) -> tuple[list[int], list[int]]:
        while (message := van.receive()) is None:
            van.idle()
        van.exclude(0)
        sent = van.sent_bytes
        van.send(0, message)
        assert van.sent_bytes == sent
        got = collector(van)
        return got, van.failed()

    network = Network(2, random_delays(2, delay=0.05), faults=[Fault("kill", 0, at=0.9)])
    assert network.run([chatter, undertaker])[1] == ([], [])
    network = Network(2, random_delays(2, delay=0.05))
    assert network.run([chatter, undertaker]) == [[], ([], [])]


# Ranks that hang.


def test_a_stopped_rank_misses_nothing_and_is_not_reported() -> None:
    faults = [Fault("stop", 1, at=0.0), Fault("resume", 1, at=0.5)]
    first: list[float] = []

    def stopped(van: TwinVan) -> list[int]:
        first.append(van.now())
        return collector(van)

    results = Network(3, faults=[*faults, Fault("kill", 0, at=0.9)]).run([burst(10), stopped, watcher(0.9)])
    assert first == [0.5]
    assert sorted(results[1]) == list(range(10))
    assert results[2] == []


def test_a_rank_may_be_stopped_in_the_middle_of_sending() -> None:
    log: list[tuple[int, float]] = []

    def sender(van: TwinVan) -> str:
        for number in range(5):
            van.send(1, Message(Kind.REQUEST, Command.CALL, 0, time=number))
            log.append((number, van.now()))
        return "done"

    faults = [Fault("stop", 0, after_messages=3, lasting=0.25)]
    results = Network(2, faults=faults).run([sender, collector])
    assert results == ["done", [0, 1, 2, 3, 4]]
    assert log == [(0, 0.0), (1, 0.0), (2, 0.25), (3, 0.25), (4, 0.25)]


def test_a_heartbeat_reports_silent_ranks() -> None:
    def listener(van: TwinVan) -> list[tuple[float, list[int]]]:
        heartbeat = network.heartbeat(0)
        heartbeat.targets = [1, 2, 3]
        seen: list[tuple[float, list[int]]] = []
        for when in (0.4, 0.7, 1.1):
            while van.now() < when:
                van.idle()
            seen.append((when, heartbeat.silent([3, 2, 1], patience=0.3)))
        heartbeat.close()
        return seen

    faults = [Fault("stop", 1, at=0.2, lasting=0.7), Fault("kill", 3, at=0.6), Fault("stop", 2, at=1.0)]
    network = Network(4, faults=faults)
    results = network.run([listener] + [watcher(2.0)] * 3)
    assert results[0] == [(0.4, []), (0.7, [1]), (1.1, [3])]


def test_a_rank_that_was_stopped_suspects_no_other() -> None:
    def listener(van: TwinVan) -> list[tuple[float, list[int]]]:
        seen: list[tuple[float, list[int]]] = []
        while van.now() < 2.0:
            silent = network.heartbeat(0).silent([1], patience=0.3)
            if not seen or seen[-1][1] != silent:
                seen.append((van.now(), silent))
            van.idle()
        return seen

    faults = [Fault("stop", 0, at=0.5, lasting=1.0), Fault("stop", 1, at=0.4)]
    network = Network(2, faults=faults)
    (_, first), (time, second) = network.run([listener, forever])[0]
    assert (first, second) == ([], [1])
    assert 1.7 <= time < 1.702  # a tenth of a second before it was stopped, two tenths after


@pytest.mark.parametrize("seed", range(4))
def test_a_rank_that_stays_stopped_does_not_delay_the_end(seed: int) -> None:
    faults = [Fault("stop", 1, at=0.1), Fault("stop", 2, at=0.2)]
    results = Network(3, seed=seed, faults=faults).run([lambda van: "early", forever, watcher(1.0)])
    assert results == ["early", None, None]


def test_a_rank_that_resumes_after_all_others_have_ended_continues() -> None:
    faults = [Fault("stop", 1, at=0.0), Fault("resume", 1, at=30.0)]
    assert Network(2, faults=faults).run([lambda van: 0, lambda van: van.now()]) == [0, 30.0]


def test_waiting_for_the_dead_or_the_stopped_is_a_deadlock() -> None:
    def waits(van: TwinVan) -> None:
        while van.receive() is None:
            van.idle()

    with pytest.raises(Deadlock, match=r"rank 1 waits in waits \(test_in_memory.py:\d+\)$"):
        Network(2, faults=[Fault("kill", 0, at=0.5)]).run([forever, waits], horizon=2.0)
    with pytest.raises(Deadlock, match=r"rank 0 is stopped, rank 1 waits in waits"):
        Network(2, faults=[Fault("stop", 0, at=0.5)]).run([forever, waits], horizon=2.0)


def test_a_simulation_with_faults_is_a_function_of_its_seed() -> None:
    """Ranks pass a token around while others die and hang: the whole course is a function of the seed."""

    def course(seed: int) -> list[Any]:
        log: list[tuple[float, int, int]] = []

        def member(van: TwinVan) -> int:
            if van.rank == 0:
                van.send(1, Message(Kind.REQUEST, Command.CALL, 0, time=1))
            dead: set[int] = set()
            while van.now() < 0.6:
                for rank in van.failed():
                    dead.add(rank)
                    log.append((van.now(), van.rank, -rank))
                message = van.receive()
                if message is None:
                    van.idle()
                    continue
                log.append((van.now(), van.rank, message.time))
                others = [rank for rank in range(van.size) if rank not in dead and rank != van.rank]
                message.time += 1
                van.send(others[message.time % len(others)], message)
            return len(dead)

        faults = [
            Fault("kill", 3, after_messages=9),
            Fault("stop", 2, at=0.05, lasting=0.1),
            Fault("kill", 4, at=0.2),
        ]
        delays = random_delays(seed, delay=0.01, duplicate=0.1)
        results = Network(5, delays, seed, faults=faults, arrives=random_arrivals(seed, 0.5)).run(
            [member] * 5
        )
        assert results[3] is None and results[4] is None
        return [results, log]

    assert course(1) == course(1)
    assert course(1) != course(2)


def test_a_fault_has_either_a_time_or_a_number_of_messages() -> None:
    for instant in ({}, {"at": 1.0, "after_messages": 1}):
        with pytest.raises(ValueError, match="give either `at` or"):
            Fault("kill", 0, **instant)  # type: ignore[arg-type]
