"""Lossless compression of keys and values by Zstandard or LZ4, where it pays (paper, section 4.2).

Sorted keys are delta-encoded. The differences and the values are split into byte planes (mpips/filters/planes.py);
bytes of an earlier filter are split into chunks instead. A sample of each plane or chunk decides: incompressible ones
are sent as they are, all others are compressed in one run. So of a list of float32, of which only sign and exponent
compress, the compressor processes a quarter of the bytes.

    the planes that are not compressed | one compressed run of all others

Content that shrinks by less than a sixth is sent unchanged, with an empty note; after k such failures in a row, the
next 2^k messages of its size (at most 64) are not tried. The libraries are imported at first use.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.errors import FilterError
from mpips.filters.filter import About, Coder, Content, State, filter_
from mpips.filters.planes import Bytes, Offsets, bytes_of, deltas, join, read_only, split, sums, words_of
from mpips.keys import KeyArray, ascend, from_pairs, is_wide, upper
from mpips.transport.message import CODES, DTYPES

PAYS = 0.82
"""The largest ratio of compressed to original bytes that is worth the split into planes."""
MOST_SKIPPED = 64
"""Messages that are skipped at most before compression is tried again."""
# Chunks that bytes are split into, and the smallest size of all but the last one.
CHUNKS, _CHUNK = 16, 2048
# Bytes from which on a sample predicts the compressed size.
_LARGE = 1 << 16
# Runs of a sample, spread evenly, and their length in numbers.
_RUNS, _RUN = 4, 512
_MOST_PLANES = 64
# The type code of values that are bytes.
_BYTES = 254
# Type of the values, columns that were split one by one (0: chunks) and whether keys have 128 bits, compressed key
# planes, compressed value planes, rows, width, keys (-1: none), size of the compressed run.
_NOTE = struct.Struct("<BBHIQqqqq")
_WIDE = 128
_MAGIC = 0x70636D31
_LZ4_MOST = 0x7E000000


@dataclass(frozen=True)
class Zstd:
    """Settings of Zstandard."""

    level: int = field(default=1, metadata={"at_least": -7, "at_most": 22})
    """1 is fastest, 19 compresses best; from 20 on it needs much memory."""
    shuffle: bool = True
    """Sort the bytes of numbers by their place before."""
    least: int = field(default=16384, metadata={"at_least": 0, "at_most": 2**62})
    """Bytes below which nothing is tried: what takes a short time to send takes longer to compress."""


@dataclass(frozen=True)
class Lz4:
    """Settings of LZ4."""

    acceleration: int = field(default=1, metadata={"at_least": 1, "at_most": 65537})
    """Larger is faster and compresses less."""
    shuffle: bool = True
    """Sort the bytes of numbers by their place before."""
    least: int = field(default=4096, metadata={"at_least": 0, "at_most": 2**62})
    """Bytes below which nothing is tried: what takes a short time to send takes longer to compress."""


class Codec(NamedTuple):
    """A compressor: `decompress(data, size)` returns exactly `size` bytes or raises FilterError.

    `share`: the largest ratio of compressed to original bytes of a plane; above, on a network of 1 Gbit/s, compression
    costs more time than it saves. `most`: bytes that it can compress at once.
    """

    compress: Callable[[Bytes], bytes]
    decompress: Callable[[Bytes, int], bytes]
    share: float
    most: int = 2**62


def _needs(package: str) -> Callable[[], str]:
    return lambda: "" if find_spec(package) else f"the package {package}: pip install {package}"


@filter_("zstd", Zstd, _needs("zstandard"))
def zstd(settings: Zstd) -> Coder:
    """Return the coder that compresses by Zstandard. Its state is that of `coder_of`."""
    return coder_of(_zstd(settings), settings.shuffle, settings.least)


@filter_("lz4", Lz4, _needs("lz4"))
def lz4(settings: Lz4) -> Coder:
    """Return the coder that compresses by LZ4: it finds repetitions, but does not use skewed byte frequencies."""
    return coder_of(_lz4(settings), settings.shuffle, settings.least)


def _zstd(settings: Zstd) -> Codec:
    # A context serves one thread, and is expensive to create.
    context = threading.local()

    def compress(data: Bytes) -> bytes:
        if not hasattr(context, "compressor"):
            library = import_module("zstandard")
            choice: dict[str, Any] = {"level": settings.level}
            if settings.shuffle and settings.level == 1:
                # Planes hold few long repeats, and many short ones by chance that only cost time. With so small
                # a table most of these are not found: twice as fast, and smaller (runs are still found).
                parameters = library.ZstdCompressionParameters.from_level(
                    1, hash_log=6, write_content_size=True
                )
                choice = {"compression_params": parameters}
            context.compressor = library.ZstdCompressor(**choice)
        return bytes(context.compressor.compress(data))

    def decompress(data: Bytes, size: int) -> bytes:
        library = import_module("zstandard")
        if not hasattr(context, "decompressor"):
            context.decompressor = library.ZstdDecompressor()
        try:
            announced = library.frame_content_size(data)
            if announced != size:
                raise FilterError(f"Zstandard frame has {announced} bytes, expected {size}")
            return bytes(context.decompressor.decompress(data, max_output_size=size, allow_extra_data=False))
        except library.ZstdError as error:
            raise FilterError(f"not a complete Zstandard frame: {error}") from error

    return Codec(compress, decompress, 0.75)


def _lz4(settings: Lz4) -> Codec:
    def compress(data: Bytes) -> bytes:
        library = import_module("lz4.block")
        mode = {"mode": "fast", "acceleration": settings.acceleration, "store_size": False}
        return bytes(library.compress(data, **mode))

    def decompress(data: Bytes, size: int) -> bytes:
        library = import_module("lz4.block")
        # The format's best ratio is 255.
        if size > min(255 * data.nbytes, _LZ4_MOST):
            raise FilterError(f"{data.nbytes} bytes of LZ4 cannot decompress to {size}")
        try:
            return bytes(library.decompress(data, uncompressed_size=size))
        except library.LZ4BlockError as error:
            raise FilterError(f"not a complete LZ4 block: {error}") from error

    return Codec(compress, decompress, 0.5, _LZ4_MOST)


def coder_of(codec: Codec, shuffle: bool, least: int) -> Coder:
    """Return the coder that compresses by a codec.

    While contents of a size (to a factor of 2) do not compress, its state has "tries-B", B the bits of that size,
    i8[2]: failures in a row, and how many such messages are still to be skipped.
    """

    def encode(state: State, content: Content, about: About) -> tuple[State, Content]:
        if content.nbytes < least:
            return state, content
        tries = f"tries-{content.nbytes.bit_length()}"
        failures, wait = state[tries].tolist() if tries in state else (0, 0)
        if wait:
            return state | {tries: np.array([failures, wait - 1])}, content
        packed = pack(codec, shuffle, content)
        if packed is not None:
            return {name: array for name, array in state.items() if name != tries}, packed
        failures += 1
        return state | {tries: np.array([failures, min(2**failures, MOST_SKIPPED)])}, content

    def decode(content: Content) -> Content:
        return unpack(codec, content) if content.note else content

    return Coder(encode, decode)


class Shape(NamedTuple):
    """The shape of a message's content, which determines its planes or chunks: first those of keys, then of values."""

    dtype: np.dtype[Any]
    rows: int
    width: int
    keys: int
    """Number of keys, -1 without a list."""
    columns: int
    """Columns that are split one by one, 1 for all together; 0: the values' bytes are split into chunks."""
    wide: bool = False
    """Whether keys have 128 bits: first the planes of all upper halves, then of all lower ones."""

    @property
    def value_bytes(self) -> int:
        """Bytes of the values."""
        return self.rows * self.width * self.dtype.itemsize

    def lengths(self) -> tuple[list[int], list[int]]:
        """List the sizes of the planes of keys, and of the planes or chunks of values."""
        of_keys = [self.keys] * (16 if self.wide else 8) if self.keys >= 0 else []
        if self.columns:
            of_values = [self.rows * self.width // self.columns] * (self.columns * self.dtype.itemsize)
        else:
            size = self.value_bytes
            each = max(-(-size // CHUNKS), _CHUNK)
            of_values = [min(each, size - at) for at in range(0, size, each)]
        return of_keys, of_values


def shape_of(content: Content, shuffle: bool) -> Shape:
    """Return the shape of a message's content."""
    values = content.values
    rows, width = values.shape if values.ndim == 2 else (len(values), 1)
    columns = 0
    if shuffle and values.dtype != np.uint8:
        columns = width if 1 <= width * values.itemsize <= _MOST_PLANES else 1
    keys = content.keys
    wide = keys is not None and is_wide(keys)
    return Shape(values.dtype, rows, width, -1 if keys is None else len(keys), columns, wide)


class Piece(NamedTuple):
    """Words u4 or u8, every `step`-th from `first` on, to be split into planes; or u1, a chunk, which is not split."""

    words: NDArray[Any]
    first: int = 0
    step: int = 1

    def __len__(self) -> int:
        return -(-(len(self.words) - self.first) // self.step)

    def write(self, places: Offsets, body: Bytes) -> None:
        """Write its planes into a buffer at the offsets `places`."""
        if self.words.itemsize == 1:
            body[places[0] : places[0] + len(self.words)] = self.words
        else:
            split(self.words, self.first, self.step, places, body)

    def sample(self) -> NDArray[np.uint8]:
        """Return the planes [itemsize, n] of a sample of its words."""
        words, count, size = self.words, len(self), self.words.itemsize
        if count > _RUNS * _RUN:
            starts = [run * (count - _RUN) // (_RUNS - 1) for run in range(_RUNS)]
            words = words[self.first :: self.step]
            words = np.concatenate([words[start : start + _RUN] for start in starts])
            piece, count = Piece(read_only(words)), len(words)
        else:
            piece = self
        planes = np.empty((size, count), np.uint8)
        piece.write(read_only(np.arange(size) * count), planes.reshape(-1))
        return planes


def _pieces(content: Content, shape: Shape) -> list[Piece]:
    pieces = []
    if content.keys is not None:
        steps = np.empty(len(content.keys), np.uint64)
        deltas(read_only(upper(content.keys)), steps)
        pieces.append(Piece(read_only(steps)))
        if shape.wide:
            pieces.append(Piece(read_only(content.keys["low"])))
    if shape.columns:
        words = words_of(content.values)
        return pieces + [Piece(words, c, shape.columns) for c in range(shape.columns)]
    flat, at = bytes_of(content.values), 0
    for length in shape.lengths()[1]:
        pieces.append(Piece(flat[at : at + length]))
        at += length
    return pieces


def _choose(codec: Codec, pieces: list[Piece]) -> tuple[list[bool], float]:
    """Return for each plane, by a sample, whether to compress it; and the expected bytes of all planes."""
    chosen = []
    expected = 0.0
    for piece in pieces:
        for plane in piece.sample():
            share = len(codec.compress(plane)) / max(len(plane), 1)
            chosen.append(len(plane) > 0 and share <= codec.share)
            expected += len(piece) * (share if chosen[-1] else 1)
    return chosen, expected


def _offsets(lengths: list[int], chosen: list[bool]) -> tuple[list[int], int, int]:
    """Return the offset of each plane within the chosen or the other planes, and the bytes of both."""
    ends = [0, 0]
    offsets = []
    for length, is_chosen in zip(lengths, chosen, strict=True):
        offsets.append(ends[is_chosen])
        ends[is_chosen] += length
    return offsets, ends[0], ends[1]


def pack(codec: Codec, shuffle: bool, content: Content) -> Content | None:
    """Compress keys and values into u1[bytes] and a note; None if it does not pay."""
    shape = shape_of(content, shuffle)
    pieces = _pieces(content, shape)
    of_keys, of_values = shape.lengths()
    chosen, expected = _choose(codec, pieces)
    if content.nbytes >= _LARGE and expected > PAYS * content.nbytes:
        return None
    offsets, raw, size = _offsets([*of_keys, *of_values], chosen)
    if not 0 < size <= codec.most:
        return None
    places = np.array([at + raw * is_chosen for at, is_chosen in zip(offsets, chosen, strict=True)], np.int64)
    body = np.empty(raw + size, np.uint8)
    at = 0
    for piece in pieces:
        piece.write(read_only(places[at : at + piece.words.itemsize]), body)
        at += piece.words.itemsize
    run = codec.compress(body[raw:])
    if raw + len(run) + _NOTE.size > PAYS * content.nbytes:
        return None
    body[raw : raw + len(run)] = np.frombuffer(run, np.uint8)
    bits = sum(is_chosen << bit for bit, is_chosen in enumerate(chosen))
    note = _NOTE.pack(
        CODES.get(shape.dtype, _BYTES), shape.columns | (_WIDE if shape.wide else 0),
        bits & ((1 << len(of_keys)) - 1), _MAGIC,
        bits >> len(of_keys), shape.rows, shape.width, shape.keys, len(run),
    )  # fmt: skip
    return Content(None, body[: raw + len(run)], note)


def _read_note(note: bytes) -> tuple[Shape, list[bool], int]:
    """Decode a note: the shape, which planes are compressed, and the size of the compressed run."""
    if len(note) != _NOTE.size:
        raise FilterError(f"note has {len(note)} bytes, expected {_NOTE.size}")
    code, columns, key_bits, magic, value_bits, rows, width, keys, size = _NOTE.unpack(note)
    wide, columns = bool(columns & _WIDE), columns & ~_WIDE
    if magic != _MAGIC or (code != _BYTES and code >= len(DTYPES)):
        raise FilterError("note is of another filter or version")
    dtype = np.dtype(np.uint8) if code == _BYTES else DTYPES[code]
    shape = Shape(dtype, rows, width, keys, columns, wide)
    fits = columns in (0, 1, width) and columns * dtype.itemsize <= _MOST_PLANES
    if min(rows, width, size) < 0 or keys < -1 or not fits or (code == _BYTES and (columns or width != 1)):
        raise FilterError(
            f"note is invalid: {rows} rows of {width} {dtype} in {columns} columns, and {keys} keys"
        )
    if max(rows, 1) * max(width, 1) >= 2**48 or keys >= 2**48:
        raise FilterError(f"note says {rows} rows of {width} {dtype}, and {keys} keys: too many")
    of_keys, of_values = shape.lengths()
    if key_bits >> len(of_keys) or value_bits >> len(of_values):
        raise FilterError("note names more planes than there are")
    bits = key_bits | value_bits << len(of_keys)
    return shape, [bool(bits >> bit & 1) for bit in range(len(of_keys) + len(of_values))], size


def unpack(codec: Codec, content: Content) -> Content:
    """Undo `pack`.

    Raises:
        FilterError: note and payload are not valid outputs of it.
    """
    payload = content.values
    if payload.dtype != np.uint8 or payload.ndim != 1 or content.keys is not None:
        keys = "" if content.keys is None else " with keys"
        raise FilterError(
            f"payload is {payload.ndim}-d {payload.dtype}{keys}, expected 1-d uint8 without keys"
        )
    shape, chosen, packed = _read_note(content.note)
    of_keys, of_values = shape.lengths()
    offsets, raw, size = _offsets([*of_keys, *of_values], chosen)
    if raw + packed != len(payload) or (size == 0) != (packed == 0):
        raise FilterError(f"payload has {len(payload)} bytes, expected {raw + packed}")
    try:
        run = codec.decompress(payload[raw:], size) if size else b""
        if len(run) != size:
            raise FilterError(f"{len(run)} decompressed bytes, expected {size}")
        places = np.array(
            [~at if is_chosen else at for at, is_chosen in zip(offsets, chosen, strict=True)], np.int64
        )
        return _assemble(shape, read_only(payload), np.frombuffer(run, np.uint8), read_only(places))
    except (MemoryError, OverflowError) as error:
        raise FilterError(f"note says {shape.rows} rows and {shape.keys} keys: not enough memory") from error


def _assemble(shape: Shape, raw: Bytes, run: Bytes, places: Offsets) -> Content:
    """Assemble keys and values from planes at offset p of `raw`, or at ~p of `run` if p < 0, for p in `places`."""
    keys: KeyArray | None = None
    first = 0
    if shape.keys >= 0:
        steps, parts = np.empty(shape.keys, np.uint64), np.empty(shape.keys, np.uint64)
        join(raw, run, places[:8], 0, 1, steps)
        rises, keys, first = sums(read_only(steps), parts), parts, 8
        if shape.wide:
            join(raw, run, places[8:16], 0, 1, steps)
            keys, first = from_pairs(np.stack([parts, steps], axis=1)), 16
            rises = ascend(keys)
        if not rises:
            raise FilterError("the keys are not sorted")
    values = np.empty((shape.rows, shape.width), shape.dtype)
    flat, size = values.reshape(-1), shape.dtype.itemsize
    if shape.columns:
        words = flat.view(np.uint32 if size == 4 else np.uint64)
        for c in range(shape.columns):
            join(raw, run, places[first + c * size :], c, shape.columns, words)
    else:
        out = flat.view(np.uint8)
        at = 0
        for place, length in zip(places[first:].tolist(), shape.lengths()[1], strict=True):
            source, start = (raw, place) if place >= 0 else (run, ~place)
            out[at : at + length] = source[start : start + length]
            at += length
    return Content(keys, values if shape.dtype != np.uint8 else flat)
