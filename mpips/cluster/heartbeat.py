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

Anybody can send datagrams to a port. A beat is

    token   16 bytes    drawn by the rank that it is sent to
    rank     4          who sends it
    count    8          which only grows
    seal    16          a hash of all this, keyed by 16 bytes that its sender has drawn

Tokens and keys are exchanged with the addresses, over MPI. The kernel drops what has not the token of its receiver
before it takes any room (a socket filter), so a flood of other datagrams costs its sender's time and no beat. The token
goes in clear, to its owner only; whoever sees it nevertheless can neither forge a beat nor have an old one count. Where
the kernel takes no filter, datagrams are read a bounded number at a time, and while others than beats may have pushed
out beats the thread does not count as listening: under such a flood hangs are not found, and the log says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from mpips.process.host import LOOPBACK, machine
from mpips.rundir import log
from mpips.transport import socket_filter

ADDRESS_BYTES = 64
_ADDRESS = struct.Struct("<16s16s8s4sH18x")  # token, key, machine, IPv4 address, port
_HEAD = struct.Struct("<16sIQ")  # token, rank, count
_SEAL = 16
_BEAT = _HEAD.size + _SEAL
_NAP = 0.02  # seconds between two looks at the mail: less often woken, and a kernel's buffer holds 200 beats or more
_MAILS = 512  # datagrams that are read at one look
FIRST = 5.0
"""How much longer a first beat may take than any other: a rank that starts has much to do."""
_LAPSE = 2.0  # periods for which a listener may be away and still call it listening

_SO_MEMINFO = 55  # asm-generic/socket.h
_UDP = 8  # bytes of the header before a datagram, which a filter sees too
_DROPS = struct.Struct("=32xI")  # of SO_MEMINFO: datagrams for which there was no room


@dataclass(frozen=True)
class Address:
    """Where a heart listens, the token of what is sent to it, and the key of what it sends.

    `host` is an IPv4 address; `machine` is the same for those who reach each other by loopback.
    `port` 0 is of a heart that could not get a socket.
    """

    machine: bytes
    host: str
    port: int
    token: bytes = field(default_factory=socket_filter.token)
    key: bytes = field(default_factory=socket_filter.token)

    def to_bytes(self) -> bytes:
        """Give the address as `ADDRESS_BYTES` bytes."""
        return _ADDRESS.pack(self.token, self.key, self.machine, socket.inet_aton(self.host), self.port)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Address:
        """Read what `to_bytes` gave."""
        token, key, machine, host, port = _ADDRESS.unpack(raw)
        return cls(machine, socket.inet_ntoa(host), port, token, key)


def beat(sender: Address, receiver: Address, rank: int, count: int) -> bytes:
    """Write a beat of a rank to another one."""
    head = _HEAD.pack(receiver.token, rank, count)
    return head + hashlib.blake2b(head, digest_size=_SEAL, key=sender.key).digest()


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

    def listen(self, now: float, missed: bool = False) -> None:
        """Somebody listens, now; what has come since the last call may have been `missed`: that time does not count."""
        if self._last is not None and not missed:
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
    owns the heart. It listens at `host`, an IPv4 address of this machine that all the others reach.
    """

    def __init__(
        self,
        rank: int,
        period: float = 0.25,
        host: str = LOOPBACK,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.targets: Sequence[int] = ()
        self._rank, self._period, self._clock = rank, period, clock
        self._nap = min(_NAP, period / 4)
        self._attention = Attention(_LAPSE * period)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        token = socket_filter.token()
        self._socket, self._filters = _bound(host, token)
        port = self._socket.getsockname()[1] if self._socket is not None else 0
        self.address = Address(machine(), host, port, token)
        self._addresses: Sequence[Address] = ()
        self._counts: dict[int, int] = {}
        self._beats = 0
        self._dropped, self._flooded = 0, False

    def start(self, addresses: Sequence[Address]) -> None:
        """Begin to beat and to listen; `addresses` are those of all ranks, by rank."""
        if self._socket is None or self._thread is not None or self._closing.is_set():
            return
        self._addresses = addresses
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
            self._send(self._socket, self.address)  # wakes the thread
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
                self._beats += 1
                for target in self.targets:
                    self._send(mail, self._addresses[target])
                due = now + self._period
            poller.poll(1e3 * max(due - now, 0.0))
            heard, missed = self._hear(mail)
            self._attention.listen(self._clock(), missed)
            for rank in heard:
                self._attention.hear(rank)
            self._closing.wait(self._nap)

    def _send(self, mail: socket.socket, to: Address) -> None:
        if to.port:
            with contextlib.suppress(OSError):  # no route, a full buffer: the next one may come through
                mail.sendto(beat(self.address, to, self._rank, self._beats), (to.host, to.port))

    def _hear(self, mail: socket.socket) -> tuple[set[int], bool]:
        """Take what has come, so much at most: who has beaten, and whether beats may have been pushed out by others."""
        heard, strangers, more = set(), 0, True
        for _ in range(_MAILS + len(self._addresses)):
            try:
                raw = mail.recv(_BEAT + 1)
            except BlockingIOError:
                more = False
                break
            except OSError:  # the network's word on some datagram sent before
                continue
            rank = self._read(raw)
            if rank is None:
                strangers += 1
            else:
                heard.add(rank)
        if strangers:
            self._filters = False
        missed = more or (not self._filters and self._has_dropped(mail, strangers))
        if missed and not self._flooded:
            self._flooded = True
            log.note(
                "flooded",
                logging.WARNING,
                text="junk fills the buffer: hangs are not found meanwhile",
            )
        return heard, missed

    def _read(self, raw: bytes) -> int | None:
        """Give the rank whose beat this is; None if it is none, or no new one."""
        if len(raw) != _BEAT:
            return None
        _, rank, count = _HEAD.unpack_from(raw)
        if rank >= len(self._addresses) or count <= self._counts.get(rank, 0):
            return None
        if not hmac.compare_digest(raw, beat(self._addresses[rank], self.address, rank, count)):
            return None
        self._counts[rank] = count
        return int(rank)

    def _has_dropped(self, mail: socket.socket, strangers: int) -> bool:
        """Tell whether the kernel has dropped datagrams since the last time; it counts what a filter drops, too."""
        drops, before = _drops(mail), self._dropped
        if drops is None:
            return strangers > 0
        self._dropped = drops
        return drops != before


def _bound(host: str, token: bytes) -> tuple[socket.socket | None, bool]:
    """Give a socket at an address, if there can be one, and whether the kernel drops what lacks the token."""
    try:
        mail = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    except OSError:
        return None, False
    try:
        mail.setblocking(False)
        filters = socket_filter.put(
            mail, token, _BEAT, _UDP
        )  # before it has a port: nothing else ever waits to be read
        with contextlib.suppress(OSError):
            mail.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)  # as much of it as the system gives
        mail.bind((host, 0))
    except OSError:
        mail.close()
        return None, False
    return mail, filters


def _drops(mail: socket.socket) -> int | None:
    """Count the datagrams that came to a socket and were dropped; None where the kernel does not say."""
    try:
        return int(_DROPS.unpack_from(mail.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _DROPS.size))[0])
    except (OSError, struct.error):
        return None
