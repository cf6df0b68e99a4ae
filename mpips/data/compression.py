"""Opens data files and decompresses them, with bounded memory, whatever they contain.

The compression is detected by the first bytes; a name with another compression's ending is an error. A compressed file
of some kB may expand to terabytes, or require a window of gigabytes: bytes are decompressed on demand, and a window
above `LARGEST_WINDOW` is refused. Concatenated streams are one file, as for their own tools; zero bytes between and
after them are padding.
"""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
import os
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, Any, BinaryIO, Protocol

from mpips.errors import DataError
from mpips.files.safe_open import open_regular

MAGIC = {"gz": b"\x1f\x8b", "xz": b"\xfd7zXZ\x00", "zst": b"\x28\xb5\x2f\xfd", "bz2": b"BZh"}
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
LARGEST_WINDOW = 1 << 28
"""Bytes that decompression may need: twice those of `zstd --long` and four times those of `xz -9`."""
_PIECE = 1 << 16
_SKIPPABLE = b"\x2a\x4d\x18"
"""The start of a Zstandard frame without data, after a byte 0x50 to 0x5f."""
_ZSTD_BLOCK = 1 << 17
"""The maximum decompressed size of a Zstandard block, bytes."""


def open_data(path: str) -> BinaryIO:
    """Open a data file for reading; raise `DataError` if it is missing, unreadable or not a regular file."""
    try:
        return open_regular(path, follow=True)
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder, not a data file; name its files, as in {path}/*.svm") from None
    # ValueError: a name with a NUL byte.
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def empty_file_error(path: str) -> DataError:
    """Make the error for a file that is empty, perhaps only after decompression."""
    return DataError(f"{path}: is empty; a data file holds at least one example")


def magic(path: str) -> bytes:
    """Return a file's first eight bytes, or raise `DataError` if it cannot be read or is empty."""
    with open_data(path) as file:
        return _head(path, file)


def _head(path: str, file: BinaryIO) -> bytes:
    try:
        head = file.read(8)
        file.seek(0)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not head:
        raise empty_file_error(path)
    return head


def name_without_compression(path: str) -> str:
    """Return the path without the ending that names its compression."""
    root, ending = os.path.splitext(path)
    return root if ending[1:].lower() in MAGIC else path


def compression_of(path: str, file: BinaryIO) -> str:
    """Return the compression of an open file: "gz", "xz", "zst", "bz2" or "" for plain."""
    head = _head(path, file)
    found = next((name for name, start in MAGIC.items() if head.startswith(start)), "")
    if _is_skippable(head):
        found = "zst"
    if found == "bz2" and head[4:6] not in (b"1A", b"\x17r"):
        # A text that starts with these letters.
        found = ""
    named = os.path.splitext(path)[1][1:].lower()
    if named in MAGIC and found != named:
        detected = found or "not compressed, or damaged"
        raise DataError(f"{path}: is named .{named} but is {detected}; check the file")
    return found


def zstd_module(path: str) -> Any:
    """Return a module for Zstandard: Python's own (3.14) or the `zstandard` package."""
    for name in ("compression.zstd", "zstandard"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise DataError(f"{path}: reading and writing .zst needs a library; pip install zstandard")


# --- Reading ---------------------------------------------------------------------------------------------------------


class Decompressor(Protocol):
    """One stream of a compressed file, as the decompressors of `bz2` and `lzma` are."""

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""

    @property
    def needs_input(self) -> bool:
        """Whether it needs more input."""

    @property
    def unused_data(self) -> bytes:
        """The bytes after the stream's end."""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        """Take compressed bytes, and return at most `max_length` decompressed ones."""


class _Gzip:
    """One member of a gzip file."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(31)
        self._full = False

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def needs_input(self) -> bool:
        return not self._full and not self._stream.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        out = self._stream.decompress(self._stream.unconsumed_tail + data, max_length)
        self._full = len(out) == max_length
        return out


class _ZstandardFrame:
    """One frame of Zstandard by the `zstandard` package, which neither bounds its output nor detects a truncated frame.

    So this class parses the frame, and passes it to the package block by block.
    """

    def __init__(self, library: Any) -> None:
        self._error = library.ZstdError
        self._frame = library.ZstdDecompressor(max_window_size=LARGEST_WINDOW).decompressobj()
        self._input, self._at = b"", 0
        self._output = memoryview(b"")
        self._parser = self._parts()
        self._wanted: int | None = next(self._parser)

    @property
    def eof(self) -> bool:
        return self._wanted is None and not self._output

    @property
    def needs_input(self) -> bool:
        return not self._output and self._wanted is not None and self._at + self._wanted > len(self._input)

    @property
    def unused_data(self) -> bytes:
        return self._input[self._at :]

    def decompress(self, data: bytes, max_length: int) -> bytes:
        if data:
            self._input, self._at = self._input[self._at :] + data, 0
        while not self._output and self._wanted is not None and self._at + self._wanted <= len(self._input):
            part = self._input[self._at : self._at + self._wanted]
            self._at += self._wanted
            try:
                self._wanted = self._parser.send(part)
            except StopIteration:
                self._wanted = None
        out, self._output = bytes(self._output[:max_length]), self._output[max_length:]
        return out

    def _parts(self) -> Generator[int, bytes, None]:
        """Request the frame's parts by their sizes, and pass them to the package."""
        start = yield 4
        if _is_skippable(start):
            left = int.from_bytes((yield 4), "little")
            while left:
                left -= len((yield min(left, _PIECE)))
            return
        if start != MAGIC["zst"]:
            raise self._error("the following bytes are not a Zstandard frame")
        about = yield 1
        whole, dictionary, size = about[0] >> 5 & 1, about[0] & 3, about[0] >> 6
        rest = yield (1 - whole) + (0, 1, 2, 4)[dictionary] + (whole, 2, 4, 8)[size]
        self._decompress_part(start + about + rest)
        last = 0
        while not last:
            head = yield 3
            number = int.from_bytes(head, "little")
            last, repeats, size = number & 1, number >> 1 & 3 == 1, number >> 3
            if size > _ZSTD_BLOCK:
                raise self._error("a block exceeds the maximum size")
            self._decompress_part(head + (yield 1 if repeats else size))
        if about[0] & 4:
            self._decompress_part((yield 4))

    def _decompress_part(self, part: bytes) -> None:
        self._output = memoryview(self._frame.decompress(part))


def _is_skippable(head: bytes) -> bool:
    return head[1:4] == _SKIPPABLE and head[0] >> 4 == 5


class Decompressed(io.RawIOBase):
    """The decompressed bytes of an open file; closing it leaves the file open.

    Raises EOFError for a truncated file, and the errors of the decompressors.
    """

    def __init__(self, file: BinaryIO, make: Callable[[], Decompressor]) -> None:
        self._file, self._make = file, make
        self._stream: Decompressor | None = make()
        self._input = b""

    def readable(self) -> bool:
        """Tell that this can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill some of `buffer`; return how many bytes, 0 at the end of the last stream."""
        while self._stream is not None or self._start_next_stream():
            stream, data = self._stream, b""
            assert stream is not None
            if stream.needs_input:
                data, self._input = self._input or self._file.read(_PIECE), b""
                if not data:
                    raise EOFError
            out = stream.decompress(data, len(buffer))
            if stream.eof:
                self._input, self._stream = stream.unused_data, None
            if out:
                buffer[: len(out)] = out
                return len(out)
        return 0

    def _start_next_stream(self) -> bool:
        """Start the next stream, if there is one."""
        while not (input_ := self._input.lstrip(b"\0")):
            self._input = self._file.read(_PIECE)
            if not self._input:
                return False
        self._input, self._stream = input_, self._make()
        return True


def decompressed(path: str, file: BinaryIO, kind: str) -> IO[bytes]:
    """Return the decompressed bytes of an open file of the compression `kind`, see `compression_of`."""
    make: Callable[[], Decompressor]
    if kind == "":
        return file
    if kind == "gz":
        make = _Gzip
    elif kind == "bz2":
        make = bz2.BZ2Decompressor
    elif kind == "xz":
        make = partial(lzma.LZMADecompressor, lzma.FORMAT_XZ, LARGEST_WINDOW)
    else:
        library = zstd_module(path)
        if library.__name__ == "zstandard":
            make = partial(_ZstandardFrame, library)
        else:
            most = {library.DecompressionParameter.window_log_max: LARGEST_WINDOW.bit_length() - 1}
            make = partial(library.ZstdDecompressor, options=most)
    return io.BufferedReader(Decompressed(file, make), _PIECE)


@contextmanager
def naming_errors(path: str, kind: str) -> Iterator[None]:
    """Convert errors of reading a compressed file to a `DataError` that names it."""
    try:
        yield
    except EOFError:
        raise DataError(f"{path}: is truncated: its {kind} data ends too early; copy it again") from None
    except (OSError, zlib.error, lzma.LZMAError, MemoryError) as error:
        raise DataError(f"{path}: cannot be decompressed or read: {_reason(error)}") from None
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
        raise DataError(f"{path}: is truncated or damaged: {_reason(error)}") from None


def _reason(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or "there is not enough memory"
    if "memory" in text.lower() and not isinstance(error, MemoryError):
        text += f" (more than {LARGEST_WINDOW >> 20} MiB; compress it with less, as by xz -9 or zstd -19)"
    return text


# --- Writing ---------------------------------------------------------------------------------------------------------


def compressing_into(path: str, file: IO[bytes], kind: str) -> IO[bytes]:
    """Return a file that compresses its bytes into an open one; closing it ends the stream, not the other."""
    if kind == "gz":
        return gzip.GzipFile("", "wb", 6, file)  # type: ignore[return-value]
    if kind == "xz":
        return lzma.LZMAFile(file, "wb")
    if kind == "bz2":
        return bz2.BZ2File(file, "wb")
    library = zstd_module(path)
    if library.__name__ == "zstandard":
        return library.ZstdCompressor().stream_writer(file, closefd=False)  # type: ignore[no-any-return]
    return library.ZstdFile(file, "wb")  # type: ignore[no-any-return]
