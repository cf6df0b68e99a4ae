"""The speed of MPI between nodes, compared with the wire: TCP between the same processes, and what interfaces state.

Neighbours in the ring of nodes exchange messages, in rounds in which each node is in one pair only. So a node that is
connected badly is found without measuring all pairs.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from mpips.launch.checks.check import Check, Verdict
from mpips.rundir.progress import bytes_si

SMALL, LARGE, MODEST = 8, 4 << 20, 1 << 18
"""Bytes of a message for the latency, and for the bandwidth of fast and of slow links."""
BUDGET = 0.3
"""Seconds for the latency, and for the bandwidth, of one link."""
SLOW_LINK = 50e6
"""Bytes/s below which the bandwidth is measured with `MODEST` messages."""
CONNECTS = 3.0
"""Seconds to connect two nodes by TCP."""
SHARE_OK, SHARE_LEAST = 0.5, 0.1
"""The share of the wire's bandwidth that MPI reaches, below which there is a warning, and a failure."""
LATENCY_OK, LATENCY_MOST = 2.0, 20.0
"""MPI's latency, relative to TCP's, above which there is a warning, and a failure."""
LATENCY_FLOOR = 20e-6
"""A one-way latency (s) that is never too long."""
_SIOCGIFADDR = 0x8915

Exchange = Callable[[int, int], Sequence[float]]
"""Sends so many bytes to the partner and back, so many times; returns the one-way seconds of each."""
Agree = Callable[[int], int]
"""Returns the number that the first of the two ranks has passed."""
Both = Callable[[bool], bool]
"""Returns whether both ranks have passed True."""


@dataclass(frozen=True)
class Speed:
    """The speed of a link, at its best: other processes only make it slower."""

    latency: float
    """Seconds, one way."""
    bandwidth: float
    """Bytes/s, one way."""

    def facts(self) -> dict[str, float]:
        """Return it as JSON-able data."""
        return {"latency_seconds": self.latency, "bytes_per_second": self.bandwidth}


def measure(exchange: Exchange, agree: Agree, budget: float = BUDGET) -> Speed:
    """Measure a link within about two budgets (s), on both ranks."""
    exchange(SMALL, 3)
    latency = min(exchange(SMALL, 10))
    latency = min(exchange(SMALL, agree(_rounds(budget, latency, 2000))))
    taken = min(exchange(MODEST, 2))
    size = agree(LARGE if MODEST / taken > SLOW_LINK else MODEST)
    taken = min(exchange(size, 1)) if size == LARGE else taken
    taken = min(taken, *exchange(size, agree(_rounds(budget, taken, 30))))
    return Speed(latency, size / taken)


def measure_reference(exchange: Exchange, agree: Agree, both: Both, budget: float = BUDGET) -> Speed | None:
    """Measure a link as `measure` does; None on both ranks if it fails on one of them: a firewall may drop data.

    After each exchange the ranks tell each other whether it has succeeded, so that neither waits for the other.
    """

    def step(size: int, rounds: int) -> Sequence[float]:
        taken: Sequence[float] = ()
        with suppress(OSError):
            taken = exchange(size, rounds)
        if not both(bool(taken)):
            raise _LinkFailed
        return taken

    try:
        return measure(step, agree, budget)
    except _LinkFailed:
        return None


class _LinkFailed(Exception):
    """A connection has failed, on this rank or on the other one; both know."""


def _rounds(budget: float, one_way: float, most: int) -> int:
    return max(1, min(most, int(budget / (2 * max(one_way, 1e-9)))))


def pair_rounds(nodes: int) -> list[list[tuple[int, int]]]:
    """Return rounds of disjoint pairs of nodes that together are the ring of all nodes.

    >>> pair_rounds(2), pair_rounds(3)
    ([[(0, 1)]], [[(0, 1)], [(1, 2)], [(2, 0)]])
    >>> pair_rounds(4)
    [[(0, 1), (2, 3)], [(1, 2), (3, 0)]]
    """
    if nodes < 3:
        return [[(0, 1)]] if nodes == 2 else []
    ring = [(node, (node + 1) % nodes) for node in range(nodes)]
    found = [ring[: nodes - nodes % 2 : 2], ring[1 : nodes + 1 - nodes % 2 : 2]]
    return found + ([ring[-1:]] if nodes % 2 else [])


# --- TCP ---------------------------------------------------------------------------------------------------


class TcpLink:
    """A TCP connection of two ranks; the first of them answers, the other one connects."""

    def __init__(self, link: socket.socket, first: bool) -> None:
        self._link, self._first = link, first
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def address(self) -> str:
        """The address of this end."""
        return str(self._link.getsockname()[0])

    def exchange(self, size: int, rounds: int) -> list[float]:
        """See `Exchange`. OSError if the connection fails."""
        data, buffer = bytes(size), memoryview(bytearray(size))
        taken = []
        for _ in range(rounds):
            begin = time.perf_counter()
            if self._first:
                self._link.sendall(data)
            at = 0
            while at < size:
                got = self._link.recv_into(buffer[at:])
                if not got:
                    raise ConnectionResetError("the other rank has closed the connection")
                at += got
            if not self._first:
                self._link.sendall(data)
            taken.append((time.perf_counter() - begin) / 2)
        return taken

    def close(self) -> None:
        """Close the connection."""
        self._link.close()


def listen(address: str) -> socket.socket:
    """Return a socket that accepts connections at a free port of an address."""
    listener = socket.create_server((address, 0))
    listener.settimeout(CONNECTS + 1.0)
    return listener


def accept(listener: socket.socket, seconds: float) -> TcpLink | None:
    """Return the connection of the other rank; None if none comes, because it cannot reach this one."""
    with listener, suppress(OSError):
        link, _ = listener.accept()
        link.settimeout(seconds)
        return TcpLink(link, True)
    return None


def connect(address: str, port: int, seconds: float) -> TcpLink | None:
    """Connect to the other rank; None if it cannot be reached."""
    with suppress(OSError):
        link = socket.create_connection((address, port), CONNECTS)
        link.settimeout(seconds)
        return TcpLink(link, False)
    return None


# --- What interfaces state -----------------------------------------------------------------------------------


def stated(address: str, root: Path = Path("/sys/class")) -> float | None:
    """Return the stated speed (bytes/s) of the interface with an address, or of InfiniBand; None if it is unknown."""
    return max(
        (speed for speed in (_ethernet(_interface(address), root), _infiniband(root)) if speed), default=None
    )


def _interface(address: str) -> str:
    """Return the name of the interface with an IPv4 address; "" if there is none."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return ""


def _ethernet(name: str, root: Path) -> float | None:
    with suppress(OSError, ValueError):
        megabits = int((root / "net" / name / "speed").read_text()) if name else 0
        return megabits * 1e6 / 8 if megabits > 0 else None
    return None


def _infiniband(root: Path) -> float | None:
    found = []
    for port in root.glob("infiniband/*/ports/*"):
        with suppress(OSError, ValueError, IndexError):
            if "ACTIVE" in (port / "state").read_text():
                found.append(float((port / "rate").read_text().split()[0]) * 1e9 / 8)
    return max(found, default=None)


# --- Verdicts ----------------------------------------------------------------------------------------------


def judge(pairs: Sequence[Mapping[str, Any]], busy: str = "") -> list[Check]:
    """Return the outcomes for latency and bandwidth, by the worst pair of nodes.

    `busy` says why ranks may have waited for a processor. Then slow messages prove nothing, and there is no failure.

    Each pair has `hosts`, the facts of `mpi`, and, where known, of `tcp`, and the `stated` speed (bytes/s).
    """
    return [_unless_busy(check, busy) for check in (_judge_latency(pairs), _judge_bandwidth(pairs))]


def _unless_busy(check: Check, busy: str) -> Check:
    if not busy or check.verdict is Verdict.OK:
        return check
    return replace(
        check, verdict=Verdict.WARN, mend=f"repeat it when nodes are idle: {busy}; else {check.mend}"
    )


def _names(pair: Mapping[str, Any]) -> str:
    first, second = pair["hosts"]
    return f"between {first} and {second}" if first != second else f"on {first}"


def _judge_latency(pairs: Sequence[Mapping[str, Any]]) -> Check:
    usual = median(pair["mpi"]["latency_seconds"] for pair in pairs)

    def reference(pair: Mapping[str, Any]) -> float:
        tcp = (pair.get("tcp") or {}).get("latency_seconds")
        return float(max(LATENCY_FLOOR / LATENCY_OK, min(usual, tcp) if tcp else usual))

    worst = max(pairs, key=lambda pair: pair["mpi"]["latency_seconds"] / reference(pair))
    latency, tcp = worst["mpi"]["latency_seconds"], worst.get("tcp")
    ratio = latency / reference(worst)
    verdict = Verdict.OK if ratio <= LATENCY_OK else Verdict.WARN if ratio <= LATENCY_MOST else Verdict.FAIL
    known = [f"TCP {_us(tcp['latency_seconds'])}"] if tcp else []
    known += [f"the median of {len(pairs)} pairs {_us(usual)}"] if len(pairs) > 1 else []
    mend = (
        "messages are late: are there more ranks than cores, or other processes, on these nodes? Does the MPI choose "
        "the right network (Open MPI: --mca btl_tcp_if_include; UCX: UCX_NET_DEVICES)?"
    )
    return Check("latency", verdict, f"MPI {_us(latency)} one way {_names(worst)}", ", ".join(known) or "nothing known",
                 "" if verdict is Verdict.OK else mend, {"pairs": list(pairs)})  # fmt: skip


def _judge_bandwidth(pairs: Sequence[Mapping[str, Any]]) -> Check:
    usual = median(pair["mpi"]["bytes_per_second"] for pair in pairs)

    def known(pair: Mapping[str, Any]) -> dict[str, float]:
        tcp = (pair.get("tcp") or {}).get("bytes_per_second")
        found = {"TCP": tcp, "the interface states": pair.get("stated")}
        if len(pairs) > 1:
            found[f"the median of {len(pairs)} pairs"] = usual
        return {name: speed for name, speed in found.items() if speed}

    def share(pair: Mapping[str, Any]) -> float:
        return float(pair["mpi"]["bytes_per_second"]) / max([1.0, *known(pair).values()])

    worst = min(pairs, key=lambda pair: share(pair) if known(pair) else 1.0)
    part = share(worst) if known(worst) else 1.0
    verdict = Verdict.OK if part >= SHARE_OK else Verdict.WARN if part >= SHARE_LEAST else Verdict.FAIL
    against = ", ".join(f"{name} {bytes_si(speed)}/s" for name, speed in known(worst).items())
    mend = (
        "MPI does not use the network at its speed: does it choose the right one (Open MPI: --mca btl_tcp_if_include; "
        "InfiniBand needs an MPI with UCX: load the site's MPI module), is a link or its driver slow (ethtool), or are "
        "the nodes busy?"
    )
    value = f"MPI {bytes_si(worst['mpi']['bytes_per_second'])}/s {_names(worst)}"
    value += f", {100 * part:.0f} % of the wire" if against else ""
    return Check(
        "bandwidth", verdict, value, against or "nothing known", "" if verdict is Verdict.OK else mend
    )


def _us(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us"
