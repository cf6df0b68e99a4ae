"""Zero removal restores the same bits, and refuses damaged messages."""

from __future__ import annotations

import numpy as np
import pytest
from contents import about, content, contents, damaged, same, survives
from hypothesis import given, settings
from hypothesis import strategies as st

from mpips.errors import FilterError
from mpips.filters import zeros as module
from mpips.filters.filter import Content
from mpips.transport.message import DTYPES

CODER = module.zeros(module.Zeros(least=0))
KEYS = np.arange(100, dtype=np.uint64)


def sent(given: Content) -> Content:
    return CODER.encode({}, given, about())[1]


@settings(max_examples=100)
@given(contents(widths=(0, 1, 2, 3)))
def test_decoding_restores_what_was_sent(given: Content) -> None:
    small = sent(given)
    assert small.keys is given.keys
    assert same(CODER.decode(small), given)


@given(st.integers(0, 300), st.integers(0, 2**32), st.sampled_from(DTYPES), st.floats(0, 1))
def test_any_number_of_zeros_anywhere(n: int, seed: int, dtype: np.dtype[np.float32], share: float) -> None:
    rng = np.random.default_rng(seed)
    values = np.where(rng.random((n, 1)) < share, 0, rng.integers(1, 9, (n, 1))).astype(dtype)
    given = Content(None, values)
    small = sent(given)
    assert same(CODER.decode(small), given)
    count = np.count_nonzero(values)
    removed = -(-n // 64) * 8 + count * dtype.itemsize
    assert len(small.values if small.note else values.tobytes()) == (removed if small.note else values.nbytes)
    if n:
        assert bool(small.note) == (
            removed + len(sent(Content(None, np.zeros((999, 1)))).note) <= 0.9 * values.nbytes
        )


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_only_what_has_no_bit_set_is_removed(dtype: np.dtype[np.float32]) -> None:
    values = np.zeros((1000, 1), dtype)
    kinds = np.array([-0.0, np.nan, np.inf, -np.inf, np.finfo(dtype).smallest_subnormal], dtype)
    values[::100, 0] = np.tile(kinds, 2)
    words = values.view(f"u{dtype.itemsize}")
    words[1, 0] = words[100, 0] | 5  # a NaN that says something
    small = sent(Content(KEYS, values))
    assert len(small.values) == 128 + 11 * dtype.itemsize
    back = CODER.decode(small)
    assert back.values.tobytes() == values.tobytes() and back.keys is KEYS


def test_a_content_of_few_zeros_is_sent_unchanged() -> None:
    for few in (
        Content(None, np.ones((1000, 1))),
        Content(KEYS, np.where(np.arange(1000) % 9 == 0, 0, 1.0)[:, None].astype(np.float32)),
        Content(KEYS, np.zeros(1000, np.uint8)),
        Content(None, np.zeros((0, 3))),
        Content(KEYS, np.zeros((100, 0))),
    ):
        assert sent(few) is few and CODER.decode(few) is few


@settings(max_examples=100)
@given(st.data(), contents())
def test_damage_is_refused_or_read_in_the_right_shape(data: st.DataObject, given: Content) -> None:
    whole = sent(given)
    if whole.note:
        survives(CODER, given, whole, damaged(data.draw, whole))


@given(st.binary(min_size=1, max_size=60), st.binary(max_size=300))
def test_noise_is_refused(note: bytes, payload: bytes) -> None:
    with pytest.raises(FilterError):
        CODER.decode(Content(None, np.frombuffer(payload, np.uint8), note))


def test_a_truncated_payload_is_refused_at_every_length() -> None:
    whole = sent(content(3, DTYPES[0], 500, 1, "zeros", "none"))
    assert whole.note
    for size in range(len(whole.values)):
        with pytest.raises(FilterError):
            CODER.decode(whole._replace(values=whole.values[:size]))


def test_every_bit_of_a_bitmap_counts() -> None:
    whole = sent(Content(None, (np.arange(100) % 5 == 0).astype(np.float64)[:, None]))
    for bit in range(128):
        payload = whole.values.copy()
        payload[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FilterError, match="bitmap does not have 20 bits set among the first 100"):
            CODER.decode(whole._replace(values=payload))


@pytest.mark.parametrize(
    "at, value", [(2, 2**61), (2, -1), (3, 2**40), (3, 0), (4, 2**58), (4, -1), (0, 4), (0, 254)]
)
def test_a_note_of_other_numbers_takes_no_memory(at: int, value: int) -> None:
    whole = sent(Content(None, np.zeros((900, 1))))
    fields = list(module._NOTE.unpack(whole.note))
    fields[at] = value
    with pytest.raises(FilterError):
        CODER.decode(whole._replace(note=module._NOTE.pack(*fields)))


def test_rows_in_addition_to_a_note_are_refused() -> None:
    whole = sent(Content(None, np.zeros((900, 1))))
    with pytest.raises(FilterError, match=r"payload is .*, expected 1-d uint8"):
        CODER.decode(whole._replace(values=np.zeros((900, 1))))


def test_small_contents_are_left_alone() -> None:
    given = Content(None, np.zeros((1000, 1)))
    coder = module.zeros(module.Zeros())
    assert coder.encode({}, given, about())[1] is given
    large = Content(None, np.zeros((1024, 1)))
    assert coder.encode({}, large, about())[1].nbytes < 200
