"""Plans: the shards that a request is sent to, and the keys for each shard.

A plan depends on the keys only, not on the rows: a range or a `KeyList` has one for all its requests, and it keeps the
headers of those that take the fast path.
"""

from __future__ import annotations

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


class Plan:
    """Partition of some keys by shard; `keys` if they are a list, and `signatures` of the slices if signed."""

    __slots__ = ("_unsent", "addresses", "heads", "keys", "n", "signatures", "slices")

    def __init__(
        self,
        n: int,
        slices: list[Slice],
        keys: KeyArray | None,
        signatures: list[bytes] | None,
    ) -> None:
        self.n, self.slices, self.keys, self.signatures = n, slices, keys, signatures
        self.addresses = tuple(~piece.shard for piece in slices)
        self.heads: dict[tuple[Command, int], list[Head]] = {}
        """By command and width of the pushed rows (0: none)."""
        self._unsent = set(range(len(slices))) if keys is not None else set[int]()
        if signatures is not None:
            # Slices without keys have no signature.
            self._unsent -= {at for at, signature in enumerate(signatures) if signature == NO_SIGNATURE}

    @property
    def cached(self) -> bool:
        """Whether requests need no keys: it is a range, or all slices were sent before with keys and signature."""
        return not self._unsent

    def is_sent(self, number: int) -> bool:
        """Return whether a request needs no keys for a slice: it is of a range, or was sent with its signature."""
        return number not in self._unsent

    def sent(self, number: int) -> None:
        """Record that a slice was sent with its signature."""
        self._unsent.discard(number)
