"""The speed of links: how it is measured, what interfaces state, and what is too slow."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mpips.launch.checks import wire
from mpips.launch.checks.check import Verdict


class Link:
    """A link of a latency (s) and bandwidth (bytes/s), whose time does not pass."""

    def __init__(self, latency: float, bandwidth: float) -> None:
        self.latency, self.bandwidth, self.sent = latency, bandwidth, 0.0

    def exchange(self, size: int, rounds: int) -> Sequence[float]:
        one_way = self.latency + size / self.bandwidth
        self.sent += 2 * rounds * one_way
        return [one_way] * rounds


@pytest.mark.parametrize(("latency", "bandwidth"), [(1e-6, 12.5e9), (30e-6, 125e6), (1e-3, 1.25e6)])
def test_fast_and_slow_links_are_measured_in_limited_time(latency: float, bandwidth: float) -> None:
    link = Link(latency, bandwidth)
    found = wire.measure(link.exchange, lambda number: number)
    assert found.latency == pytest.approx(latency + 8 / bandwidth)
    assert bandwidth * 0.5 < found.bandwidth <= bandwidth
    assert link.sent < 2 * wire.BUDGET + 2 * (3 * wire.MODEST / bandwidth) + 20 * latency + 0.1


def test_two_processes_measure_a_tcp_connection() -> None:
    listener = wire.listen("127.0.0.1")
    ends: list[wire.TcpLink | None] = [None, None]
    numbers: list[int] = []
    ready = threading.Barrier(2)

    def agree(number: int) -> int:
        """Pass the number of the first thread."""
        first = threading.current_thread() is threading.main_thread()
        if first:
            numbers.append(number)
        ready.wait(30)
        found = numbers[-1]
        ready.wait(30)
        return found

    def other() -> None:
        ends[1] = link = wire.connect("127.0.0.1", port, 30.0)
        assert link is not None
        wire.measure(link.exchange, agree, 0.005)

    port = listener.getsockname()[1]
    thread = threading.Thread(target=other)
    thread.start()
    ends[0] = link = wire.accept(listener, 30.0)
    assert link is not None and link.address == "127.0.0.1"
    found = wire.measure(link.exchange, agree, 0.005)
    thread.join()
    for end in ends:
        assert end is not None
        end.close()
    assert 0 < found.latency < 30 and 0 < found.bandwidth < 1e12


@pytest.mark.parametrize("fails", [0, 1, None])
@pytest.mark.parametrize("at", range(1, 5))
def test_a_reference_that_fails_on_one_rank_is_left_out_on_both(fails: int | None, at: int) -> None:
    meet = threading.Barrier(2)
    said: list[Any] = [None, None]
    found: list[Any] = ["not ended", "not ended"]

    def rank(number: int) -> None:
        link, calls = Link(30e-6, 125e6), iter(range(1, 100))

        def exchange(size: int, rounds: int) -> Sequence[float]:
            if next(calls) >= at and number == fails:
                raise TimeoutError
            return link.exchange(size, rounds)

        def everyone(value: Any) -> list[Any]:
            said[number] = value
            meet.wait(30)
            both = list(said)
            meet.wait(30)
            return both

        found[number] = wire.measure_reference(
            exchange, lambda value: int(everyone(value)[0]), lambda well: all(everyone(well))
        )

    other = threading.Thread(target=rank, args=(1,))
    other.start()
    rank(0)
    other.join()
    if fails is None:
        assert found[0] == found[1] == wire.measure(Link(30e-6, 125e6).exchange, lambda number: number)
    else:
        assert found == [None, None]


def test_one_that_cannot_be_reached_is_no_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "CONNECTS", -0.9)
    listener = wire.listen("127.0.0.1")
    port = listener.getsockname()[1]
    assert wire.accept(listener, 1.0) is None
    monkeypatch.setattr(wire, "CONNECTS", 3.0)
    assert wire.connect("127.0.0.1", port, 1.0) is None


def test_the_stated_speed_is_that_of_the_interface_or_of_infiniband(tmp_path: Path) -> None:
    assert wire.stated("127.0.0.1", tmp_path) is None, "nothing is known"
    (tmp_path / "net" / "lo").mkdir(parents=True)
    speed = tmp_path / "net" / "lo" / "speed"
    for text, expected in (("10000\n", 1.25e9), ("-1\n", None), ("", None)):
        speed.write_text(text)
        assert wire.stated("127.0.0.1", tmp_path) == expected
    speed.write_text("1000")
    port = tmp_path / "infiniband" / "mlx5_0" / "ports" / "1"
    port.mkdir(parents=True)
    (port / "rate").write_text("100 Gb/sec (4X EDR)\n")
    (port / "state").write_text("1: DOWN\n")
    assert wire.stated("127.0.0.1", tmp_path) == 125e6
    (port / "state").write_text("4: ACTIVE\n")
    assert wire.stated("127.0.0.1", tmp_path) == 12.5e9


def pair(mpi: tuple[float, float], tcp: tuple[float, float] | None = None, **more: Any) -> dict[str, Any]:
    def facts(speed: tuple[float, float]) -> dict[str, float]:
        return {"latency_seconds": speed[0], "bytes_per_second": speed[1]}

    return {
        "hosts": ["a", "b"],
        "mpi": facts(mpi),
        "tcp": facts(tcp) if tcp else None,
        "stated": None,
        **more,
    }


GOOD = (2e-6, 10e9)


@pytest.mark.parametrize(
    ("pairs", "latency", "bandwidth"),
    [
        ([pair(GOOD, (20e-6, 3e9), stated=12.5e9)], "ok", "ok"),
        ([pair(GOOD)], "ok", "ok"),
        ([pair((30e-6, 0.4e9), (25e-6, 1e9))], "ok", "warn"),
        ([pair((300e-6, 0.05e9), (25e-6, 1e9))], "warn", "fail"),
        ([pair((3e-3, 1e9), (25e-6, 1e9))], "fail", "ok"),
        # MPI uses Ethernet where there is InfiniBand.
        ([pair((25e-6, 1e9), (25e-6, 1e9), stated=25e9)], "ok", "fail"),
        # One node's link is slow, by MPI and by TCP.
        ([pair(GOOD), pair(GOOD), pair((2e-6, 1.2e7), (2e-5, 1.2e7), hosts=["b", "c"])], "ok", "fail"),
    ],
)
def test_what_is_slower_than_the_wire_is_found(
    pairs: list[dict[str, Any]], latency: str, bandwidth: str
) -> None:
    found = wire.judge(pairs)
    assert [(each.name, str(each.verdict)) for each in found] == [
        ("latency", latency),
        ("bandwidth", bandwidth),
    ]
    assert all(bool(each.mend) is (each.verdict is not Verdict.OK) for each in found)
    busy = wire.judge(pairs, "9.0 processes per core want to run on a")
    assert not [each for each in busy if each.verdict is Verdict.FAIL], "slow messages prove nothing there"


def test_the_worst_pair_is_named_with_what_it_is_compared_with() -> None:
    _, found = wire.judge([pair(GOOD), pair((2e-6, 1.2e7), (2e-5, 1.2e7), hosts=["b", "c"], stated=1.25e9)])
    assert found.value == "MPI 12.0MB/s between b and c, 0 % of the wire"
    assert found.against == "TCP 12.0MB/s, the interface states 1.25GB/s, the median of 2 pairs 5.01GB/s"


@pytest.mark.parametrize("nodes", range(1, 12))
def test_each_node_exchanges_with_both_neighbours_and_with_one_at_a_time(nodes: int) -> None:
    rounds = wire.pair_rounds(nodes)
    assert len(rounds) <= 3
    for each in rounds:
        ends = [node for both in each for node in both]
        assert len(ends) == len(set(ends))
    found = sorted(tuple(sorted(both)) for each in rounds for both in each)
    ring = {tuple(sorted((node, (node + 1) % nodes))) for node in range(nodes)} if nodes > 1 else set()
    assert found == sorted(ring)
