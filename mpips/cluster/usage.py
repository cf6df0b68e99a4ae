"""Resource use of a rank so far: time, processor time and memory of its process, and bytes that filters saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from time import perf_counter, process_time
from typing import Any, Literal

from mpips.cluster.faults import Faults
from mpips.cluster.observer import Observers
from mpips.filters.chain import Chain, FilterCost
from mpips.tasks.task import Task
from mpips.transport.van import Van

_SELDOM = 100
"""Pause after a reading of the held memory, as a multiple of its duration."""


def process_usage() -> dict[str, Any]:
    """Return this process' `cpu` time in seconds and its peak `memory` in bytes."""
    return {"cpu": process_time(), "memory": getrusage(RUSAGE_SELF).ru_maxrss * 1024}


def held_memory() -> dict[str, int]:
    """Return this process' proportional (`pss`) and `private` memory in bytes; {} where the system does not report it.

    The system walks all pages: about 10 ms for a process of 400 MB.
    """
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return {}
    sizes = {
        name: int(words[0]) * 1024
        for name, _, rest in (line.partition(":") for line in lines[1:])
        if (words := rest.split())
    }
    return {
        "pss": sizes.get("Pss", 0),
        "private": sizes.get("Private_Clean", 0) + sizes.get("Private_Dirty", 0),
    }


class HeldMemory:
    """Reads the held memory as `held_memory`, in a hundredth of the time at most: in between, it returns the last one.

    `clock` returns seconds.
    """

    def __init__(
        self, read: Callable[[], dict[str, int]] = held_memory, clock: Callable[[], float] = perf_counter
    ) -> None:
        self._read, self._clock = read, clock
        self._last: dict[str, int] = {}
        self._next = 0.0

    def __call__(self) -> dict[str, int]:
        """Return the memory in bytes, by name."""
        begin = self._clock()
        if begin >= self._next:
            self._last = self._read()
            end = self._clock()
            self._next = end + _SELDOM * (end - begin)
        return self._last


Wait = tuple[float, Task | str, float, Any]
"""A wait: its begin, its cause, the seconds worked until then, and the enclosing wait or None."""


class TimeUse:
    """How a rank uses its time: its present wait, and the seconds that it has waited and worked."""

    def __init__(self, van: Van, faults: Faults | None, observers: Observers) -> None:
        self.waited = self.worked = 0.0
        """Seconds in waits, without work during them, and seconds inside `working`."""
        self.wait: Wait | None = None
        """The present wait."""
        self._van, self._faults, self._observers = van, faults, observers
        self._working = _Working(self)

    @property
    def since(self) -> float | None:
        """The begin of the present wait; None without one."""
        return None if self.wait is None else self.wait[0]

    @property
    def cause(self) -> Task | str:
        """The task or the cause that the rank waits for; "" if it does not wait."""
        return "" if self.wait is None else self.wait[1]

    def begin(self, cause: Task | str) -> Wait:
        """Begin a wait, perhaps inside another; the caller sets `wait` to the outer one at its end."""
        self.wait = wait = (self._van.now(), cause, self.worked, self.wait)
        return wait

    def count(self, wait: Wait) -> None:
        """Count the time of a wait up to now, unless an error has ended it."""
        start, cause, worked, _ = wait
        now = self._van.now()
        own = now - start - (self.worked - worked)
        self.waited += own
        for waited in self._observers.waited:
            time, name = (-1, cause) if isinstance(cause, str) else (cause.time, "")
            waited(start, now, own, time, name)

    def working(self) -> _Working:
        """Count the time inside `with ...working():` as work; an injected straggler is slow there."""
        return self._working


class _Working:
    """The context of `TimeUse.working`; not nested; its cost is small compared with tens of microseconds."""

    __slots__ = ("_start", "_use")

    def __init__(self, use: TimeUse) -> None:
        self._use, self._start = use, 0.0

    def __enter__(self) -> None:
        use = self._use
        self._start = use._van.now()
        if use._faults is not None:
            use._faults.begin_work()

    def __exit__(self, *_: object) -> None:
        use, start = self._use, self._start
        if use._faults is not None:
            use._faults.end_work()
        seconds = use._van.now() - start
        use.worked += seconds
        for computed in use._observers.computed:
            computed(start, seconds)


class Savings:
    """Bytes that key caching and a program's own filters have saved on this rank."""

    def __init__(self) -> None:
        self.key_bytes, self.sent_keys, self.answered_keys = 0, 0, 0
        """Bytes of keys: in the requests of this rank before caching, as sent, and in the answers to them."""
        self._own: dict[str, dict[str, FilterCost]] = {}

    def add(self, name: str, role: Literal["worker", "server"], raw: int, wire: int) -> None:
        """Count the bytes that a filter of the program itself saves in messages of workers or servers.

        A worker may count for the servers that answer it.
        """
        each = self._own.setdefault(name, {}).setdefault(role, FilterCost())
        each.raw += raw
        each.wire += wire

    def by_filter(self, pushes: Chain, pulls: Chain) -> dict[str, dict[str, FilterCost]]:
        """Return the bytes into and out of each filter, by its name and the role of the sender."""
        found = {name: dict(by) for name, by in self._own.items()}
        if self.key_bytes:
            caching = found.setdefault("key_caching", {})
            caching["worker"] = FilterCost(self.key_bytes, self.sent_keys)
            caching["server"] = FilterCost(self.answered_keys, 0)
        for role, chain in (("worker", pushes), ("server", pulls)):
            for name, each in chain.costs.items():
                found.setdefault(name, {})[role] = each
        return found
