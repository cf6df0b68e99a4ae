"""Signatures of key lists, and a server's cache of them, compared with a dictionary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mpips.transport import key_cache
from mpips.transport.key_cache import COUNT, ENTRY_BYTES, FIRST, SLOTS, USED, KeyCache, Known, look_up, sign
from mpips.transport.message import NO_SIGNATURE

Lists = st.lists(st.integers(0, 2**64 - 1), max_size=40)


def as_keys(numbers: list[int]) -> Any:
    return np.array(numbers, np.uint64)


def words(signature: bytes) -> tuple[int, int]:
    low, high = np.frombuffer(signature, np.int64).tolist()
    return low, high


# --- signatures ----------------------------------------------------------------------------------


@given(Lists)
def test_equal_lists_have_equal_signatures(numbers: list[int]) -> None:
    one, other = as_keys(numbers), as_keys([0, *numbers])[1:]
    assert sign(one) == sign(other) == sign(one.copy())
    assert len(sign(one)) == len(NO_SIGNATURE) and sign(one) != NO_SIGNATURE


@given(Lists, Lists)
def test_different_lists_have_different_signatures(one: list[int], other: list[int]) -> None:
    assert (sign(as_keys(one)) == sign(as_keys(other))) == (one == other)


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=40), st.data())
def test_signatures_depend_on_each_bit_of_each_key(numbers: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(numbers) - 1))
    flipped = list(numbers)
    flipped[place] ^= 1 << data.draw(st.integers(0, 63))
    one, other = words(sign(as_keys(numbers))), words(sign(as_keys(flipped)))
    assert one[0] != other[0] and one[1] != other[1], "either half tells them apart by itself"


@given(Lists, st.permutations(range(8)))
def test_signatures_depend_on_the_order_of_keys(numbers: list[int], order: list[int]) -> None:
    numbers = [*range(8), *numbers]
    shuffled = [*order, *numbers[8:]]
    assert (sign(as_keys(shuffled)) == sign(as_keys(numbers))) == (shuffled == numbers)


@given(Lists, st.integers(1, 9))
def test_signatures_depend_on_the_length_of_the_list(numbers: list[int], more: int) -> None:
    whole = as_keys([*numbers, *[0] * more])
    signatures = {sign(whole[:n]) for n in range(len(numbers), len(whole) + 1)}
    assert len(signatures) == more + 1


def test_no_two_of_many_alike_lists_have_one_signature() -> None:
    runs = [np.arange(first, first + n, dtype=np.uint64) for first in range(100) for n in range(100)]
    steps = [np.arange(0, 50 * step, step, dtype=np.uint64) for step in range(2, 1000)]
    for half in (slice(0, 8), slice(8, 16)):
        seen = {sign(keys)[half] for keys in runs + steps}
        assert len(seen) == len(runs) - 99 + len(steps), "of the runs, 100 are empty, and so alike"


def test_no_list_has_the_signature_that_stands_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_cache, "_sign", lambda keys: (0, 0))
    assert sign(as_keys([1])) != NO_SIGNATURE and len(sign(as_keys([1]))) == len(NO_SIGNATURE)


# --- the cache -----------------------------------------------------------------------------------

SHARDS, NAMESPACES, SIGNATURES = 3, 3, 40
Names = st.tuples(st.integers(0, SHARDS - 1), st.integers(0, NAMESPACES - 1), st.integers(0, SIGNATURES - 1))


def signature_of(number: int) -> bytes:
    """Make signatures that all begin their search at one row of the table."""
    return (number % 16 << 60).to_bytes(8, "little") + (number + 1).to_bytes(8, "little")


Entries = st.one_of(
    st.tuples(st.integers(0, 1000), st.integers(0, 1000)).map(lambda pair: slice(pair[0], sum(pair))),
    st.lists(st.integers(0, 10**6), min_size=1, max_size=60).map(lambda each: np.array(each, np.int32)),
)


class CacheMachine(RuleBasedStateMachine):
    """Keeps, finds and forgets lists; a dictionary knows what was kept last under each name."""

    @initialize(bound=st.integers(1, 12 * ENTRY_BYTES))
    def begin(self, bound: int) -> None:
        self.cache, self.bound = KeyCache(bound), bound
        self.kept: dict[tuple[int, int, int], Known] = {}
        self.found = self.missed = 0

    def here(self, name: tuple[int, int, int]) -> Known | None:
        shard, namespace, number = name
        return self.cache.find(shard, namespace, signature_of(number))

    @rule(name=Names, slots=Entries, missing=st.booleans())
    def keep(self, name: tuple[int, int, int], slots: Any, missing: bool) -> None:
        shard, namespace, number = name
        entry = Known(slots, as_keys([1, 2]) if missing else None)
        before = {each for each in self.kept if self.look(each)}
        self.cache.keep(shard, namespace, signature_of(number), entry)
        if entry.nbytes > self.bound:
            assert {each for each in self.kept if self.look(each)} == before
            return
        old = self.kept.get(name) if name in before else None
        if old is None or (old.keys is not None and not missing):  # else it says what is known already
            self.kept[name] = entry
        assert self.look(name), "what is kept last is kept"

    @rule(name=Names)
    def find(self, name: tuple[int, int, int]) -> None:
        known = self.look(name)
        found = self.here(name)
        self.found += found is not None
        self.missed += found is None
        assert found is (self.kept[name] if known else None)

    @rule(shard=st.integers(0, SHARDS - 1))
    def forget(self, shard: int) -> None:
        others = {each for each in self.kept if each[0] != shard and self.look(each)}
        self.cache.forget(shard)
        self.kept = {name: entry for name, entry in self.kept.items() if name[0] != shard}
        assert {each for each in self.kept if self.look(each)} == others

    def look(self, name: tuple[int, int, int]) -> bool:
        """Return whether a list is there, without using it."""
        shard, namespace, number = name
        return (shard, namespace, signature_of(number)) in self.cache._entries

    @invariant()
    def it_stays_within_its_bound(self) -> None:
        there = [entry for name, entry in self.kept.items() if self.look(name)]
        assert len(self.cache) == len(there)
        assert self.cache.nbytes == sum(entry.nbytes for entry in there) <= self.bound
        assert (self.cache.hits, self.cache.misses) == (self.found, self.missed)

    @invariant()
    def the_table_says_the_same(self) -> None:
        table = self.cache.table
        assert 2 * np.count_nonzero(table[:, COUNT] >= 0) <= len(table)
        for shard in range(SHARDS):
            for namespace in range(NAMESPACES):
                for number in range(SIGNATURES):
                    name = (shard, namespace, number)
                    row = look_up(table, *words(signature_of(number)), shard, namespace)
                    entry = self.kept[name] if self.look(name) else None
                    if entry is None or entry.keys is not None:
                        assert row == -1
                    elif isinstance(entry.slots, slice):
                        run = (entry.slots.start, entry.slots.stop - entry.slots.start, 0)
                        assert tuple(table[row, FIRST : SLOTS + 1]) == run
                    else:
                        expected = (0, len(entry.slots), entry.slots.ctypes.data)
                        assert tuple(table[row, FIRST : SLOTS + 1]) == expected


TestCache = CacheMachine.TestCase
TestCache.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)


def keep_many(cache: KeyCache, numbers: range) -> None:
    for number in numbers:
        cache.keep(0, 1, signature_of(number), Known(slice(number, number + 1)))


def held(cache: KeyCache, most: int = 1000) -> set[int]:
    return {number for number in range(most) if (0, 1, signature_of(number)) in cache._entries}


@pytest.mark.parametrize("by_kernel", [False, True])
def test_recently_used_lists_are_evicted_last(by_kernel: bool) -> None:
    cache = KeyCache(16 * ENTRY_BYTES)
    keep_many(cache, range(16))
    assert held(cache) == set(range(16)) and cache.evicted == 0
    for number in (0, 1, 7):
        if by_kernel:
            row = look_up(cache.table, *words(signature_of(number)), 0, 1)
            cache.table[row, USED] = 1
        else:
            assert cache.find(0, 1, signature_of(number)) is not None
    keep_many(cache, range(16, 17))
    assert held(cache) == {0, 1, 7, *range(8, 17)} and cache.evicted == 5
    assert cache.nbytes == 12 * ENTRY_BYTES, "a quarter is free then"


def test_the_oldest_go_first_when_none_was_used() -> None:
    cache = KeyCache(8 * ENTRY_BYTES)
    keep_many(cache, range(100))
    kept = held(cache)
    assert kept == set(range(100 - len(kept), 100)) and 6 <= len(kept) <= 8


def test_a_list_that_alone_is_too_large_is_not_kept() -> None:
    cache = KeyCache(2 * ENTRY_BYTES)
    keep_many(cache, range(1))
    cache.keep(0, 1, signature_of(1), Known(np.zeros(ENTRY_BYTES, np.int32)))
    assert held(cache) == {0}
    nothing = KeyCache(0)
    keep_many(nothing, range(3))
    assert not len(nothing) and nothing.find(0, 1, signature_of(0)) is None and nothing.misses == 1
