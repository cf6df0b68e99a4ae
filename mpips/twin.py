"""The van's in-memory twin: a whole cluster in one process, with fake time, under a seed.

A `Network` connects `TwinVan`s. Messages pass through the same encoding as on MPI, so nothing is shared by
accident. What it does to them is a policy, `fate`: for each message the list of delays of its copies ([] loses it,
two entries repeat it); `rough(seed, ...)` draws such fates.

`Network.run` executes one ordinary blocking function per rank, each in a thread of its own of which exactly one
runs at a time: a rank keeps the baton until it is idle, then the next one, chosen under the seed, gets it. Time
moves only when all are idle, to the next delivery. So every run is deterministic, takes milliseconds, and runs the
very code that runs under MPI. A rank that waits for what cannot come is a deadlock, and is reported as one.
"""

from __future__ import annotations

import heapq
import itertools
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any

from mpips.errors import ClosedError
from mpips.message import Message, bodies, decode, encode, frame_bytes

Fate = Callable[[int, int, Message], Sequence[float]]


class Deadlock(RuntimeError):
    """Every rank of the network waits and no message is on its way."""


class _Ended(BaseException):
    """Unwinds a rank whose network ended without it."""


def calm(source: int, dest: int, message: Message) -> Sequence[float]:
    """Deliver every message once, without delay."""
    return (0.0,)


def rough(
    seed: int, *, delay: float = 0.0, drop: float = 0.0, duplicate: float = 0.0, spare_control: bool = True
) -> Fate:
    """Give a fate that delays each message by up to `delay` seconds (so it reorders), drops and duplicates.

    `drop` and `duplicate` are probabilities. Control messages are delayed only, if `spare_control`.
    """
    rng = random.Random(seed)

    def fate(source: int, dest: int, message: Message) -> Sequence[float]:
        first = rng.random() * delay
        luck = rng.random()
        if spare_control and message.kind == 4:
            return (first,)
        if luck < drop:
            return ()
        if luck < drop + duplicate:
            return (first, rng.random() * delay)
        return (first,)

    fate.loses = drop > 0  # type: ignore[attr-defined]  # then requests must be sent again
    return fate


class Network:
    """Connects `size` twin vans; see the module."""

    def __init__(self, size: int, fate: Fate = calm, seed: int = 0, tick: float = 1e-3) -> None:
        self.size, self.time = size, 0.0
        self._fate, self._rng, self._tick = fate, random.Random(seed), tick
        self._order = itertools.count()
        self._wires: list[list[tuple[float, int, bytes]]] = [[] for _ in range(size)]
        self.vans = [TwinVan(self, rank) for rank in range(size)]
        self._batons: list[threading.Semaphore] | None = None
        self._idle: set[int] = set()
        self._alive: set[int] = set(range(size))
        self._ended = False
        self._failure: Deadlock | None = None

    def post(self, source: int, dest: int, message: Message) -> int:
        """Put a message on the wire to `dest`; give its size in bytes."""
        frame, buffers = encode(message)
        raw = bytes(frame) + b"".join(buffers)
        for delay in self._fate(source, dest, message):
            heapq.heappush(self._wires[dest], (self.time + delay, next(self._order), raw))
        return len(raw)

    def take(self, rank: int) -> tuple[Message, int] | None:
        """Take the next message that has arrived at `rank`, and its size in bytes."""
        wire = self._wires[rank]
        if not wire or wire[0][0] > self.time:
            return None
        raw = bytearray(heapq.heappop(wire)[2])
        return _whole(raw), len(raw)

    def rest(self, rank: int) -> None:
        """`rank` has nothing to do: let others run, or time pass."""
        self._idle.add(rank)
        if self._batons is None:
            self._advance()
            return
        ready = self._ready()
        if not ready:
            self._advance()
            self._idle.clear()
            ready = sorted(self._alive)
        self._hand(self._rng.choice(ready), rank)

    def run(self, programs: Sequence[Callable[[TwinVan], Any]], horizon: float = 60.0) -> list[Any]:
        """Run one program per rank to the end; give their results.

        Raises what the first failing program raised, or `Deadlock` when fake time passes `horizon`.
        """
        self._batons = [threading.Semaphore(0) for _ in range(self.size)]
        self._horizon = horizon
        results: list[Any] = [None] * self.size
        errors: list[BaseException] = []
        done = threading.Event()

        def body(rank: int) -> None:
            assert self._batons is not None
            self._batons[rank].acquire()
            try:
                if not self._ended:
                    results[rank] = programs[rank](self.vans[rank])
            except _Ended:
                pass
            except BaseException as error:
                errors.append(error)
                self._ended = True
            self._alive.discard(rank)
            self._idle.discard(rank)
            ready = self._ready() or sorted(self._alive)
            if ready:
                self._batons[self._rng.choice(ready)].release()
            else:
                done.set()

        threads = [threading.Thread(target=body, args=(rank,), daemon=True) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        self._batons[0].release()
        done.wait()
        for thread in threads:
            thread.join()
        self._batons = None
        # A program may have taken the deadlock for an error of its own.
        for error in (*errors, self._failure):
            if error is not None:
                raise error
        return results

    def _ready(self) -> list[int]:
        now = self.time
        return [
            rank
            for rank in sorted(self._alive)
            if rank not in self._idle or (self._wires[rank] and self._wires[rank][0][0] <= now)
        ]

    def _advance(self) -> None:
        upcoming = [wire[0][0] for rank, wire in enumerate(self._wires) if wire and rank in self._alive]
        later = min(upcoming, default=self.time)
        self.time = max(later, self.time + self._tick) if later <= self.time else later
        if self.time > getattr(self, "_horizon", float("inf")):
            self._ended = True
            self._failure = Deadlock(f"at {self.time:.3f} s every rank waits and nothing is on its way")
            raise self._failure

    def _hand(self, rank: int, mine: int) -> None:
        assert self._batons is not None
        if rank != mine:
            self._batons[rank].release()
            self._batons[mine].acquire()
        if self._ended:
            raise _Ended


class TwinVan:
    """One rank's van on a `Network`; see `mpips.van.Van`."""

    def __init__(self, network: Network, rank: int) -> None:
        self.rank, self.size = rank, network.size
        self.sent_bytes = self.received_bytes = 0
        self._network: Network | None = network

    def _open(self) -> Network:
        if self._network is None:
            raise ClosedError("this van is closed")
        return self._network

    def send(self, dest: int, message: Message) -> None:
        self.sent_bytes += self._open().post(self.rank, dest, message)

    def receive(self) -> Message | None:
        network = self._open()
        taken = network.take(self.rank)
        if taken is None:
            return None
        network._idle.discard(self.rank)
        message, size = taken
        self.received_bytes += size
        return message

    def idle(self) -> None:
        self._open().rest(self.rank)

    def pending(self) -> int:
        return 0

    def now(self) -> float:
        return self._open().time

    def close(self) -> None:
        self._network = None


def _whole(raw: bytearray) -> Message:
    """Decode a frame that its detached buffers follow directly."""
    size = frame_bytes(raw)
    message, _, _ = decode(raw[:size])
    at = size
    if at < len(raw):
        for body in bodies(message):
            body[:] = raw[at : at + len(body)]
            at += len(body)
    return message
