"""Faults of the simulated network: the delivery of messages, and the ranks that are killed or stopped.

A policy, `Delays`, returns for each message the list of delays of its copies ([]: it is lost, two entries: it is
duplicated); `random_delays(seed, ...)` draws such delays at random. A `Fault` says which rank is killed, stopped or
resumed, and when: by simulated time, or by the number of messages posted so far, so that a test can inject a fault
between any two steps of a protocol. A `Split` is a failure of the network between two groups of ranks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from mpips.transport.message import Kind, Message

Delays = Callable[[int, int, Message], Sequence[float]]
Arrives = Callable[[int, int], bool]
"""(killed rank, destination) -> whether a message in flight still arrives."""


@dataclass(frozen=True)
class Fault:
    """An injected fault: kill, stop or resume a rank at the time `at`, or once `after_messages` messages were posted.

    A rank that is suspended is stopped with its machine, so that its clock stands still, too. A stop that is `lasting`
    ends after so many seconds. The message that completes the count is in flight when the
    fault takes effect. A fault of a rank whose program has ended has no effect.
    """

    act: Literal["kill", "stop", "suspend", "resume"]
    rank: int
    at: float | None = None
    after_messages: int | None = None
    lasting: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError unless there is exactly one instant."""
        if (self.at is None) == (self.after_messages is None):
            raise ValueError(f"give either `at` or `after_messages`: {self}")


@dataclass(frozen=True)
class Split:
    """The network between `ranks` and all others fails, at the time `at` or once `after_messages` were posted.

    They do not reach the others unless `sends` is false, and are not reached unless `receives` is. Messages are kept,
    and arrive when the network is whole again, after `lasting` seconds: as TCP has it.
    """

    ranks: frozenset[int]
    at: float | None = None
    after_messages: int | None = None
    lasting: float | None = None
    sends: bool = True
    receives: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError unless there is exactly one instant."""
        if (self.at is None) == (self.after_messages is None):
            raise ValueError(f"give either `at` or `after_messages`: {self}")


@dataclass(frozen=True)
class Heal:
    """The split of this number ends at the time `at`."""

    number: int
    at: float
    after_messages: int | None = None


@dataclass(frozen=True)
class Jump:
    """The time of day of a rank's host changes by so many seconds, at the time `at`."""

    rank: int
    seconds: float
    at: float
    after_messages: int | None = None


class TwinClock:
    """The clocks of one rank. `rate`: their seconds in a second of simulated time; `jump` is added to the time of day.

    >>> clock = TwinClock(rate=1.1)
    >>> clock.jump, clock.suspended = -3600.0, 5.0
    >>> round(clock.now(10.0), 1), round(clock.since_boot(10.0), 1), round(clock.time_of_day(10.0), 1)
    (5.5, 11.0, -3589.0)
    """

    def __init__(self, rate: float = 1.0) -> None:
        self.rate, self.jump, self.suspended = rate, 0.0, 0.0
        """`suspended`: simulated seconds for which the clock of durations stood still."""

    def now(self, time: float) -> float:
        """Return what the clock of durations shows at a simulated time."""
        return (time - self.suspended) * self.rate

    def since_boot(self, time: float) -> float:
        """Return the seconds since the start at a simulated time, those of suspensions included."""
        return time * self.rate

    def time_of_day(self, time: float) -> float:
        """Return the time of day at a simulated time."""
        return time * self.rate + self.jump


Planned = Fault | Split | Heal | Jump


def no_delay(source: int, dest: int, message: Message) -> Sequence[float]:
    """Deliver every message once and without delay."""
    return (0.0,)


def random_delays(
    seed: int, *, delay: float = 0.0, drop: float = 0.0, duplicate: float = 0.0, spare_control: bool = True
) -> Delays:
    """Return a policy that delays each message by up to `delay` seconds (so it reorders), drops and duplicates.

    `drop` and `duplicate` are probabilities. With `spare_control`, control messages are only delayed.
    """
    rng = random.Random(seed)

    def delays(source: int, dest: int, message: Message) -> Sequence[float]:
        first = rng.random() * delay
        drawn = rng.random()
        if spare_control and message.kind is Kind.CONTROL:
            return (first,)
        if drawn < drop:
            return ()
        if drawn < drop + duplicate:
            return (first, rng.random() * delay)
        return (first,)

    # Whether messages are lost, so that requests must be sent again.
    delays.loses = drop > 0  # type: ignore[attr-defined]
    return delays


def all_arrive(killed: int, dest: int) -> bool:
    """Deliver all messages that a killed rank had posted."""
    return True


def random_arrivals(seed: int, loss: float) -> Arrives:
    """Return a policy that loses each undelivered message of a killed rank with probability `loss`."""
    rng = random.Random(seed)
    return lambda killed, dest: rng.random() >= loss
