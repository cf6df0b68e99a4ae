"""The in-memory twin of the van: a deterministic simulation of a cluster in one process, in simulated time.

A `Network` connects `TwinVan`s. Messages pass through the same encoding as on MPI, so ranks share no objects.

`Network.run` executes one blocking function per rank, each in a greenlet of its own, so exactly one runs at a time: a
rank runs until it is idle, then the next one is chosen under the seed. Time advances only when all ranks are
idle, to the next delivery. So every run is deterministic, takes milliseconds, and executes the code that runs under
MPI. A rank that waits for a message that cannot arrive is reported as a deadlock.

Messages are lost, delayed and duplicated, ranks are killed and stopped, and the network is split, as
`mpips.transport.network_faults` says. A
killed rank never returns from its current van call: its greenlet ends by an exception that no program catches, and
`failed()` of each other van reports it after `detection` seconds. A stopped rank keeps its state and does not run.
"""

from __future__ import annotations

import heapq
import itertools
import random
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from greenlet import greenlet
from numpy.typing import NDArray

from mpips.errors import ClosedError
from mpips.transport.buffer_pool import BufferPool
from mpips.transport.fastpath.table import FastPathTable
from mpips.transport.message import Message, from_bytes, to_bytes
from mpips.transport.network_faults import (
    Arrives,
    Delays,
    Fault,
    Heal,
    Jump,
    Planned,
    Split,
    TwinClock,
    all_arrive,
    no_delay,
)
from mpips.transport.time_of_day import TimeOfDay

ECHO = 0.02
"""Seconds from a heartbeat to its confirmation."""


class Deadlock(RuntimeError):
    """Every rank of the network waits and no message is in flight."""


class _Ended(BaseException):
    """Unwinds a rank that was killed, or whose network ended without it."""


class Network:
    """Connects `size` twin vans for one `run`; see the module.

    `delays` is the policy for messages, `faults` are the faults of ranks. `detection`: seconds from the death of a rank
    to its detection; each rank detects it at a time of its own, up to half as much later. `arrives` decides on the
    undelivered messages of a killed rank. `rates`: by rank, the seconds of its clocks in a second, if not 1. `posted`
    counts messages, `time` is in seconds.
    """

    def __init__(
        self,
        size: int,
        delays: Delays = no_delay,
        seed: int = 0,
        tick: float = 1e-3,
        faults: Iterable[Fault | Split | Jump] = (),
        detection: float = 0.03,
        arrives: Arrives = all_arrive,
        rates: Mapping[int, float] | None = None,
    ) -> None:
        self.size, self.time, self.posted = size, 0.0, 0
        self._delays, self._arrives, self._rng = delays, arrives, random.Random(seed)
        self._tick, self._detection, self._horizon = tick, detection, float("inf")
        self._order = itertools.count()
        self._in_flight: list[list[tuple[float, int, int, bytes]]] = [[] for _ in range(size)]
        self._detections: list[list[tuple[float, int]]] = [[] for _ in range(size)]
        self._excluded: list[set[int]] = [set() for _ in range(size)]
        self.clocks = [TwinClock((rates or {}).get(rank, 1.0)) for rank in range(size)]
        # By (source, destination): since when the link has failed, and the messages that it keeps.
        self._cut: dict[tuple[int, int], float] = {}
        # By link that was cut and is whole again: since when.
        self._whole: dict[tuple[int, int], float] = {}
        # By number: the links of each split.
        self._splits: dict[int, set[tuple[int, int]]] = {}
        self._kept: dict[tuple[int, int], list[tuple[float, int, int, bytes]]] = {}
        self._heartbeats = [TwinHeartbeat(self, rank) for rank in range(size)]
        self._timed: list[tuple[float, int, Planned]] = []
        self._counted: list[tuple[int, int, Planned]] = []
        for fault in faults:
            self.plan(fault)
        self.vans = [TwinVan(self, rank) for rank in range(size)]
        # One per rank while programs run.
        self._running: list[greenlet] = []
        self._idle: set[int] = set()
        # When all idle ranks ran last.
        self._woken = 0.0
        # Ranks whose programs have not ended.
        self._alive: set[int] = set(range(size))
        # Killed ranks, and the time of their death.
        self._dead: dict[int, float] = {}
        self._stopped: dict[int, float] = {}
        self._suspended: set[int] = set()
        # Ranks whose programs have ended, and when.
        self._ended_at: dict[int, float] = {}
        self._absences: list[list[tuple[float, float]]] = [[] for _ in range(size)]
        self._ended = False
        self._failure: Deadlock | None = None

    # Called by vans.

    def post(self, source: int, dest: int, message: Message) -> int:
        """Send a message to `dest`; return its size in bytes."""
        raw = to_bytes(message)
        if dest in self._excluded[source]:
            return 0
        for delay in self._delays(source, dest, message):
            if dest not in self._dead and source not in self._excluded[dest]:
                if source in self._dead and not self._arrives(source, dest):
                    # It was killed while it sent this.
                    continue
                item = (self.time + delay, next(self._order), source, raw)
                if (source, dest) in self._cut:
                    self._kept.setdefault((source, dest), []).append(item)
                else:
                    heapq.heappush(self._in_flight[dest], item)
        self.posted += 1
        self._inject_due_faults()
        return len(raw)

    def take(self, rank: int) -> tuple[Message, int] | None:
        """Return the next message that has arrived at `rank`, and its size in bytes."""
        in_flight = self._in_flight[rank]
        if not in_flight or in_flight[0][0] > self.time:
            return None
        raw = bytearray(heapq.heappop(in_flight)[3])
        return from_bytes(raw), len(raw)

    def detected(self, rank: int) -> list[int]:
        """Return the ranks whose death `rank` detects now, each once."""
        detections, dead_ranks = self._detections[rank], []
        while detections and detections[0][0] <= self.time:
            dead_ranks.append(heapq.heappop(detections)[1])
        # A link that has failed reports nothing.
        for dead in [dead for dead in dead_ranks if (dead, rank) in self._cut]:
            dead_ranks.remove(dead)
            heapq.heappush(detections, (self.time + self._tick, dead))
        return [dead for dead in dead_ranks if dead not in self._excluded[rank]]

    def exclude(self, rank: int, excluded: int) -> None:
        """Drop all messages between two ranks from now on, and do not report the death of the second to the first."""
        self._excluded[rank].add(excluded)
        self._kept.pop((excluded, rank), None)
        self._drop_messages(rank, lambda source, _: source != excluded)

    def touch(self, rank: int) -> None:
        """Begin a van call of `rank`: a killed rank ends in it, a stopped rank waits in it."""
        if not self._running:
            return
        if self._ended or rank in self._dead:
            raise _Ended
        if rank in self._stopped:
            self._switch_to(self._next(), rank)

    def rest(self, rank: int) -> None:
        """`rank` is idle: let other ranks run, or time advance."""
        self._idle.add(rank)
        if not self._running:
            self._advance()
        else:
            self._switch_to(self._next(), rank)

    # Faults.

    def kill(self, rank: int) -> None:
        """Kill a rank: it ends in its current or next van call, and receives no more messages."""
        if rank not in self._alive or rank in self._dead:
            return
        self._dead[rank] = self._stopped.get(rank, self.time)
        self._in_flight[rank].clear()
        for other in range(self.size):
            self._kept.pop((other, rank), None)
            if other != rank:
                if not self._arrives(rank, other):
                    self._kept.pop((rank, other), None)
                self._drop_messages(other, lambda source, dest: source != rank or self._arrives(rank, dest))
                delay = self._detection * (1 + self._rng.random() / 2)
                heapq.heappush(self._detections[other], (self.time + delay, rank))

    def stop(self, rank: int) -> None:
        """Stop a rank from its next van call on; messages to it are kept."""
        if rank in self._alive:
            self._stopped.setdefault(rank, self.time)

    def suspend(self, rank: int) -> None:
        """Stop a rank, and its clock of durations."""
        if rank in self._alive and rank not in self._stopped:
            self._suspended.add(rank)
            self.stop(rank)

    def resume(self, rank: int) -> None:
        """Resume a stopped rank."""
        if rank in self._stopped:
            since = self._stopped.pop(rank)
            self._absences[rank].append((since, self.time))
            if rank in self._suspended:
                self._suspended.remove(rank)
                self.clocks[rank].suspended += self.time - since
            self._idle.discard(rank)

    def split(self, ranks: Iterable[int], sends: bool = True, receives: bool = True) -> int:
        """Fail the network between some ranks and all others; see `Split`. Return the number of the split."""
        ranks, number = set(ranks), next(self._order)
        links = self._splits[number] = set()
        for inside, outside in itertools.product(ranks, set(range(self.size)) - ranks):
            links.update([(inside, outside)] if sends else [])
            links.update([(outside, inside)] if receives else [])
        for link in links:
            self._cut.setdefault(link, self.time)
        return number

    def heal(self, number: int) -> None:
        """End a split: what its links have kept arrives, unless another one has cut them, too."""
        links = self._splits.pop(number, set()).difference(*self._splits.values())
        for source, dest in sorted(links):
            del self._cut[source, dest]
            self._whole[source, dest] = self.time
            items = self._kept.pop((source, dest), [])
            if dest in self._alive and source not in self._excluded[dest]:
                for due, order, _, raw in items:
                    heapq.heappush(self._in_flight[dest], (max(due, self.time), order, source, raw))

    def runs(self, rank: int) -> bool:
        """Return whether a rank's program has not ended, and was neither killed nor stopped."""
        return rank in self._alive and rank not in self._dead and rank not in self._stopped

    def lives(self, rank: int) -> bool:
        """Return whether a rank was not killed."""
        return rank not in self._dead

    def heartbeat(self, rank: int) -> TwinHeartbeat:
        """Return the failure detector of `rank`."""
        return self._heartbeats[rank]

    def silence(self, listener: int, rank: int) -> float:
        """Return for how many seconds a rank has been dead, ended, stopped, muted or cut off from `listener`.

        Those for which `listener` was stopped do not count.
        """
        since = self._dead.get(rank, self._stopped.get(rank, self._ended_at.get(rank, self.time)))
        since = min(since, self._cut.get((rank, listener), self.time))
        if not self._heartbeats[listener].hears_muted:
            since = min(since, self._heartbeats[rank]._muted_since or self.time)
        absent = (max(end - max(begin, since), 0.0) for begin, end in self._absences[listener])
        return self.time - since - sum(absent)

    def heard_for(self, listener: int, rank: int) -> float:
        """Return for how many seconds nothing has kept `listener` from hearing a rank's heartbeats."""
        if self.silence(listener, rank) > 0:
            return 0.0
        resumed = [self._absences[each][-1][1] for each in (listener, rank) if self._absences[each]]
        whole = self._whole.get((rank, listener), 0.0)
        return self.time - max(whole, self._heartbeats[rank]._unmuted, *resumed)

    def run(self, programs: Sequence[Callable[[TwinVan], Any]], horizon: float = 60.0) -> list[Any]:
        """Run one program per rank to its end; return their results.

        The result of a rank that was killed, or was stopped when all others had ended, is None. Raises the exception
        of the first program that failed, or `Deadlock` when simulated time passes `horizon`.
        """
        self._horizon = horizon
        results: list[Any] = [None] * self.size
        errors: list[BaseException] = []

        def body(rank: int) -> None:
            starter.switch()
            try:
                self.touch(rank)
                result = programs[rank](self.vans[rank])
                if rank not in self._dead:
                    results[rank] = result
            except _Ended:
                pass
            except BaseException as error:
                if rank not in self._dead:
                    errors.append(error)
                    self._ended = True
            self._alive.discard(rank)
            self._idle.discard(rank)
            self._ended_at.setdefault(rank, self.time)

        starter = greenlet.getcurrent()
        self._running = [greenlet(body) for _ in range(self.size)]
        # A greenlet inherits the recursion depth of the one that starts it, so all are started from here.
        for rank, running in enumerate(self._running):
            running.switch(rank)
        self._inject_due_faults()
        chosen = 0 if 0 not in self._stopped else self._next()
        while True:
            # Returns when any program ends.
            self._running[chosen].switch()
            if not self._alive:
                break
            chosen = self._next()
        self._running, self._horizon = [], float("inf")
        # A program may have replaced the error by one of its own.
        for error in (*errors, self._failure):
            if error is not None:
                raise error
        return results

    def hears(self, rank: int, other: int, follows: bool) -> bool:
        """Return whether heartbeats pass in both directions, and `other` follows `rank` if it `follows`."""
        linked = (rank, other) not in self._cut and (other, rank) not in self._cut
        return linked and self.runs(other) and (self._heartbeats[other].follows == rank or not follows)

    def plan(self, fault: Planned) -> None:
        """Schedule a fault."""
        if fault.at is not None:
            heapq.heappush(self._timed, (fault.at, next(self._order), fault))
        elif fault.after_messages is not None:
            heapq.heappush(self._counted, (fault.after_messages, next(self._order), fault))

    def _inject_due_faults(self) -> None:
        """Apply the faults that are due."""
        while fault := self._due():
            if isinstance(fault, Heal):
                self.heal(fault.number)
                continue
            if isinstance(fault, Jump):
                self.clocks[fault.rank].jump += fault.seconds
                continue
            if isinstance(fault, Split):
                number = self.split(fault.ranks, fault.sends, fault.receives)
                if fault.lasting is not None:
                    self.plan(Heal(number, self.time + fault.lasting))
                continue
            acts = {"kill": self.kill, "stop": self.stop, "suspend": self.suspend, "resume": self.resume}
            acts[fault.act](fault.rank)
            if fault.lasting is not None:
                self.plan(Fault("resume", fault.rank, at=self.time + fault.lasting))

    def _due(self) -> Planned | None:
        if self._timed and self._timed[0][0] <= self.time:
            return heapq.heappop(self._timed)[2]
        if self._counted and self._counted[0][0] <= self.posted:
            return heapq.heappop(self._counted)[2]
        return None

    def _drop_messages(self, dest: int, keeps: Callable[[int, int], bool]) -> None:
        """Drop the messages to `dest` for which `keeps(source, destination)` is false."""
        self._in_flight[dest] = [item for item in sorted(self._in_flight[dest]) if keeps(item[2], dest)]

    def _next(self) -> int:
        """Choose the rank that runs next; while none can, advance time. Killed ranks unwind first."""
        while not self._ended:
            if leaving := self._alive & self._dead.keys():
                return min(leaving)
            if self._alive <= self._stopped.keys():
                if not self._timed or self._timed[0][0] > self._horizon:
                    # No rank is left that could resume them.
                    self._ended = True
                else:
                    self._advance_to(self._timed[0][0])
            elif ready := self._ready():
                return self._rng.choice(ready)
            else:
                self._advance()
        return self._rng.choice(sorted(self._alive))

    def _ready(self) -> list[int]:
        now = self.time
        return [
            rank
            for rank in sorted(self._alive - self._stopped.keys())
            if rank not in self._idle or (self._in_flight[rank] and self._in_flight[rank][0][0] <= now)
        ]

    def _advance(self) -> None:
        """Advance time to the next delivery, or by a tick, but not beyond a fault or a detection.

        A delivery wakes its receiver alone: the others, which would find nothing, run once in a tick.
        """
        awake = self._alive - self._stopped.keys()
        later = min(
            (self._in_flight[rank][0][0] for rank in awake if self._in_flight[rank]), default=self.time
        )
        delivers = later > self.time
        steps = [self._timed[0][0]] if self._timed else []
        steps += [self._detections[rank][0][0] for rank in awake if self._detections[rank]]
        until = later if delivers else self.time + self._tick
        others = min((step for step in steps if step > self.time), default=float("inf"))
        self._advance_to(min(until, others))
        if not delivers or others <= until or self.time >= self._woken + self._tick:
            self._woken = self.time
            self._idle.clear()

    def _advance_to(self, time: float) -> None:
        self.time = max(time, self.time)
        if self.time <= self._horizon:
            self._inject_due_faults()
            return
        self._ended = True
        where = ", ".join(f"rank {rank} {self._waits(rank)}" for rank in sorted(self._alive))
        self._failure = Deadlock(
            f"at {self.time:.3f} s every rank waits and no message is in flight: {where}"
        )

    def _waits(self, rank: int) -> str:
        """Describe where the program of a rank waits."""
        if rank in self._stopped:
            return "is stopped"
        running = self._running[rank]
        frame = sys._getframe() if running is greenlet.getcurrent() else running.gr_frame
        while frame is not None and frame.f_code.co_filename == __file__:
            frame = frame.f_back
        if frame is None:
            return "waits"
        code = frame.f_code
        return f"waits in {code.co_name} ({Path(code.co_filename).name}:{frame.f_lineno})"

    def _switch_to(self, chosen: int, mine: int) -> None:
        if chosen != mine:
            self._running[chosen].switch()
        if self._ended or mine in self._dead:
            raise _Ended


class TwinVan:
    """One rank's van on a `Network`; see `mpips.transport.van.Van`."""

    survives = True
    compiled = False

    def __init__(self, network: Network, rank: int) -> None:
        self.rank, self.size = rank, network.size
        self.sent_bytes = self.received_bytes = self.sent_messages = 0
        self.receive_buffer: Callable[[Message], NDArray[Any] | None] = lambda message: None
        self.fast_path: FastPathTable | None = None
        self.epoch = 0
        self.slot = -1
        self.buffers = BufferPool()
        self._network: Network | None = network
        clock = network.clocks[rank]
        self._time_of_day = TimeOfDay(
            lambda: clock.time_of_day(network.time), lambda: clock.since_boot(network.time)
        )

    def _open(self) -> Network:
        if self._network is None:
            raise ClosedError("this van is closed")
        self._network.touch(self.rank)
        return self._network

    def send(self, dest: int, message: Message) -> None:
        network = self._open()
        self.sent_bytes += network.post(self.rank, dest, message)
        self.sent_messages += 1
        network.touch(self.rank)

    def receive(self) -> Message | None:
        network = self._open()
        taken = network.take(self.rank)
        if taken is None:
            return None
        network._idle.discard(self.rank)
        message, size = taken
        self.received_bytes += size
        return message

    def ask(self, *request: Any) -> list[int]:
        return []

    def version(self) -> int:
        return -1

    def withdraw(self, slot: int) -> None:
        return

    def idle(self) -> None:
        self._open().rest(self.rank)

    def glance(self) -> None:
        return

    def finish_receives(self) -> None:
        return

    def arriving(self, source: int) -> bool:
        return False

    def unsent(self, dest: int) -> int:
        return 0

    def pending(self) -> int:
        return 0

    def now(self) -> float:
        network = self._open()
        return network.clocks[self.rank].now(network.time)

    def wall(self) -> float:
        self._open()
        return self._time_of_day()

    def failed(self) -> list[int]:
        return self._open().detected(self.rank)

    def exclude(self, rank: int) -> None:
        self._open().exclude(self.rank, rank)

    def close(self) -> None:
        self._network = None


class TwinHeartbeat:
    """One rank's failure detector on a `Network`, as `mpips.membership.heartbeat`'s; each monitors all others."""

    def __init__(self, network: Network, rank: int) -> None:
        self.targets: Sequence[int] = ()
        self.seldom: Sequence[int] = ()
        self.follows = -1
        self.hears_muted = False
        self._muted_since: float | None = None
        self._unmuted = 0.0
        self._network, self._rank = network, rank
        # By rank, and whether it follows: when it last confirmed, since when it does, and when that was last checked.
        self._confirmed: dict[tuple[int, bool], tuple[float, float, float]] = {}

    def silent(self, ranks: Iterable[int], patience: float) -> list[int]:
        """Return those of `ranks` that were stopped or dead for `patience` seconds while this rank ran."""
        rate = self._network.clocks[self._rank].rate
        return [rank for rank in ranks if 0 < patience <= self._network.silence(self._rank, rank) * rate]

    @property
    def muted(self) -> bool:
        """Whether this rank counts as silent, and its heartbeats are confirmed nevertheless."""
        return self._muted_since is not None

    @muted.setter
    def muted(self, muted: bool) -> None:
        if self.muted and not muted:
            self._unmuted = self._network.time
        self._muted_since = (self._muted_since or self._network.time) if muted else None

    def unconfirmed(self, ranks: Iterable[int], patience: float) -> list[int]:
        """Return those of `ranks` that have not confirmed for `patience` seconds that they follow this rank.

        A confirmation takes `ECHO` seconds, also after this rank itself was stopped.
        """
        return self._silent_to(ranks, patience, True)

    def deaf(self, ranks: Iterable[int], patience: float) -> list[int]:
        """Return those of `ranks` that have not confirmed for `patience` seconds that they hear this rank."""
        return self._silent_to(ranks, patience, False)

    def _silent_to(self, ranks: Iterable[int], patience: float, follows: bool) -> list[int]:
        network, found = self._network, []
        now = network.clocks[self._rank].since_boot(network.time)
        for rank in ranks:
            heard = self._confirmed.get((rank, False), (now,))[0]
            confirmed, since, looked = self._confirmed.get((rank, follows), (heard, now - ECHO, now))
            if now - looked > patience / 2 and not follows:
                # It was not watched.
                confirmed = now
            if not network.hears(self._rank, rank, follows):
                since = float("inf")
            elif since > now or now - looked > 5 * ECHO:
                since = now
            elif now - since >= ECHO:
                confirmed = now
            self._confirmed[rank, follows] = confirmed, since, now
            if now - confirmed >= patience:
                found.append(rank)
        return found

    def close(self) -> None:
        """Stop monitoring; idempotent."""
