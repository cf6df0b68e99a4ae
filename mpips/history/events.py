"""The events of a history, in the order in which they happened.

An operation is a push, a pull or both, identified by the rank that has issued it and a number, which counts that rank's
operations. It is `Issued`, and `Answered` if its caller learned the outcome: the rank may die before.

In a file an event is a line of JSON: a list of its name, the time in seconds on its host's clock, and its fields.
"""

from __future__ import annotations

from collections.abc import Callable
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from mpips.files.json_schema import is_number


class Issued(NamedTuple):
    """A rank has issued an operation."""

    rank: int
    number: int
    vector: str
    keys: tuple[int, ...]
    """None of a range, and of vectors whose values say nothing about the pushes in them."""
    rows: tuple[int, ...] | None
    """By key: what is pushed; None of a pull."""
    pulls: bool
    """Whether it is answered with rows."""
    round: int
    """`NO_ROUND` if it is part of none."""
    after: tuple[int, ...]
    """The numbers of the rank's operations that it was declared to depend on."""
    group: tuple[int, ...]
    """The workers that take part in its round."""
    shards: tuple[int, ...]
    """The shards that it concerns."""


class Part(NamedTuple):
    """The answer of one shard: from which rank, in which of its epochs, and after how many changes of the shard.

    The number of changes is -1 in answers to pushes.
    """

    shard: int
    server: int
    epoch: int
    version: int
    taken: int = -1
    """The caller's epoch when it took the answer; -1 if that was not recorded."""


class Answered(NamedTuple):
    """An operation has ended at its caller, with an error unless `good`."""

    rank: int
    number: int
    good: bool
    rows: tuple[int, ...] | None
    """By key: what was pulled."""
    parts: tuple[Part, ...]


class Completed(NamedTuple):
    """The scheduler's program knows that rounds of a vector are on all copies: the call that pushed them has ended."""

    rank: int
    vector: str
    rounds: tuple[int, ...]


class Called(NamedTuple):
    """A call of the scheduler has arrived at a rank for the first time: the caller, and the call's time there."""

    rank: int
    origin: int
    time: int


class Viewed(NamedTuple):
    """A rank has adopted a view; `published`: it is the leader that has made it."""

    rank: int
    epoch: int
    leader: int
    primaries: tuple[int, ...]
    """By shard."""
    workers: tuple[int, ...]
    published: bool


class Concluded(NamedTuple):
    """A rank has written the run's result."""

    rank: int


class Final(NamedTuple):
    """All rows of a vector at the end."""

    rank: int
    vector: str
    keys: tuple[int, ...]
    rows: tuple[int, ...]


Event = Issued | Answered | Completed | Called | Viewed | Concluded | Final
Sink = Callable[[Event], object]
KINDS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (Issued, Answered, Completed, Called, Viewed, Concluded, Final)
}


def to_line(event: Event, at: float) -> list[Any]:
    """Return an event as JSON-able data.

    >>> to_line(Concluded(0), 1.5)
    ['Concluded', 1.5, 0]
    """
    return [type(event).__name__, at, *event]


def from_line(line: list[Any]) -> tuple[float, Event]:
    """Return the time and the event of `to_line`.

    Raises:
        ValueError, TypeError, KeyError: it is none.

    >>> from_line(["Concluded", 1.5, 0])
    (1.5, Concluded(rank=0))
    """
    name, at, *fields = line
    if not is_number(at):
        raise TypeError(f"{at!r} is no time")
    made: Event = KINDS[name](*(_field(each, hint) for each, hint in zip(fields, _HINTS[name], strict=True)))
    if isinstance(made, Issued | Final) and made.rows is not None and len(made.rows) != len(made.keys):
        raise ValueError(f"{len(made.rows)} rows of {len(made.keys)} keys")
    return float(at), made


_HINTS = {name: list(get_type_hints(kind).values()) for name, kind in KINDS.items()}


def _field(value: Any, hint: Any) -> Any:
    """Return a field from JSON; TypeError if it is not of the type."""
    if isinstance(hint, UnionType):
        return None if value is None else _field(value, get_args(hint)[0])
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError(f"{value!r} is no list")
        kind = get_args(hint)[0]
        if kind is Part:
            return tuple([Part(*map(_integer, each)) for each in value])
        if not set(map(type, value)) <= {kind}:
            raise TypeError(f"{value!r} are no {kind.__name__}")
        return tuple(value)
    if type(value) is not hint:
        raise TypeError(f"{value!r} is no {hint.__name__}")
    return value


def _integer(value: Any) -> int:
    found: int = _field(value, int)
    return found
