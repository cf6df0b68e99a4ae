"""Compression restores the same bits, skips incompressible messages, and refuses damaged ones."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from contents import about, content, contents, damaged, same, survives
from hypothesis import given, settings
from hypothesis import strategies as st

from mpips import typed
from mpips.errors import FilterError
from mpips.filters import compress
from mpips.filters.compress import MOST_SKIPPED, Codec, Lz4, Zstd, coder_of, lz4, zstd
from mpips.filters.filter import Coder, Content, State, known
from mpips.filters.planes import join, read_only, split, words_of
from mpips.transport.message import DTYPES

CODERS = {
    "zstd": zstd(Zstd(least=128)),
    "zstd of level 3": zstd(Zstd(level=3, least=128)),
    "zstd without shuffle": zstd(Zstd(shuffle=False, least=128)),
    "lz4": lz4(Lz4(least=128)),
    "lz4 without shuffle": lz4(Lz4(acceleration=9, shuffle=False, least=128)),
}
coders = st.sampled_from(sorted(CODERS)).map(CODERS.__getitem__)


def sent(coder: Coder, given: Content) -> Content:
    return coder.encode({}, given, about())[1]


# -- what is lossless ----------------------------------------------------------------------------------


@settings(max_examples=100)
@given(coders, contents(widths=(0, 1, 2, 3, 5, 40)))
def test_decoding_restores_what_was_sent(coder: Coder, given: Content) -> None:
    arrived = coder.decode(sent(coder, given))
    assert same(arrived, given)
    assert arrived.note == b"" or sent(coder, given) is given


@given(coders, st.integers(0, 70_000), st.integers(0, 2**32), st.booleans())
def test_bytes_of_an_earlier_filter_arrive_too(coder: Coder, size: int, seed: int, keyed: bool) -> None:
    values = np.random.default_rng(seed).integers(0, 3, size, np.uint8)
    given = Content(np.arange(9, dtype=np.uint64) if keyed else None, values)
    assert same(coder.decode(sent(coder, given)), given)


@pytest.mark.parametrize("coder", CODERS.values(), ids=CODERS.keys())
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(100_000, 1), (30_000, 3), (2_000, 33)], ids=str)
def test_large_contents_get_smaller(
    coder: Coder, dtype: np.dtype[np.float32], shape: tuple[int, int]
) -> None:
    rng = np.random.default_rng(1)
    values = (rng.integers(0, 3, shape) * rng.integers(0, 2)).astype(dtype) + (
        np.arange(shape[1]) == 1
    ).astype(dtype)
    given = Content(np.cumsum(rng.integers(1, 30, shape[0]), dtype=np.uint64), values)
    small = sent(coder, given)
    assert small.values.dtype == np.uint8 and small.keys is None
    assert small.nbytes + len(small.note) < 0.5 * given.nbytes
    assert len(small.note) < 64
    assert same(coder.decode(small), given)


def test_columns_of_other_scales_are_split_one_by_one() -> None:
    rng = np.random.default_rng(1)
    both = np.stack([rng.normal(0, 1, 50_000), 1e6 + rng.random(50_000)], axis=1).astype(np.float32)
    apart = sent(CODERS["zstd"], Content(None, both))
    mixed = sent(CODERS["zstd"], Content(None, both.reshape(-1, 1)))
    assert len(apart.values) < 0.9 * len(mixed.values)


def test_arrays_of_any_layout_are_taken() -> None:
    wide = np.arange(12_000, dtype=np.float64).reshape(3000, 4)
    raw = bytearray(4 * 3000 + 1)
    unaligned = np.frombuffer(raw, np.float32, 3000, 1).reshape(-1, 1)
    for values in (wide[:, 1:3], wide[::2], np.asfortranarray(wide), unaligned):
        given = Content(np.arange(2 * len(values), dtype=np.uint64)[::2], values)
        small = sent(CODERS["zstd"], given)
        assert small.note and same(CODERS["zstd"].decode(small), given)


@given(
    st.integers(0, 2100), st.integers(1, 3), st.sampled_from((np.uint32, np.uint64)), st.integers(0, 2**32)
)
def test_planes_are_bytes_by_their_place(n: int, width: int, word: type, seed: int) -> None:
    size = np.dtype(word).itemsize
    words = np.frombuffer(np.random.default_rng(seed).bytes(n * width * size), word)
    body = np.empty(words.nbytes, np.uint8)
    places = np.arange(size * width) * n
    back = np.empty_like(words)
    for c in range(width):
        split(words_of(words), c, width, read_only(places[c * size : (c + 1) * size]), body)
    expected = words.view(np.uint8).reshape(n, width * size).T
    np.testing.assert_array_equal(body.reshape(width * size, n), expected)
    for c in range(width):
        here = places[c * size : (c + 1) * size].copy()
        here[1::2] = ~here[1::2]
        join(read_only(body), read_only(body), read_only(here), c, width, back)
    np.testing.assert_array_equal(back, words)


# -- what does not pay ---------------------------------------------------------------------------------


def test_noise_is_sent_unchanged() -> None:
    given = content(1, DTYPES[1], 20_000, 1, "bits", "none")
    for coder in CODERS.values():
        state, same_content = coder.encode({}, given, about())
        assert same_content is given and state["tries-18"].tolist() == [1, 2]


def test_failures_with_small_contents_do_not_keep_large_ones_from_being_tried() -> None:
    noise, flat = content(1, DTYPES[1], 100, 1, "bits", "none"), Content(None, np.zeros((9000, 1)))
    for coder in CODERS.values():
        state: State = {}
        for _ in range(20):
            state, _ = coder.encode(state, noise, about())
        after, packed = coder.encode(state, flat, about())
        assert packed.nbytes < 0.1 * flat.nbytes and after == state


def test_small_contents_are_not_tried() -> None:
    given = Content(None, np.zeros((31, 1), np.float32))
    for coder in CODERS.values():
        assert coder.encode({}, given, about()) == ({}, given)
    large = Content(None, np.zeros((200, 1), np.float32))
    assert sent(zstd(Zstd(least=1000)), large) is large


class Counted:
    """A codec of run lengths of one byte that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0
        self.codec = Codec(self.compress, lambda data, size: bytes(data) * size, 0.75)

    def compress(self, data: np.ndarray) -> bytes:
        self.calls += 1
        return bytes(data[:1]) if (data == data[0]).all() else bytes(data)


def test_after_failures_it_is_tried_ever_more_rarely_and_a_success_ends_that() -> None:
    counted = Counted()
    coder = coder_of(counted.codec, True, 128)
    noise, flat = (
        Content(None, np.arange(1, 300)[:, None] * 0x0123456789ABCDEF),
        Content(None, np.zeros((300, 1))),
    )
    state: State = {}
    tried = []
    for message in range(400):
        before = counted.calls
        state, out = coder.encode(state, noise, about())
        assert out is noise
        if counted.calls > before:
            tried.append(message)
    gaps = np.diff(tried) - 1
    assert gaps.tolist() == [2, 4, 8, 16, 32, 64, 64, 64, 64, 64]
    assert max(gaps) == MOST_SKIPPED
    while not (encoded := coder.encode(state, flat, about()))[1].note:
        state = encoded[0]
    assert encoded[0] == {}
    assert same(coder.decode(encoded[1]), flat)


def test_what_a_codec_cannot_take_at_once_is_sent_unchanged() -> None:
    coder = coder_of(Counted().codec._replace(most=1000), True, 128)
    given = Content(None, np.zeros((200, 1)))
    assert coder.encode({}, given, about())[1] is given


# -- what is damaged -----------------------------------------------------------------------------------


@settings(max_examples=100)
@given(st.data(), coders, contents())
def test_damage_is_refused_or_read_in_the_right_shape(
    data: st.DataObject, coder: Coder, given: Content
) -> None:
    whole = sent(coder, given)
    if whole.note:
        survives(coder, given, whole, damaged(data.draw, whole))


@given(coders, st.binary(min_size=1, max_size=100), st.binary(max_size=300))
def test_noise_is_refused(coder: Coder, note: bytes, payload: bytes) -> None:
    with pytest.raises(FilterError):
        coder.decode(Content(None, np.frombuffer(payload, np.uint8), note))


@pytest.mark.parametrize("name", ["zstd", "lz4"])
def test_a_truncated_payload_is_refused_at_every_length(name: str) -> None:
    coder = CODERS[name]
    whole = sent(coder, content(3, DTYPES[0], 500, 1, "few", "dense"))
    assert whole.note
    for size in range(len(whole.values)):
        with pytest.raises(FilterError):
            coder.decode(whole._replace(values=whole.values[:size]))
    for size in range(1, len(whole.note)):
        with pytest.raises(FilterError):
            coder.decode(whole._replace(note=whole.note[:size]))


@pytest.mark.parametrize("name", ["zstd", "lz4"])
@pytest.mark.parametrize("rows", [1000, 10**6, 2**40, 2**47, 2**62, -1])
def test_a_note_of_more_rows_than_there_are_takes_no_memory(name: str, rows: int) -> None:
    coder = CODERS[name]
    whole = sent(coder, Content(None, np.zeros((900, 1))))
    fields = list(compress._NOTE.unpack(whole.note))
    assert fields[5] == 900
    fields[5] = rows
    with pytest.raises(FilterError):
        coder.decode(whole._replace(note=compress._NOTE.pack(*fields)))


def test_keys_that_are_not_sorted_are_refused() -> None:
    coder = CODERS["zstd"]
    falling = Content(np.arange(900, 0, -1, dtype=np.uint64), np.zeros((900, 1)))
    with pytest.raises(FilterError, match="not sorted"):
        coder.decode(sent(coder, falling))


def test_the_other_library_s_bytes_are_refused() -> None:
    given = Content(None, np.zeros((900, 1)))
    for one, other in (("zstd", "lz4"), ("lz4", "zstd")):
        with pytest.raises(FilterError, match=r"not a complete|cannot decompress"):
            CODERS[other].decode(sent(CODERS[one], given))


def test_rows_or_keys_in_addition_to_a_note_are_refused() -> None:
    coder = CODERS["zstd"]
    whole = sent(coder, Content(None, np.zeros((900, 1))))
    for wrong in (
        whole._replace(values=np.zeros((9, 1))),
        whole._replace(keys=np.arange(9, dtype=np.uint64)),
    ):
        with pytest.raises(FilterError, match=r"payload is .*, expected 1-d uint8"):
            coder.decode(wrong)


# -- settings and libraries ----------------------------------------------------------------------------


def test_settings_are_checked() -> None:
    assert typed.build(Zstd, {"level": 3, "shuffle": False}) == Zstd(3, shuffle=False)
    for table in ({"level": 23}, {"level": -8}, {"least": -1}):
        with pytest.raises(typed.InvalidValue, match="must be at"):
            typed.build(Zstd, table)
    with pytest.raises(typed.InvalidValue, match="acceleration must be at least 1"):
        typed.build(Lz4, {"acceleration": 0})


def test_a_library_that_is_missing_is_named() -> None:
    assert known["zstd"].lacks() == known["lz4"].lacks() == ""
    assert compress._needs("mpips_missing")() == "the package mpips_missing: pip install mpips_missing"


def test_libraries_are_imported_when_they_are_needed() -> None:
    code = (
        "import sys; from mpips.filters.compress import zstd, Zstd, lz4, Lz4; zstd(Zstd()), lz4(Lz4());"
        "print(sorted({'zstandard', 'lz4'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
