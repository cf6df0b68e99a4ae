"""The key index, compared with a dict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mpips.errors import LayoutError
from mpips.storage import index_layout
from mpips.storage import key_index as index_module
from mpips.storage.key_index import MAX_KEYS, KeyIndex

EDGES = [0, 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]
key = st.one_of(st.sampled_from(EDGES), st.integers(0, 200), st.integers(0, 2**64 - 1))
batch = st.lists(key, max_size=150)
seed = st.integers(0, 2**32 - 1)


def u64(numbers: Any) -> Any:
    return np.array(numbers, np.uint64)


def listed(slots: Any) -> list[int]:
    return list(range(slots.start, slots.stop)) if isinstance(slots, slice) else slots.tolist()


def drawn(seed: int, count: int, begin: int = 0, span: int = 2**64) -> Any:
    """Up to `count` keys of [begin, begin + span), sorted and unique."""
    rng = np.random.default_rng(seed)
    return np.unique(rng.integers(0, span, count, dtype=np.uint64)) + np.uint64(begin)


class IndexAgainstDict(RuleBasedStateMachine):
    """Any sequence of inserts and finds, sorted or not, gives what a dict gives."""

    def __init__(self) -> None:
        super().__init__()
        self.index = KeyIndex()
        self.model: dict[int, int] = {}

    @rule(keys=st.one_of(batch, batch.map(sorted)))
    def insert(self, keys: list[int]) -> None:
        slots = self.index.insert(u64(keys))
        expected = [self.model.setdefault(k, len(self.model)) for k in keys]
        assert listed(slots) == expected

    @rule(keys=st.one_of(batch, batch.map(sorted)))
    def find(self, keys: list[int]) -> None:
        assert listed(self.index.find(u64(keys))) == [self.model.get(k, -1) for k in keys]

    @rule(first=st.integers(0, 2**64 - 1), count=st.integers(0, 600), step=st.sampled_from([1, 3, 2**40]))
    def insert_run(self, first: int, count: int, step: int) -> None:
        self.insert(sorted({(first + i * step) % 2**64 for i in range(count)}))

    @rule(seed=seed, count=st.integers(0, 5000), bits=st.sampled_from([13, 40, 64]))
    def insert_many(self, seed: int, count: int, bits: int) -> None:
        self.insert(drawn(seed, count, span=2**bits).tolist())

    @rule(seed=seed, share=st.sampled_from([0.01, 0.3, 0.9, 1.0]))
    def find_some_again(self, seed: int, share: float) -> None:
        chosen = np.random.default_rng(seed).random(len(self.model)) < share
        self.find(sorted(np.array(list(self.model), np.uint64)[chosen].tolist()))

    @rule(begin=key, last=key, most=st.integers(0, 2**31 - 1) | st.integers(0, 50))
    def select(self, begin: int, last: int, most: int) -> None:
        keys, slots = self.index.select(begin, last, most)
        expected = sorted(k for k in self.model if begin <= k <= last)[:most]
        assert keys.tolist() == expected
        assert listed(slots) == [self.model[k] for k in expected]

    @invariant()
    def keys_in_slot_order(self) -> None:
        assert len(self.index) == len(self.model)
        assert self.index.keys().tolist() == list(self.model)


IndexAgainstDict.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestIndexAgainstDict = IndexAgainstDict.TestCase


def test_slots_of_one_run_are_a_slice() -> None:
    first, second = drawn(1, 5000), drawn(2, 3000)
    index = KeyIndex()
    a, b = len(first), len(first) + len(second)
    assert index.find(first).tolist() == [-1] * a  # type: ignore[union-attr]
    assert index.insert(first) == slice(0, a) == index.find(first) == index.insert(first)
    assert (index.select()[0] == first).all() and index.select()[1] == slice(0, a)
    assert index.insert(second) == slice(a, b), "new keys, though between known ones"
    assert index.find(second) == index.insert(second) == slice(a, b)
    assert index.find(second[100:200]) == slice(a + 100, a + 200)
    assert index.find(second[7:8]) == slice(a + 7, a + 8)
    both = np.sort(np.concatenate([first, second]))
    slots = index.find(both)
    assert isinstance(slots, np.ndarray) and slots.dtype == np.int32
    assert (index.keys()[slots] == both).all()
    assert (index.select()[0] == both).all() and (index.select()[1] == slots).all()
    assert listed(index.find(u64([]))) == listed(index.insert(u64([]))) == []


@given(seed, st.integers(1, 12), st.sampled_from([3, 64, 65, 700, 9000]))
@settings(max_examples=40, deadline=None)
def test_runs_within_the_gaps_of_others(seed: int, rounds: int, count: int) -> None:
    """Every list lies in a stretch of the one before, and is longer than a leaf, or as long, or shorter."""
    index, model, begin, span = KeyIndex(), dict[int, int](), 0, 2**64
    for step in range(rounds):
        keys = drawn(seed + step, count, begin, span)
        assert listed(index.insert(keys)) == [model.setdefault(k, len(model)) for k in keys.tolist()]
        begin, span = int(keys[len(keys) // 2]), max(span >> 6, 1)
    assert index.select()[0].tolist() == sorted(model)
    assert listed(index.find(index.select()[0])) == [model[k] for k in sorted(model)]


@pytest.mark.parametrize("hint", [0, 1, 12, 13, 1000, 100_000])
def test_hint_does_not_change_slots_and_large_index_stays_small(hint: int) -> None:
    keys = drawn(3, 50_000)
    shuffled = np.random.default_rng(3).permutation(keys)
    index = KeyIndex(hint)
    for part in np.array_split(shuffled, 7):
        begin = len(index)
        assert index.insert(np.sort(part)) == slice(begin, begin + len(part))
    assert (index.keys()[index.find(keys)] == keys).all()
    assert listed(index.find(keys[:-1] + np.uint64(1))) == [-1] * (len(keys) - 1)
    if hint <= len(index):
        assert index.nbytes < 80 * len(index)


@pytest.mark.parametrize("keys", [600, 20_000, 300_000])
@pytest.mark.parametrize("lists", [1, 2, 3, 20])
def test_an_index_with_room_for_its_keys_never_grows(keys: int, lists: int) -> None:
    index = KeyIndex(keys)
    places = index.addresses
    order = np.random.default_rng(lists).permutation(drawn(keys, keys))
    for each in np.array_split(order, lists):
        index.insert(np.sort(each))
    assert len(index) == len(order) and index.addresses == places


def test_a_large_index_takes_less_than_32_bytes_a_key_with_its_value() -> None:
    rng = np.random.default_rng(5)
    index = KeyIndex()
    for _ in range(12):
        index.insert(np.unique(rng.integers(0, 2**64, 250_000, dtype=np.uint64)))
        if len(index) > 1_500_000:
            assert index.nbytes + 4 * len(index) < 32 * len(index)
    hinted = KeyIndex(len(index))
    before = hinted.nbytes
    hinted.insert(index.select()[0])
    assert hinted.nbytes == before < 27 * len(index)


def test_an_empty_index_takes_next_to_nothing() -> None:
    assert KeyIndex().nbytes < 300


def test_read_only_and_unaligned_views_of_a_message() -> None:
    message = b"x" + np.arange(40, dtype=np.uint64).tobytes()
    keys = np.frombuffer(message, np.uint64, offset=1)
    index = KeyIndex()
    assert index.insert(keys) == slice(0, 40)
    assert listed(index.find(keys[::4])) == list(range(0, 40, 4))


def test_keys_cannot_be_written_through_and_views_outlive_growth() -> None:
    index = KeyIndex()
    index.insert(np.arange(300_000, dtype=np.uint64))
    view = index.keys()
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 9
    more = np.arange(2**40, 2**40 + 600_000, dtype=np.uint64)
    assert index.insert(more) == slice(300_000, 900_000)
    assert (view == np.arange(300_000)).all()
    assert index.find(view[5:10].copy()) == slice(5, 10)


def test_more_keys_than_slots_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LayoutError, match="use more servers"):
        KeyIndex(MAX_KEYS + 1)
    monkeypatch.setattr(index_module, "MAX_KEYS", 3 * index_layout.RUN)
    index, keys = KeyIndex(), drawn(4, 4 * index_layout.RUN)
    with pytest.raises(LayoutError, match="use more servers"):
        index.insert(keys)
    assert len(index) <= 3 * index_layout.RUN
    assert index.find(keys[:100]) == slice(0, 100), "what it holds it still finds"
