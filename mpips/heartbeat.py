"""Finds ranks that hang: they have not ended, so MPI reports nothing, but they do nothing any more either.

Each rank has a `Heart`: a thread that sends a datagram to some other ranks every period, whatever the rank itself is
doing, and notes whom it hears. UDP, not MPI, since only one thread speaks MPI; nothing is lost with a datagram but a
beat. A process that is stopped, swapped out for good, or on a machine that is gone falls silent.

Who was never heard is not taken for silent, unless it is on the same machine, and then after a longer while: where a
network lets no datagrams pass, hangs are not found, and nothing else changes. And a rank that could not listen must not
blame the others for what it has not heard: silence is measured on a clock that runs only while the thread listens
(`Attention`), so a listener that was stopped itself for an hour wakes up with everybody as silent as before. The
converse remains: a rank that lets no other thread run (a call into C that keeps the interpreter's lock) is silent for
as long as that lasts, so the patience of those who judge it must be longer.

A datagram is its sender's token, rank and a count that only grows; the tokens are drawn by each rank and exchanged with
the addresses, over MPI, so that nobody else's datagrams, nor those of an earlier run, count.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

ADDRESS_BYTES = 64
_ADDRESS = struct.Struct("<16s8s4sH34x")  # token, machine, IPv4 address, port
_BEAT = struct.Struct("<16sIQ")  # token, rank, count
_NAP = 0.02  # seconds between two looks at the mail: less often woken, and a kernel's buffer holds 200 beats or more
FIRST = 5.0
"""How much longer a first beat may take than any other: a rank that starts has much to do."""
_LAPSE = 2.0  # periods for which a listener may be away and still call it listening


@dataclass(frozen=True)
class Address:
    """Where a heart listens, and the token by which its own datagrams are known.

    `host` is an IPv4 address; `machine` is the same for those who reach each other by loopback.
    `port` 0 is of a heart that could not get a socket.
    """

    token: bytes
    machine: bytes
    host: str
    port: int

    def to_bytes(self) -> bytes:
        """Give the address as `ADDRESS_BYTES` bytes."""
        return _ADDRESS.pack(self.token, self.machine, socket.inet_aton(self.host), self.port)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Address:
        """Read what `to_bytes` gave."""
        token, machine, host, port = _ADDRESS.unpack(raw)
        return cls(token, machine, socket.inet_ntoa(host), port)

    def seen_from(self, other: Address) -> tuple[str, int]:
        """Give the address to send to, for a heart at `other`."""
        return ("127.0.0.1" if self.machine == other.machine else self.host, self.port)


class Attention:
    """How long each rank has been silent while somebody listened; times are seconds.

    `lapse` is how long one may be away between two calls of `listen` and still be said to have listened throughout;
    of a longer absence only that much counts. `near` are the ranks whose beats nothing can keep from coming.
    """

    def __init__(self, lapse: float, near: Collection[int] = ()) -> None:
        self._lapse = lapse
        self.near = near
        self._time = 0.0
        self._last: float | None = None
        self._heard: dict[int, float] = {}
        self._awaited: dict[int, float] = {}

    def listen(self, now: float) -> None:
        """Somebody listens, now."""
        if self._last is not None:
            self._time += min(max(now - self._last, 0.0), self._lapse)
        self._last = now

    def hear(self, rank: int) -> None:
        """There is a sign of life of a rank."""
        self._heard[rank] = self._time

    def silent(self, ranks: Iterable[int], patience: float) -> list[int]:
        """Give those of `ranks` that were heard once, and not for `patience` seconds of listening.

        Those nearby that never were have FIRST times as long, from when they are first asked for.
        """
        now, heard = self._time, self._heard
        found = []
        for rank in ranks:
            if rank in heard:
                late = now - heard[rank] >= patience
            else:
                late = rank in self.near and now - self._awaited.setdefault(rank, now) >= FIRST * patience
            if late:
                found.append(rank)
        return found


class Heart:
    """One rank's heart: beats for `targets` every `period` seconds, and listens; see the module.

    Give `address` to the others, then `start` it with theirs. `targets` may be set at any time, by the thread that
    owns the heart.
    """

    def __init__(self, rank: int, period: float = 0.25, clock: Callable[[], float] = time.monotonic) -> None:
        self.targets: Sequence[int] = ()
        self._rank, self._period, self._clock = rank, period, clock
        self._nap = min(_NAP, period / 4)
        self._attention = Attention(_LAPSE * period)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._socket = _bound()
        port = self._socket.getsockname()[1] if self._socket is not None else 0
        self.address = Address(secrets.token_bytes(16), machine(), host_address(), port)
        self._addresses: Sequence[Address] = ()
        self._routes: list[tuple[str, int]] = []
        self._counts: dict[int, int] = {}
        self._beats = 0

    def start(self, addresses: Sequence[Address]) -> None:
        """Begin to beat and to listen; `addresses` are those of all ranks, by rank."""
        if self._socket is None or self._thread is not None or self._closing.is_set():
            return
        self._addresses = addresses
        self._routes = [address.seen_from(self.address) for address in addresses]
        self._attention.near = {
            rank
            for rank, address in enumerate(addresses)
            if address.machine == self.address.machine and address.port
        }
        self._thread = threading.Thread(
            target=self._live, args=(self._socket,), name="mpips-heart", daemon=True
        )
        self._thread.start()

    def silent(self, ranks: Iterable[int], patience: float) -> list[int]:
        """Give those of `ranks` that were heard before and not for `patience` seconds, of several periods each.

        A rank elsewhere that was never heard is not among them. What this rank itself slept through does not count.
        """
        return self._attention.silent(ranks, patience)

    def close(self) -> None:
        """Stop beating and listening; idempotent."""
        self._closing.set()
        if self._socket is None:
            return
        if self._thread is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto(b"", ("127.0.0.1", self.address.port))  # wakes the thread
            self._thread.join()
        self._socket.close()
        self._socket = None

    def _live(self, mail: socket.socket) -> None:
        """Beat and listen until closed."""
        due = self._clock()
        poller = select.poll()
        poller.register(mail, select.POLLIN)
        while not self._closing.is_set():
            now = self._clock()
            if now >= due:
                self._beat(mail)
                due = now + self._period
            poller.poll(1e3 * max(due - now, 0.0))
            self._attention.listen(self._clock())
            self._hear(mail)
            self._closing.wait(self._nap)

    def _beat(self, mail: socket.socket) -> None:
        self._beats += 1
        beat = _BEAT.pack(self.address.token, self._rank, self._beats)
        for target in self.targets:
            host, port = self._routes[target]
            if port:
                with contextlib.suppress(OSError):  # no route, a full buffer: the next one may come through
                    mail.sendto(beat, (host, port))

    def _hear(self, mail: socket.socket) -> None:
        """Take all that has come."""
        while True:
            try:
                raw = mail.recv(_BEAT.size + 1)
            except BlockingIOError:
                return
            except OSError:  # the network's word on some datagram sent before
                continue
            if len(raw) != _BEAT.size:
                continue
            token, rank, count = _BEAT.unpack(raw)
            genuine = rank < len(self._addresses) and token == self._addresses[rank].token
            if genuine and count > self._counts.get(rank, 0):
                self._counts[rank] = count
                self._attention.hear(rank)


def _bound() -> socket.socket | None:
    """Give a socket on all interfaces, or None where there can be none."""
    try:
        mail = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    except OSError:
        return None
    try:
        mail.setblocking(False)
        with contextlib.suppress(OSError):
            mail.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)  # as much of it as the system gives
        mail.bind(("", 0))
    except OSError:
        mail.close()
        return None
    return mail


def machine() -> bytes:
    """Give eight bytes that are the same for processes which reach each other by loopback."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        parts.append(file.read())
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/net"))
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest()


def host_address() -> str:
    """Give the IPv4 address by which other machines reach this one: what its name stands for, or else where it sends.

    Loopback if there is neither.
    """
    with contextlib.suppress(OSError):
        found = socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET, socket.SOCK_DGRAM)
        for *_, (host, *_) in found:
            if not str(host).startswith("127."):
                return str(host)
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks which interface would
        return str(probe.getsockname()[0])
    return "127.0.0.1"
