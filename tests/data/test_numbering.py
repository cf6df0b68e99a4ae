"""Numberings of keys, compared with a dict."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mpips.data.numbering import Numbering
from mpips.errors import LayoutError
from mpips.jit.splitmix import mix
from mpips.storage.key_index import MAX_KEYS

EDGES = [0, 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]
key = st.one_of(st.sampled_from(EDGES), st.integers(0, 200), st.integers(0, 2**64 - 1))
batch = st.lists(key, max_size=150)


class NumberingAgainstDict(RuleBasedStateMachine):
    """Any sequence of inserts and finds gives what a dict gives."""

    def __init__(self) -> None:
        super().__init__()
        self.index = Numbering()
        self.model: dict[int, int] = {}

    @rule(keys=batch)
    def insert(self, keys: list[int]) -> None:
        slots = self.index.insert(np.array(keys, np.uint64))
        expected = [self.model.setdefault(k, len(self.model)) for k in keys]
        assert slots.tolist() == expected

    @rule(keys=batch)
    def find(self, keys: list[int]) -> None:
        slots = self.index.find(np.array(keys, np.uint64))
        assert slots.tolist() == [self.model.get(k, -1) for k in keys]

    @rule(first=st.integers(0, 2**64 - 1), count=st.integers(0, 600))
    def insert_run(self, first: int, count: int) -> None:
        self.insert([(first + i) % 2**64 for i in range(count)])

    @invariant()
    def keys_in_slot_order(self) -> None:
        assert len(self.index) == len(self.model)
        assert self.index.keys().tolist() == list(self.model)


NumberingAgainstDict.TestCase.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
TestNumberingAgainstDict = NumberingAgainstDict.TestCase


def unmix(z: int) -> int:
    """The inverse of the hash: to make keys that collide on purpose."""
    mask = 2**64 - 1

    def unshift(value: int, by: int) -> int:
        out = value
        for _ in range(64 // by + 1):
            out = value ^ (out >> by)
        return out

    z = unshift(z, 31) * pow(0x94D049BB133111EB, -1, 2**64) & mask
    z = unshift(z, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) & mask
    return (unshift(z, 30) - 0x9E3779B97F4A7C15) & mask


@given(st.integers(0, 2**64 - 1))
def test_hash_is_splitmix64(number: int) -> None:
    assert unmix(int(mix(np.uint64(number)))) == number


def test_hash_known_values() -> None:
    # the reference generator, seeded with 0, prints these first
    state, seen = 0, []
    for _ in range(3):
        seen.append(int(mix(np.uint64(state))))
        state = (state + 0x9E3779B97F4A7C15) % 2**64
    assert seen == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("half", [0, 1, 2**31, 2**32 - 1])
def test_keys_of_one_half_hash(half: int) -> None:
    """All share the entry's half hash, and the last one makes the probes wrap round the table's end."""
    keys = np.array([unmix((half << 32) | i) for i in range(300)], np.uint64)
    index = Numbering()
    assert index.insert(keys).tolist() == list(range(300))
    assert index.find(keys[::-1].copy()).tolist() == list(range(299, -1, -1))
    absent = np.array([unmix((half << 32) | i) for i in range(300, 400)], np.uint64)
    assert (index.find(absent) == -1).all()


@pytest.mark.parametrize("hint", [0, 1, 12, 13, 1000, 100_000])
def test_hint_does_not_change_slots_and_large_index_stays_small(hint: int) -> None:
    rng = np.random.default_rng(3)
    keys = rng.integers(0, 2**64, 50_000, dtype=np.uint64)
    index = Numbering(hint)
    slots = np.concatenate([index.insert(part) for part in np.array_split(keys, 7)])
    assert (slots == np.arange(50_000)).all()
    assert (index.find(keys) == slots).all()
    assert (index.find(keys + np.uint64(1)) == -1).all()
    if hint <= 50_000:
        assert index.nbytes < 40 * len(index)


def test_out_is_used_and_checked() -> None:
    index = Numbering()
    keys = np.array([5, 7, 5], np.uint64)
    out = np.empty(3, np.int32)
    assert index.insert(keys, out) is out
    assert out.tolist() == [0, 1, 0]
    assert index.find(keys[::2], out[:2]).tolist() == [0, 0]
    for wrong in (np.empty(2, np.int32), np.empty(3, np.int64), np.empty(6, np.int32)[::2]):
        with pytest.raises(TypeError, match="int32"):
            index.find(keys, wrong)


def test_read_only_and_unaligned_views_of_a_message() -> None:
    message = b"x" + np.arange(40, dtype=np.uint64).tobytes()
    keys = np.frombuffer(message, np.uint64, offset=1)
    index = Numbering()
    assert index.insert(keys).tolist() == list(range(40))
    assert index.find(keys[::4]).tolist() == list(range(0, 40, 4))


def test_keys_cannot_be_written_through() -> None:
    index = Numbering()
    index.insert(np.arange(3, dtype=np.uint64))
    with pytest.raises(ValueError, match="read-only"):
        index.keys()[0] = 9


def test_more_keys_than_slots_is_refused() -> None:
    with pytest.raises(LayoutError, match="use more workers"):
        Numbering(MAX_KEYS + 1)
