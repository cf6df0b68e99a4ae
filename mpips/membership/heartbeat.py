"""Failure detector for ranks that hang: their process still exists, so MPI reports nothing.

Each rank has a `Heartbeat`: a thread that sends a UDP datagram to some other ranks every period, whatever the rank
itself does, and records the ranks that it receives datagrams from. UDP, not MPI, since only one thread calls MPI; the
loss of a datagram loses one heartbeat only. A process that is stopped, swapped out, or on a failed host becomes silent.

A rank that was never received from does not count as silent, unless it is on the same host, and then after a longer
timeout: where the network blocks UDP, hangs are not detected, and nothing else changes. A receiver that was itself
stopped must not suspect the others: silence is measured on a clock that runs only while the thread receives
(`SilenceClock`), so after an hour's stop all ranks are as silent as before it. The converse remains: a rank that lets
no other thread run (a call into C that holds the GIL) is silent for as long, so the timeout must be longer than that.

Any process can send datagrams to a port. A heartbeat is

    token   16 bytes    drawn by the receiving rank
    rank     4          the sending rank
    count    8          strictly increasing
    echo     8          the last count received from this rank
    flags    1          whether the sender follows this rank as its leader (1); whether it is muted (2)
    MAC     16          message authentication code of the above; the sender has drawn the key, 16 bytes

An echo confirms that the sender hears this rank, at least when the echoed heartbeat was sent: so links that fail in one
direction are found. A leader knows by the echoes of its followers how long none of them can have missed it
(`mpips.membership.quorum`). This time is real time, stops of the leader and suspensions of its machine included. A
leader that cannot be sure of that is *muted*: its heartbeats are confirmed, but it counts as silent.

Tokens and keys are exchanged with the addresses, over MPI. A socket filter in the kernel drops datagrams without the
receiver's token before they take buffer space, so a flood of other datagrams displaces no heartbeat. The token is sent
in clear, to its owner only; a process that observes it can neither forge nor replay a heartbeat. Where the kernel
accepts no filter, datagrams are read a bounded number at a time, and while other datagrams may have displaced
heartbeats the thread does not count as receiving: under such a flood hangs are not detected, and the log says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import math
import select
import socket
import struct
import threading
from array import array
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from mpips.process.host import LOOPBACK, machine
from mpips.rundir import log
from mpips.transport import socket_filter
from mpips.transport.time_of_day import since_boot

ADDRESS_BYTES = 64
# Token, key, machine, IPv4 address, port.
_ADDRESS = struct.Struct("<16s16s8s4sH18x")
# Token, rank, count, echo, flags.
_HEAD = struct.Struct("<16sIQQB")
_MAC = 16
_DATAGRAM = _HEAD.size + _MAC
# Seconds between two reads of the socket: fewer wakeups, and a kernel buffer holds 200 heartbeats or more.
_READ_INTERVAL = 0.02
# Datagrams that are read at once.
_MOST_READ = 512
FIRST = 5.0
"""Factor on the timeout for the first heartbeat: a rank that starts is busy."""
SELDOM = 4.0
"""Seconds between two heartbeats to ranks that need to notice the end of another only late."""
# Periods without a read after which the thread no longer counts as receiving.
_MISSED_PERIODS = 2.0

_FOLLOWS, _MUTED = 1, 2
# Heartbeats whose times are kept, so that their echoes can be dated.
_DATED = 4096

# From asm-generic/socket.h.
_SO_MEMINFO = 55
# Bytes of the UDP header, which a socket filter sees too.
_UDP = 8
# Of SO_MEMINFO: datagrams dropped for lack of buffer space.
_DROPS = struct.Struct("=32xI")


@dataclass(frozen=True)
class Address:
    """Address of a rank's heartbeat socket, the token of the datagrams to it, and the key of those that it sends.

    `host` is an IPv4 address; `machine` is equal for ranks that reach each other by loopback.
    `port` is 0 where no socket could be opened.
    """

    machine: bytes
    host: str
    port: int
    token: bytes = field(default_factory=socket_filter.token)
    key: bytes = field(default_factory=socket_filter.token)

    def to_bytes(self) -> bytes:
        """Return the address as `ADDRESS_BYTES` bytes."""
        return _ADDRESS.pack(self.token, self.key, self.machine, socket.inet_aton(self.host), self.port)

    @classmethod
    def from_bytes(cls, raw: bytes) -> Address:
        """Return the address that `to_bytes` encoded."""
        token, key, machine, host, port = _ADDRESS.unpack(raw)
        return cls(machine, socket.inet_ntoa(host), port, token, key)


def datagram(
    sender: Address, receiver: Address, rank: int, count: int, echo: int = 0, flags: int = 0
) -> bytes:
    """Return the heartbeat datagram from one rank to another."""
    head = _HEAD.pack(receiver.token, rank, count, echo, flags)
    return head + hashlib.blake2b(head, digest_size=_MAC, key=sender.key).digest()


class SilenceClock:
    """How long each rank has been silent while this rank was receiving; times are seconds.

    Of the time between two calls of `advance`, at most `longest_gap` counts as receiving. `near` are the ranks on the
    same host, whose datagrams no network can block.
    """

    def __init__(self, longest_gap: float, near: Collection[int] = ()) -> None:
        self._longest_gap = longest_gap
        self.near = near
        self._time = 0.0
        self._last: float | None = None
        self._last_received: dict[int, float] = {}
        self._first_query: dict[int, float] = {}

    def advance(self, now: float, missed: bool = False) -> None:
        """Advance the clock to `now`, unless datagrams since the last call may have been `missed`."""
        if self._last is not None and not missed:
            self._time += min(max(now - self._last, 0.0), self._longest_gap)
        self._last = now

    def record(self, rank: int) -> None:
        """Record a heartbeat of a rank."""
        self._last_received[rank] = self._time

    def silent(self, ranks: Iterable[int], patience: float) -> list[int]:
        """Return those of `ranks` that were received from before, but not in the last `patience` seconds of receiving.

        A rank in `near` that was never received from has FIRST times as long, from the first query for it.
        """
        now, received = self._time, self._last_received
        found = []
        for rank in ranks:
            if rank in received:
                late = now - received[rank] >= patience
            else:
                late = rank in self.near and now - self._first_query.setdefault(rank, now) >= FIRST * patience
            if late:
                found.append(rank)
        return found


class Heartbeat:
    """Heartbeats of one rank: sends to `targets` every `period` seconds, and receives; see the module.

    Exchange `address` with the other ranks, then call `start` with theirs. The owning thread may set `targets` at any
    time, and `seldom`, those of a heartbeat every `SELDOM` seconds; `follows`, the rank whose heartbeats are confirmed;
    `muted`; and `hears_muted`, whether muted ranks count as heard. `host` is an IPv4 address of this machine
    that all other ranks reach.
    """

    def __init__(
        self,
        rank: int,
        period: float = 0.25,
        host: str = LOOPBACK,
        clock: Callable[[], float] = since_boot,
    ) -> None:
        self.seldom: Sequence[int] = ()
        self.follows = -1
        self.muted = self.hears_muted = False
        self.keeps: Callable[[int], bool] = lambda rank: False
        """Whether an injected failure of the network keeps heartbeats from a rank now."""
        self._rank, self._period, self._clock = rank, period, clock
        # By rank: since when it is a target.
        self._targets: dict[int, float] = {}
        # Of how many heartbeats those in `seldom` get one.
        self._of = max(1, round(SELDOM / period))
        self._read_pause = min(_READ_INTERVAL, period / 4)
        self._silence = SilenceClock(_MISSED_PERIODS * period)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        token = socket_filter.token()
        self._socket, self._filters = _open_socket(host, token)
        port = self._socket.getsockname()[1] if self._socket is not None else 0
        self.address = Address(machine(), host, port, token)
        self._addresses: Sequence[Address] = ()
        self._counts: dict[int, int] = {}
        self._beats = 0
        # When the last heartbeats were sent, by their count modulo the length: objects would be made for ten minutes.
        self._sent = array("d", bytes(8 * _DATED))
        # By rank: when the last heartbeat that it has echoed was sent, or it was first asked for; then as a follower.
        self._echoed: dict[int, float] = {}
        self._confirmed: dict[int, float] = {}
        self._dropped, self._flooded = 0, False

    def start(self, addresses: Sequence[Address]) -> None:
        """Start to send and to receive; `addresses` are those of all ranks, by rank."""
        if self._socket is None or self._thread is not None or self._closing.is_set():
            return
        self._addresses = addresses
        self._silence.near = {
            rank
            for rank, address in enumerate(addresses)
            if address.machine == self.address.machine and address.port
        }
        self._thread = threading.Thread(
            target=self._run, args=(self._socket,), name="mpips-heartbeat", daemon=True
        )
        self._thread.start()

    @property
    def targets(self) -> Sequence[int]:
        """The ranks that get every heartbeat."""
        return list(self._targets)

    @targets.setter
    def targets(self, ranks: Iterable[int]) -> None:
        now, before = self._clock(), self._targets
        self._targets = {rank: before.get(rank, now) for rank in ranks}

    def silent(self, ranks: Iterable[int], patience: float) -> list[int]:
        """Return those of `ranks` that were received from before, but not in the last `patience` seconds.

        A rank on another host that was never received from is not among them. Time in which this rank itself did not
        run does not count.
        """
        return self._silence.silent(ranks, patience)

    def unconfirmed(self, ranks: Iterable[int], patience: float) -> list[int]:
        """Return those of `ranks` that have echoed, as followers, no heartbeat of the last `patience` seconds.

        Only ranks that were received from before: where the network blocks UDP, nothing can be confirmed. A rank that
        has not echoed as a follower yet counts from the last heartbeat that it has echoed: that is when it heard this
        one last, for certain.
        """
        asked = list(ranks)
        for rank in asked:
            if rank in self._echoed:
                self._confirmed.setdefault(rank, self._echoed[rank])
        return self._older(self._confirmed, asked, patience)

    def deaf(self, ranks: Iterable[int], patience: float) -> list[int]:
        """Return those of `ranks` that have echoed no heartbeat of the last `patience` seconds; see `unconfirmed`.

        One that has become a target later than that had fewer to echo.
        """
        now = self._clock()
        targets = [rank for rank in ranks if now - self._targets.get(rank, -math.inf) >= patience]
        return self._older(self._echoed, targets, patience)

    def _older(self, times: dict[int, float], ranks: Iterable[int], patience: float) -> list[int]:
        now = self._clock()
        return [
            rank for rank in ranks if rank in self._counts and now - times.setdefault(rank, now) >= patience
        ]

    def close(self) -> None:
        """Stop sending and receiving; idempotent."""
        self._closing.set()
        if self._socket is None:
            return
        if self._thread is not None:
            # Wakes the thread.
            self._send(self._socket, self._rank, self.address)
            self._thread.join()
        self._socket.close()
        self._socket = None

    def _run(self, sock: socket.socket) -> None:
        """Send and receive until closed."""
        due = self._clock()
        poller = select.poll()
        poller.register(sock, select.POLLIN)
        while not self._closing.is_set():
            now = self._clock()
            if now >= due:
                self._count(now)
                # Some of them each time, so that there are no bursts.
                due_now = [rank for rank in self.seldom if (rank + self._beats) % self._of == 0]
                for target in (*self._targets, *due_now):
                    self._send(sock, target, self._addresses[target])
                due = now + self._period
            poller.poll(1e3 * max(due - now, 0.0))
            received, missed = self._read_datagrams(sock)
            self._silence.advance(self._clock(), missed)
            for rank in received:
                self._silence.record(rank)
            self._closing.wait(self._read_pause)

    def _count(self, now: float) -> None:
        """Number the next heartbeat, and date it."""
        self._beats += 1
        self._sent[self._beats % _DATED] = now

    def _send(self, sock: socket.socket, target: int, to: Address) -> None:
        if to.port and not self.keeps(target):
            flags = (_FOLLOWS if target == self.follows else 0) | (_MUTED if self.muted else 0)
            echo = self._counts.get(target, 0)
            raw = datagram(self.address, to, self._rank, self._beats, echo, flags)
            # No route, or a full buffer: the next heartbeat may arrive.
            with contextlib.suppress(OSError):
                sock.sendto(raw, (to.host, to.port))

    def _read_datagrams(self, sock: socket.socket) -> tuple[set[int], bool]:
        """Read a bounded number of datagrams; return their senders, and whether heartbeats may have been lost."""
        received, invalid, more = set(), 0, True
        for _ in range(_MOST_READ + len(self._addresses)):
            try:
                raw = sock.recv(_DATAGRAM + 1)
            except BlockingIOError:
                more = False
                break
            except OSError:
                # An ICMP error for a datagram sent before.
                continue
            rank = self._read(raw)
            if rank is None:
                invalid += 1
            elif rank >= 0:
                received.add(rank)
        if invalid:
            self._filters = False
        missed = more or (not self._filters and self._has_dropped(sock, invalid))
        if missed and not self._flooded:
            self._flooded = True
            log.note(
                "flooded",
                logging.WARNING,
                text="other datagrams fill the heartbeat socket: hung ranks are not detected meanwhile",
            )
        return received, missed

    def _read(self, raw: bytes) -> int | None:
        """Return the sender of a heartbeat, -1 if it is muted; None if `raw` is not a valid, new heartbeat."""
        if len(raw) != _DATAGRAM:
            return None
        _, rank, count, echo, flags = _HEAD.unpack_from(raw)
        if rank >= len(self._addresses) or count <= self._counts.get(rank, 0):
            return None
        if not hmac.compare_digest(
            raw, datagram(self._addresses[rank], self.address, rank, count, echo, flags)
        ):
            return None
        self._counts[rank] = count
        self._record_echo(rank, echo, bool(flags & _FOLLOWS))
        return -1 if flags & _MUTED and not self.hears_muted else int(rank)

    def _record_echo(self, rank: int, echo: int, follows: bool) -> None:
        """Record that a rank has echoed heartbeat number `echo`."""
        if echo and 0 <= self._beats - echo < _DATED:
            sent_at = self._sent[echo % _DATED]
            for times in (self._echoed, self._confirmed) if follows else (self._echoed,):
                times[rank] = max(sent_at, times.get(rank, sent_at))

    def _has_dropped(self, sock: socket.socket, invalid: int) -> bool:
        """Return whether the kernel has dropped datagrams since the last call; those that a filter drops count too."""
        drops, before = _dropped_datagrams(sock), self._dropped
        if drops is None:
            return invalid > 0
        self._dropped = drops
        return drops != before


def _open_socket(host: str, token: bytes) -> tuple[socket.socket | None, bool]:
    """Return a UDP socket at an address, None if impossible, and whether a kernel filter checks the token."""
    try:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    except OSError:
        return None, False
    try:
        sock.setblocking(False)
        # Before the socket has a port, so that no unfiltered datagram is ever queued.
        filters = socket_filter.attach(sock, token, _DATAGRAM, _UDP)
        with contextlib.suppress(OSError):
            # The system may grant less.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        sock.bind((host, 0))
    except OSError:
        sock.close()
        return None, False
    return sock, filters


def _dropped_datagrams(sock: socket.socket) -> int | None:
    """Return the number of datagrams that a socket has dropped; None where the kernel does not report it."""
    try:
        return int(_DROPS.unpack_from(sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _DROPS.size))[0])
    except (OSError, struct.error):
        return None
