"""Lists of keys of 64 and 128 bits: order, halves, numbers, and hashes of texts."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips import keys
from mpips.errors import UsageError
from mpips.keys import KEY64, KEY128

half = st.one_of(st.integers(0, 3), st.sampled_from([2**63, 2**64 - 1]))
lists = st.lists(st.tuples(half, half), max_size=20)


def wide(pairs: Any) -> Any:
    return np.array(pairs, KEY128)


@given(lists)
def test_pairs_are_ordered_as_numbers_are(pairs: list[tuple[int, int]]) -> None:
    array, numbers = wide(pairs), [(high << 64) + low for high, low in pairs]
    assert keys.numbers(array) == numbers
    assert keys.order(array).tolist() == sorted(range(len(pairs)), key=numbers.__getitem__)
    assert keys.ascend(array) == (numbers == sorted(set(numbers)))
    assert keys.ascend(array[::2]) == (numbers[::2] == sorted(set(numbers[::2])))
    assert keys.from_pairs(keys.pairs(array)).tolist() == pairs
    assert keys.upper(array).tolist() == [high for high, _ in pairs]


@given(st.lists(lists, min_size=1, max_size=3))
def test_ranks_are_places_in_the_union(several: list[list[tuple[int, int]]]) -> None:
    union, ranks = keys.ranked(*map(wide, several))
    assert union.tolist() == sorted({pair for pairs in several for pair in pairs})
    assert [union[places].tolist() for places in ranks] == several


def test_64_bit_keys_are_themselves() -> None:
    array = np.array([3, 1, 2], np.uint64)
    assert keys.pairs(array) is array and keys.from_pairs(array) is array and keys.folded(array) is array
    assert keys.upper(array) is array and keys.numbers(array) == [3, 1, 2] and not keys.ascend(array)
    assert keys.order(array).tolist() == keys.order(array, once=True).tolist() == [1, 2, 0]
    assert keys.dtype_of(64) == KEY64


def test_keys_of_texts_are_their_hashes() -> None:
    """The bits of BLAKE2b of 128 and 64 bits, as `b2sum -l` prints them."""
    assert keys.pairs(keys.text_keys(["abc"])).tobytes().hex() == "cf4ab791c62b8d2b2109c90275287816"
    assert keys.text_keys([b"abc"], 64).tobytes().hex() == "d8bb14d833d59559"
    texts = [f"user={i}" for i in range(5000)] + ["äöü", ""]
    made = keys.text_keys(texts)
    assert len(np.unique(made)) == len(texts)
    assert made.tobytes()[-16:] == hashlib.blake2b(b"", digest_size=16).digest()


@pytest.mark.parametrize("key_bits", [96, 0, -64, 256, None, "64"])
def test_keys_of_other_sizes_are_refused(key_bits: Any) -> None:
    for make in (keys.dtype_of, lambda bits: keys.text_keys(["abc"], bits)):
        with pytest.raises(UsageError, match=f"^key_bits {key_bits!r} is neither 64 nor 128$"):
            make(key_bits)


def test_keys_that_share_a_half_are_hashed_apart() -> None:
    count = 1 << 12
    for shared in ([(7, i) for i in range(count)], [(i, 7) for i in range(count)]):
        assert len(np.unique(keys.folded(wide(shared)))) == count
