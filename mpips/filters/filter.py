"""What a filter is: a pair of pure functions with explicit state (paper, section 5.1).

A filter encodes what a message carries, keys and rows, before it is sent, and decodes it where it has arrived. Its
state belongs to one peer and one vector; only encoding has any. What decoding needs, encoding writes into the note that
travels with the message. So a message that is sent again, or to another server after a death, is read the same by
whoever gets it.

A user's own stands in the job's file, and is named in [filters] like those that are here:

    @dataclass(frozen=True)
    class Halved:
        digits: int = 3

    @filter_("halved", Halved)
    def halved(settings):
        def encode(state, content, about):
            return state, content._replace(values=content.values.astype(np.float32))

        def decode(content):
            return content._replace(values=content.values.astype(np.float64))

        return Coder(encode, decode, rounds=True)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpips.ranges import KeyRange
from mpips.storage.updates import claim
from mpips.transport.message import Command

State = dict[str, NDArray[Any]]
"""What a filter remembers: arrays by name, none at first. If there is one named "keys", u64[n], sorted, then all whose
name begins with "row" have a row for each of them: so a checkpoint can be read by other servers' peers. Encoding gives
the next state, and leaves the arrays of the one that it was given alone: should the message be given up, that one is
taken again. Only what does no harm if it is a message ahead may be changed in place, as counts."""


class Content(NamedTuple):
    """What a message carries.

    `keys` are u64[n], sorted and unique, or None: all keys of the message's range. `values` are rows [n, width] of
    float32, float64, int32 or int64, or u1[bytes] that an earlier filter of the chain has made of them. `note` is what
    this filter's decoding is given back. None of these arrays is the filter's to write into.
    """

    keys: NDArray[np.uint64] | None
    values: NDArray[Any]
    note: bytes = b""

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.values.nbytes + (0 if self.keys is None else self.keys.nbytes)


class About(NamedTuple):
    """What encoding may know of the message besides.

    `vector` is its name; `command` PUSH or PUSH_PULL on the way to the servers, PULL or PUSH_PULL on the way back;
    `range` the keys that it speaks for; `sums` tells that pushes of this vector are changes that add up, so that one
    may be held back and added to a later one; `seed` is the job's, `origin` and `time` name the request: what is
    random draws from these, so that a run repeats. `keys` are those of the rows, also where they do not travel.
    `flush`: nothing is to be held back. `exact`: the rows must arrive as they are.
    """

    vector: str
    command: Command
    range: KeyRange
    sums: bool
    seed: int
    origin: int
    shard: int
    time: int
    flush: bool = False
    keys: NDArray[np.uint64] | None = None
    exact: bool = False


class Coder(NamedTuple):
    """A filter with its settings: `encode(state, content, about)` and `decode(content)`.

    Raises of encode: InputError for rows that it cannot take. Of decode: FilterError where the content is none that
    encode makes. `drops`: it may leave rows out, so that only plain pushes (Command.PUSH) go through it. `rounds`: what
    it decodes may be other numbers, so that nothing goes through it that must arrive as it is.
    """

    encode: Callable[[State, Content, About], tuple[State, Content]]
    decode: Callable[[Content], Content]
    drops: bool = False
    rounds: bool = False


class Filter(NamedTuple):
    """A filter as the job file names it: `make(settings)` gives its coder, `lacks()` says what is missing here."""

    name: str
    settings: type
    make: Callable[[Any], Coder]
    lacks: Callable[[], str] = lambda: ""


@dataclass(frozen=True)
class NoSettings:
    """The settings of a filter that has none."""


known: dict[str, Filter] = {}
Make = TypeVar("Make", bound=Callable[[Any], Coder])


def filter_(
    name: str, settings: type = NoSettings, lacks: Callable[[], str] = lambda: ""
) -> Callable[[Make], Make]:
    """Register a function that makes a filter's coder from its settings, a frozen dataclass.

    Raises:
        JobError: there is a filter of that name.
    """

    def register(make: Make) -> Make:
        claim("filter", name, make, known[name].make if name in known else None)
        known[name] = Filter(name, settings, make, lacks)
        return make

    return register
