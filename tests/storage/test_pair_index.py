"""The index of 128-bit keys, compared with a dict, also if halves of keys collide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mpips.errors import LayoutError
from mpips.keys import KEY128
from mpips.storage.key_index import MAX_KEYS
from mpips.storage.pair_index import PairIndex

EDGES = [0, 1, 2**32, 2**63, 2**64 - 1]
half = st.one_of(st.sampled_from(EDGES), st.integers(0, 3), st.integers(0, 2**64 - 1))
batch = st.lists(st.tuples(half, half), max_size=100)


def pairs(keys: Any) -> Any:
    return np.array(keys, KEY128)


def listed(slots: Any) -> list[int]:
    return list(range(slots.start, slots.stop)) if isinstance(slots, slice) else slots.tolist()


class IndexAgainstDict(RuleBasedStateMachine):
    """Any sequence of inserts and finds, sorted or not, gives what a dict gives."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PairIndex()
        self.model: dict[tuple[int, int], int] = {}

    @rule(keys=st.one_of(batch, batch.map(sorted)))
    def insert(self, keys: list[tuple[int, int]]) -> None:
        expected = [self.model.setdefault(key, len(self.model)) for key in keys]
        assert listed(self.index.insert(pairs(keys))) == expected

    @rule(high=half, low=st.integers(0, 2**63), count=st.integers(0, 600), upper=st.booleans())
    def insert_keys_that_share_a_half(self, high: int, low: int, count: int, upper: bool) -> None:
        keys = [(high, low + i) for i in range(count)]
        self.insert(keys if upper else [(low, high) for high, low in keys])

    @rule(keys=batch)
    def find(self, keys: list[tuple[int, int]]) -> None:
        assert listed(self.index.find(pairs(keys))) == [self.model.get(key, -1) for key in keys]

    @rule(begin=half, last=half, most=st.sampled_from([0, 3, MAX_KEYS]))
    def select(self, begin: int, last: int, most: int) -> None:
        keys, slots = self.index.select(begin, last, most)
        expected = sorted(key for key in self.model if begin <= key[0] <= last)[:most]
        assert keys.tolist() == expected and listed(slots) == [self.model[key] for key in expected]

    @invariant()
    def has_all_keys_in_slot_order(self) -> None:
        assert self.index.keys().tolist() == list(self.model) and len(self.index) == len(self.model)


TestIndexAgainstDict = IndexAgainstDict.TestCase


def test_unaligned_keys_of_a_message_are_found() -> None:
    index, keys = PairIndex(capacity_hint=3), pairs([(1, 2), (1, 3), (2, 1)])
    unaligned = np.frombuffer(b"x" + keys.tobytes(), KEY128, offset=1)
    assert listed(index.insert(unaligned)) == [0, 1, 2] and listed(index.find(keys)) == [0, 1, 2]
    assert index.nbytes >= keys.nbytes


def test_more_keys_than_slots_are_refused() -> None:
    with pytest.raises(LayoutError, match="use more servers"):
        PairIndex(MAX_KEYS + 1)
