"""Plans: the shards that a request is sent to, and the keys for each shard.

A plan depends on the keys only, not on the rows: a range or a `KeyList` has one for all its requests, and it keeps the
headers of those that take the fast path.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.keys import KeyArray
from mpips.ranges import KeyRange
from mpips.transport.message import NO_SIGNATURE, Command


class Slice(NamedTuple):
    """The part of a request for one shard: its part of the range, and positions [begin, end) among the keys."""

    shard: int
    range: KeyRange
    begin: int
    end: int


Head = tuple[NDArray[np.uint8], int]
"""A request's header, and its memory address."""
MOST_HEADS = 1 << 10
"""Largest number of headers of a route; then they are cleared."""


class Route:
    """The shards of a range: the first one, the keys at which the range is cut, and its parts, one for each shard."""

    __slots__ = ("bounds", "first", "heads", "inner", "places", "ranges")

    def __init__(self, first: int, inner: NDArray[np.uint64], within: KeyRange) -> None:
        self.first, self.inner = first, inner
        begins = [within.begin, *inner.tolist(), within.end]
        self.ranges = list(map(KeyRange, begins[:-1], begins[1:]))
        self.bounds = np.array([*begins[:-1], within.end - 1], np.uint64)
        self.places = np.zeros(len(begins) + 1, np.int64)
        """`bounds` and `places` are arguments of `mpips.keys.cut`."""
        self.heads: dict[tuple[Command, int, int], Head] = {}
        """Of parts that list their keys: by command, width of the pushed rows (0: none) and shard."""

    def keep(self, name: tuple[Command, int, int], head: Head) -> Head:
        """Keep a header of such a part; return it."""
        if len(self.heads) >= MOST_HEADS:
            self.heads.clear()
        self.heads[name] = head
        return head

    def slices(self, places: Sequence[int], everywhere: bool) -> list[Slice]:
        """Return the parts of a request by shard; those without keys are left out unless `everywhere`."""
        if len(places) == 2:
            return [Slice(self.first, self.ranges[0], 0, places[1])] if places[1] or everywhere else []
        return [
            Slice(self.first + i, each, places[i], places[i + 1])
            for i, each in enumerate(self.ranges)
            if places[i] < places[i + 1] or (everywhere and not each.empty)
        ]


class Kept(NamedTuple):
    """What plans of equal lists have in common."""

    heads: dict[tuple[Command, int], list[Head]]
    """By command and width of the pushed rows (0: none)."""
    unsent: set[int]
    """The slices that were not sent with their signatures."""

    @classmethod
    def of(cls, signatures: Sequence[bytes] | None) -> Kept:
        """Return that of a new list with these signatures of its slices; slices without keys have none."""
        signed = enumerate(() if signatures is None else signatures)
        return cls({}, {at for at, signature in signed if signature != NO_SIGNATURE})


class Plan:
    """Partition of some keys by shard; `keys` if they are a list, and `signatures` of the slices if signed.

    `route`: of a list that requests always list, instead of naming it by its signatures. `kept`: of an equal list.
    """

    __slots__ = ("_unsent", "addresses", "heads", "keys", "n", "route", "signatures", "slices")

    def __init__(
        self,
        n: int,
        slices: list[Slice],
        keys: KeyArray | None,
        signatures: list[bytes] | None,
        route: Route | None = None,
        kept: Kept | None = None,
    ) -> None:
        self.n, self.slices, self.keys, self.signatures = n, slices, keys, signatures
        self.addresses = [~piece.shard for piece in slices]
        self.route = route
        kept = Kept.of(signatures) if kept is None else kept
        self.heads, self._unsent = kept

    @property
    def cached(self) -> bool:
        """Whether requests need no keys: it is a range, or all slices were sent before with keys and signature."""
        return self.route is None and not self._unsent

    def is_sent(self, number: int) -> bool:
        """Return whether a request needs no keys for a slice: it is of a range, or was sent with its signature."""
        return self.route is None and number not in self._unsent

    def sent(self, number: int) -> None:
        """Record that a slice was sent with its signature."""
        self._unsent.discard(number)
