"""The in-memory twin is a van like any other, and its faults are what they say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from conformance import PROGRAMS

from mpips.message import Command, Kind, Message
from mpips.twin import Deadlock, Network, TwinVan, calm, rough
from mpips.van import Van


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("delay", [0.0, 0.01])
def test_conformance(program: Callable[[Van], None], size: int, delay: float) -> None:
    if program.__name__ == "ping_pong" and size < 2:
        pytest.skip("takes two")
    fate = rough(7, delay=delay) if delay else calm
    Network(size, fate, seed=3).run([program] * size)


def numbers(count: int, fate: Callable[..., object], seed: int = 0) -> list[int]:
    """Send 0 .. count-1 from rank 0 to rank 1 and give the order of arrival."""
    arrived: list[int] = []

    def source(van: TwinVan) -> None:
        for number in range(count):
            van.send(1, Message(Kind.REQUEST, Command.CALL, 0, seq=number))

    def sink(van: TwinVan) -> None:
        while van.now() < 1.0:
            message = van.receive()
            if message is None:
                van.idle()
            else:
                arrived.append(message.seq)

    Network(2, fate, seed).run([source, sink])  # type: ignore[arg-type]
    return arrived


def test_calm_keeps_order() -> None:
    assert numbers(50, calm) == list(range(50))


def test_delay_reorders_and_loses_nothing() -> None:
    got = numbers(50, rough(1, delay=0.1))
    assert got != list(range(50)) and sorted(got) == list(range(50))


def test_drop_and_duplicate() -> None:
    got = numbers(300, rough(1, drop=0.2, duplicate=0.2))
    missing = 300 - len(set(got))
    repeated = len(got) - len(set(got))
    assert 30 < missing < 90 and 30 < repeated < 90


def test_a_seed_is_a_run() -> None:
    runs = [numbers(100, rough(5, delay=0.1, drop=0.1, duplicate=0.1), seed=9) for _ in range(2)]
    assert runs[0] == runs[1]
    assert runs[0] != numbers(100, rough(6, delay=0.1, drop=0.1, duplicate=0.1), seed=9)


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
    fate = rough(1, delay=0.1, drop=1.0)
    request, control = Message(Kind.REQUEST, Command.CALL), Message(Kind.CONTROL, Command.STOP)
    assert [len(fate(0, 1, request)) for _ in range(20)] == [0] * 20
    delays = [fate(0, 1, control) for _ in range(20)]
    assert all(len(copies) == 1 and 0 <= copies[0] < 0.1 for copies in delays) and len(set(delays)) > 1
    assert list(rough(1, drop=1.0, spare_control=False)(0, 1, control)) == []
