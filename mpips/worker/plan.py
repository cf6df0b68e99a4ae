"""Plans: the parts of a request, one for each shard, and the keys of each part.

A plan depends on the keys only, not on the rows: a range or a `KeyList` has one for all its requests. Plans of lists
that are used once share the table of their range.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mpips.cluster.view import View
from mpips.keys import KeyArray
from mpips.ranges import KeyRange
from mpips.transport.message import NO_SIGNATURE
from mpips.transport.request_parts import BEGIN, COLUMNS, DEST, END, FIRST, HIGH, LAST, LISTS, LOW, SHARD


class Slice(NamedTuple):
    """The part of a request for one shard: its part of the range, and positions [begin, end) among the keys."""

    shard: int
    range: KeyRange
    begin: int
    end: int


class Parts:
    """The table of a request's parts (`mpips.transport.request_parts`), and to which ranks they are sent.

    Each part `lists` its keys, or is about all keys of its range; those of a list that has `signatures` need not be
    listed again once they were sent.
    """

    __slots__ = ("addresses", "epoch", "ranges", "ranks", "table", "unsent")

    def __init__(
        self, slices: Sequence[Slice], lists: bool, signatures: Sequence[bytes] | None = None
    ) -> None:
        self.addresses = [~each.shard for each in slices]
        self.ranges = [each.range for each in slices]
        self.table = np.zeros((len(slices), COLUMNS), np.int64)
        bounds = [(each.begin, each.end - 1) for each in self.ranges]
        self.table[:, FIRST : LAST + 1] = np.array(bounds, np.uint64).reshape(-1, 2).view(np.int64)
        self.table[:, SHARD], self.table[:, LISTS] = [each.shard for each in slices], lists
        self.table[:, BEGIN], self.table[:, END] = (
            [each.begin for each in slices],
            [each.end for each in slices],
        )
        self.unsent: set[int] = set()
        """The signed parts that were not sent with their keys; a part without keys has no signature."""
        if signatures is not None:
            self.table[:, LOW : HIGH + 1] = np.frombuffer(b"".join(signatures), np.int64).reshape(-1, 2)
            self.unsent = {at for at, each in enumerate(signatures) if each != NO_SIGNATURE}
        self.ranks: list[int] = []
        self.epoch = -1

    def sent(self, number: int) -> None:
        """Record that a part was sent with its keys and its signature."""
        self.unsent.discard(number)
        self.table[number, LISTS] = 0

    def located(self, view: View) -> list[int]:
        """Return the ranks of the parts in a view."""
        if self.epoch != view.epoch:
            self.ranks, self.epoch = [view.rank_of(address) for address in self.addresses], view.epoch
            self.table[:, DEST] = self.ranks
        return self.ranks


class Plan:
    """Partition of some keys by shard; `keys` if they are a list, and `signatures` of the slices if signed.

    `places` are the positions at which `parts` begin, and their end. Parts without keys are left out unless
    `everywhere`.
    """

    __slots__ = ("_everywhere", "_places", "_slices", "addresses", "keys", "n", "parts", "signatures")

    def __init__(
        self, n: int, keys: KeyArray | None, parts: Parts, places: Sequence[int], everywhere: bool
    ) -> None:
        self.n, self.keys, self.parts = n, keys, parts
        self.signatures: list[bytes] | None = None
        self._places, self._everywhere = places, everywhere
        self._slices: list[Slice] | None = None
        self.addresses = parts.addresses
        if not (everywhere or (len(places) == 2 and n)):
            self.addresses = [~each.shard for each in self.slices]

    @property
    def slices(self) -> list[Slice]:
        """The parts."""
        if self._slices is None:
            parts, places = self.parts, self._places
            cuts = zip(parts.addresses, parts.ranges, places, places[1:], strict=False)
            self._slices = [
                Slice(~address, each, begin, end)
                for address, each, begin, end in cuts
                if begin < end or self._everywhere
            ]
        return self._slices

    def sign(self, signatures: list[bytes] | None, parts: Parts) -> None:
        """Use a table of these parts only, with their signatures, if there are any."""
        # Slices are those of the former table.
        self._slices, self.signatures, self.parts = self.slices, signatures, parts

    @property
    def lists(self) -> bool:
        """Whether a request has to list keys: it is not of a range, nor were all parts sent with their signatures."""
        return self.keys is not None and (self.signatures is None or bool(self.parts.unsent))
