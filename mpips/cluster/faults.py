"""Fault injection: kills, stops, slows ranks and disturbs messages by the job's `[faults]` table, seeded.

It is part of the system, not of the tests, so that users can test how a training run behaves when a server dies.
With an empty table it costs one attribute test per call.
"""

from __future__ import annotations

import math
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from resource import RUSAGE_THREAD, getrusage
from typing import Literal, NamedTuple

from mpips.cluster.layout import LayoutSpec
from mpips.cluster.splits import Split, Splits
from mpips.typed import LONGEST, MOST, InvalidValue

RoleName = Literal["scheduler", "server", "worker", "spare"]

NORMAL: tuple[float, ...] = (0.0,)
"""One copy without delay: the delivery of a message that no fault affects."""

SECONDS = {"or_zero": True, "at_least": 1e-6, "at_most": LONGEST}
"""Bounds of the durations of faults."""

LEAST_SLEEP = 50e-6
"""The shortest sleep in seconds; shorter slowdowns accumulate, since the system cannot sleep for less."""


class Used(NamedTuple):
    """What a thread has used so far: seconds on a processor, and the times that it has given it up by itself."""

    seconds: float
    waits: int


def used() -> Used:
    """Return what this thread has used so far."""
    return Used(time.thread_time(), getrusage(RUSAGE_THREAD).ru_nvcsw)


@dataclass(frozen=True)
class InjectedSignal:
    """A signal that one rank gets once, at a step or at a time."""

    role: RoleName
    """Role of the rank."""
    index: int = field(default=0, metadata={"at_least": 0, "at_most": MOST})
    """Index among the ranks of its role, from 0."""
    at_step: int | None = field(default=None, metadata={"at_least": 0, "at_most": MOST})
    """When the rank reaches this step (a worker's task, a server's change, a scheduler's call) or a later one."""
    at_seconds: float | None = field(default=None, metadata=SECONDS)
    """Seconds after the start of the rank."""

    def __post_init__(self) -> None:
        if (self.at_step is None) == (self.at_seconds is None):
            raise ValueError("either at_step or at_seconds must be given, not both")


@dataclass(frozen=True)
class Slow:
    """A straggler: one rank whose processor is slower.

    After each piece of work, which is what a program does inside `with context.working():`, the rank sleeps for as long
    as a slower processor would have computed in addition: the processor time that its main thread has used, times
    `factor` - 1. Time in which the piece sleeps, waits for a disk, or for other threads, does not become longer. If it
    waits for nothing, and has lost its core to other processes for a while, the sleep is shorter by that.
    """

    role: RoleName
    """Role of the rank."""
    index: int = field(default=0, metadata={"at_least": 0, "at_most": MOST})
    """Index among the ranks of its role, from 0."""
    factor: float = field(default=3.0, metadata={"at_least": 1, "at_most": 1e6})
    """How many times as long the computations in its work take."""
    probability: float = field(default=1.0, metadata={"above": 0, "at_most": 1})
    """Probability that it is slow: 1 is always; less simulates a machine shared with other jobs."""
    spell: float = field(default=0.0, metadata=SECONDS)
    """Seconds between two draws of whether it is slow; 0: a draw for each piece of work."""


@dataclass(frozen=True)
class Chance:
    """A fault that affects each message with a probability."""

    probability: float = field(default=0.0, metadata={"at_least": 0, "at_most": 1})
    """The share of messages that it affects."""
    seconds: float = field(default=0.0, metadata=SECONDS)
    """Delay in seconds of the message, or of its second copy."""


@dataclass(frozen=True)
class FaultsSpec:
    """The faults to inject; none by default."""

    seed: int = 0
    """Seeds all random draws, together with the rank's role and index."""
    kill: tuple[InjectedSignal, ...] = ()
    """Ranks that die (SIGKILL): `[{role = "server", index = 1, at_step = 100}]`."""
    stop: tuple[InjectedSignal, ...] = ()
    """Ranks that hang (SIGSTOP), which the heartbeat must detect."""
    slow: tuple[Slow, ...] = ()
    """Stragglers: `[{role = "worker", index = 0, factor = 3}]`; intermittent: `probability = 0.2, spell = 0.01`."""
    delay: Chance | None = None
    """Messages that arrive late: `{probability = 0.01, seconds = 0.05}`."""
    drop: Chance | None = None
    """Messages that never arrive."""
    duplicate: Chance | None = None
    """Messages that arrive twice, the second copy `seconds` later."""
    split: tuple[Split, ...] = ()
    """Failures of the network: `[{at_seconds = 2, seconds = 3, ranks = [0, 3]}]`."""


def check_ranks(spec: FaultsSpec, layout: LayoutSpec) -> None:
    """Raise InvalidValue for a fault of a rank that a layout does not have."""
    for number, split in enumerate(spec.split):
        for rank in split.ranks:
            if not 0 <= rank < layout.size():
                raise InvalidValue(
                    ("faults", "split", number, "ranks"),
                    f"split[{number}]: there is no rank {rank}: this job has {layout.size()} ranks, numbered from 0",
                )
    ranks = {
        "scheduler": layout.schedulers,
        "server": layout.servers,
        "worker": sum(layout.groups().values()),
        "spare": layout.spares,
    }
    for kind in ("kill", "stop", "slow"):
        for number, each in enumerate(getattr(spec, kind)):
            if each.index >= ranks[each.role]:
                raise InvalidValue(
                    ("faults", kind, number, "index"),
                    f"{kind}[{number}]: there is no {each.role} {each.index}: this job has {ranks[each.role]} "
                    "of them, numbered from 0",
                )


class _Slowdown:
    """The present slowdown of one straggler."""

    def __init__(self, spec: Slow, seed: str) -> None:
        self._spec, self._random = spec, random.Random(seed)
        self._factor, self._until = spec.factor, -math.inf

    def factor(self, now: float) -> float:
        """Return how many times as long its work takes at the time `now` in seconds."""
        if now >= self._until:
            slow = self._spec.probability >= 1.0 or self._random.random() < self._spec.probability
            self._factor = self._spec.factor if slow else 1.0
            self._until = now + self._spec.spell
        return self._factor


class Faults:
    """The faults of one rank.

    Args:
        spec: the job's `[faults]` table.
        role: this rank's role.
        index: its index among the ranks of its role.
        now: a clock in seconds; injected in tests.
        sleep: waits for seconds; injected in tests.
        used: what the present thread has used; injected in tests.
        send_signal: sends a signal to this process; injected in tests.
        rank, hosts: this rank, and the host names of all, for failures of the network.
    """

    def __init__(
        self,
        spec: FaultsSpec,
        role: str,
        index: int,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        used: Callable[[], Used] = used,
        send_signal: Callable[[signal.Signals], None] = lambda kind: os.kill(os.getpid(), kind),
        rank: int = 0,
        hosts: Sequence[str] = (),
    ) -> None:
        self._now, self._sleep, self._used, self._send_signal = now, sleep, used, send_signal
        self._start = now()
        self.splits = Splits(spec.split, rank, hosts, now)
        """The links of this rank that fail."""
        mine = [
            (kind, each, f"faults.{name}[{number}]")
            for kind, name, signals in (
                (signal.SIGSTOP, "stop", spec.stop),
                (signal.SIGKILL, "kill", spec.kill),
            )
            for number, each in enumerate(signals)
            if (each.role, each.index) == (role, index)
        ]
        self._at_step = [(kind, each.at_step, name) for kind, each, name in mine if each.at_step is not None]
        self._at_seconds = [
            (kind, each.at_seconds, name) for kind, each, name in mine if each.at_seconds is not None
        ]
        slow = [each for each in spec.slow if (each.role, each.index) == (role, index)]
        self._slowdowns = [
            _Slowdown(each, f"{spec.seed}/{role}/{index}/slow/{n}") for n, each in enumerate(slow)
        ]
        self._owed_sleep = 0.0
        self._began = self._start, Used(0.0, 0)
        self._delay, self._drop, self._duplicate = spec.delay, spec.drop, spec.duplicate
        self.affects_messages = any(
            chance is not None and chance.probability > 0
            for chance in (spec.delay, spec.drop, spec.duplicate)
        )
        self.in_programs = spec == FaultsSpec(spec.seed, slow=spec.slow) and not (slow and role == "server")
        """Whether all faults of the run only slow down programs: then compiled code may handle this rank's messages."""
        self._random = random.Random(f"{spec.seed}/{role}/{index}")

    def step(self, step: int) -> None:
        """Send this process the signals that are due at this step or were at an earlier one."""
        if self._at_step:
            for due in [each for each in self._at_step if each[1] <= step]:
                self._at_step.remove(due)
                self._send_signal(due[0])

    def poll(self) -> None:
        """Send this process the signals that are due; nearly free when none is planned."""
        if self._at_seconds:
            since = self._now() - self._start
            for due in [each for each in self._at_seconds if each[1] <= since]:
                self._at_seconds.remove(due)
                self._send_signal(due[0])

    def not_reached(self) -> list[str]:
        """List the signals to this process that are not due yet, by their names in the job: `faults.kill[0]`."""
        return [name for _, _, name in (*self._at_step, *self._at_seconds)]

    def begin_work(self) -> None:
        """Begin a piece of work."""
        if self._slowdowns:
            self._began = self._now(), self._used()

    def end_work(self) -> None:
        """Sleep so that the work that has begun takes as long as on a processor as slow as this rank's."""
        if self._slowdowns:
            began, (seconds, waits) = self._began
            used, now = self._used(), self._now()
            computed = used.seconds - seconds
            self._owed_sleep += (math.prod(each.factor(now) for each in self._slowdowns) - 1.0) * computed
            if used.waits == waits:
                # It has waited for nothing: other processes have occupied the core for the rest of the time.
                self._owed_sleep -= max(now - began - computed, 0.0)
            if self._owed_sleep >= LEAST_SLEEP:
                self._sleep(self._owed_sleep)
                self._owed_sleep -= self._now() - now

    def message(self) -> tuple[float, ...]:
        """Return the delay in seconds of each copy of one outgoing message; empty if it is lost."""
        if not self.affects_messages:
            return NORMAL
        if self._occurs(self._drop):
            return ()
        late = self._delay.seconds if self._occurs(self._delay) and self._delay else 0.0
        if self._occurs(self._duplicate) and self._duplicate:
            return (late, late + self._duplicate.seconds)
        return (late,) if late else NORMAL

    def _occurs(self, chance: Chance | None) -> bool:
        return chance is not None and self._random.random() < chance.probability
