"""A filter is a pair of pure functions with explicit state (paper, section 3.6).

It encodes the keys and rows of a message before it is sent, and decodes them at the receiver. Only the encoder has
state, one per peer and vector. What the decoder needs is in the note that is sent with the message. So a message that
is sent again, or to another server after a death, is decoded the same by every receiver.

A user's filter is defined in the job's program, and named in [filters] like the built-in ones:

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

from numpy.typing import NDArray

from mpips.keys import KeyArray
from mpips.ranges import KeyRange
from mpips.storage.updates import check_unused
from mpips.transport.message import Command

State = dict[str, NDArray[Any]]
"""The state of a filter: arrays by name, none at first. If there is one named "keys", sorted, then all whose
name begins with "row" have a row for each key: so a checkpoint can be restored with other shards. An encoder returns
the next state and does not change the arrays of the current one, which is restored if the message is not sent. Only
arrays that may be one message ahead, such as counts, may be changed in place."""


class Content(NamedTuple):
    """The content of a message.

    `keys` are u64[n], or KEY128[n] of a vector with 128-bit keys (`mpips.keys`), sorted and unique; None: all keys of
    the message's range. `values` are rows [n, width] of float32, float64, int32 or int64, or u1[bytes], the output of
    an earlier filter of the chain. `note` is passed to this filter's decoder. A filter must not write into these
    arrays.

    >>> import numpy as np
    >>> Content(np.array([3, 8], np.uint64), np.ones((2, 1))).nbytes
    32
    """

    keys: KeyArray | None
    values: NDArray[Any]
    note: bytes = b""

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.values.nbytes + (0 if self.keys is None else self.keys.nbytes)


class About(NamedTuple):
    """The context of a message for the encoder.

    `vector` is its name; `command` PUSH or PUSH_PULL to the servers, PULL or PUSH_PULL back; `range` its key range;
    `sums`: pushes of this vector are additive, so that one may be held back and added to a later one; `seed` is the
    job's, `origin` and `time` identify the request: random numbers are drawn from these, so that a run is reproducible.
    `keys` are those of the rows, also where they are not sent. `flush`: hold nothing back. `exact`: rows must not be
    rounded.

    >>> about = About("w", Command.PUSH, KeyRange(0, 100), sums=True, seed=1, origin=3, shard=0, time=7)
    >>> about.command.name, about.flush
    ('PUSH', False)
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
    keys: KeyArray | None = None
    exact: bool = False


class Coder(NamedTuple):
    """A filter with its settings: `encode(state, content, about)` and `decode(content)`.

    `encode` raises InputError for rows that it cannot take, `decode` FilterError for content that `encode` cannot have
    made. `drops`: it may drop rows, so that it is applied to plain pushes (Command.PUSH) only. `rounds`: decoded
    numbers may differ, so that it is not applied to messages that must be exact.

    >>> import numpy as np
    >>> def encode(state, content, about):
    ...     return state, content._replace(values=content.values.astype(np.float32))
    >>> def decode(content):
    ...     return content._replace(values=content.values.astype(np.float64))
    >>> halved = Coder(encode, decode, rounds=True)
    >>> about = About("w", Command.PUSH, KeyRange(0, 100), sums=True, seed=1, origin=3, shard=0, time=7)
    >>> _, sent = halved.encode({}, Content(None, np.ones((2, 1))), about)
    >>> sent.values.dtype.name, halved.decode(sent).values.dtype.name
    ('float32', 'float64')
    """

    encode: Callable[[State, Content, About], tuple[State, Content]]
    decode: Callable[[Content], Content]
    drops: bool = False
    rounds: bool = False


class Filter(NamedTuple):
    """A filter named in a job file: `make(settings)` returns its coder, `lacks()` names a missing package."""

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
    """Register a function from a filter's settings, a frozen dataclass, to its coder.

    Raises:
        JobError: there is a filter of that name.

    >>> @dataclass(frozen=True)
    ... class Unchanged:
    ...     vectors: tuple[str, ...] = ()
    >>> @filter_("example_unchanged", Unchanged)
    ... def unchanged(settings):
    ...     return Coder(lambda state, content, about: (state, content), lambda content: content)
    >>> unchanged(Unchanged()).rounds
    False
    """

    def register(make: Make) -> Make:
        check_unused("filter", name, make, known[name].make if name in known else None)
        known[name] = Filter(name, settings, make, lacks)
        return make

    return register
