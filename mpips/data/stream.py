"""Streams of bytes out of plain and compressed files, cut into blocks of whole lines.

What a file is packed with is told by its first bytes; a name that promises otherwise is an error. One block
is read ahead in a thread: the decompressors release the GIL, so that unpacking overlaps with parsing.
"""

from __future__ import annotations

import bz2
import gzip
import importlib
import io
import lzma
import os
import zlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import IO, Any

from mpips.errors import DataError

MAGIC = {"gz": b"\x1f\x8b", "xz": b"\xfd7zXZ\x00", "zst": b"\x28\xb5\x2f\xfd", "bz2": b"BZh"}
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
BLOCK = 1 << 20
LONGEST_LINE = 1 << 30


def unpacked_name(path: str) -> str:
    """Return the path without the ending that names its compression."""
    root, ending = os.path.splitext(path)
    return root if ending[1:].lower() in MAGIC else path


def magic(path: str) -> bytes:
    """Return a file's first eight bytes, or raise `DataError` if it cannot be read or is empty."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder, not a data file; name its files, as in {path}/*.svm") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not head:
        raise DataError(f"{path}: is empty; a data file holds at least one example")
    return head


def packing(path: str) -> str:
    """Tell how a file is compressed: "gz", "xz", "zst", "bz2" or "" for plain."""
    head = magic(path)
    found = next((name for name, start in MAGIC.items() if head.startswith(start)), "")
    promised = os.path.splitext(path)[1][1:].lower()
    if promised in MAGIC and found != promised:
        is_found = found or "not compressed, or damaged"
        raise DataError(f"{path}: is named .{promised} but is {is_found}; check the file")
    return found


def zstd(path: str) -> Any:
    """Return a module with `open` for Zstandard files: Python's own (3.14) or the `zstandard` package."""
    for name in ("compression.zstd", "zstandard"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise DataError(f"{path}: reading and writing .zst needs a library; pip install zstandard")


class ZstandardFrames(io.RawIOBase):
    """Unpack a file by the `zstandard` package, frame by frame.

    The package's own reader takes a file that was cut short for a shorter one; this one raises EOFError.
    """

    def __init__(self, path: str, library: Any) -> None:
        self._file = open(path, "rb")  # noqa: SIM115
        self._library = library
        self._frame: Any = None
        self._packed = b""
        self._held = memoryview(b"")

    def readable(self) -> bool:
        """Tell that this can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill some of `buffer`; return how many bytes, 0 at the end of the last frame."""
        while not self._held:
            packed = self._packed or self._file.read(1 << 16)
            if not packed and self._frame is None:
                return 0
            if not packed:
                raise EOFError
            if self._frame is None:
                self._frame = self._library.ZstdDecompressor().decompressobj()
            self._held = memoryview(self._frame.decompress(packed))
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._held))
        buffer[:size] = self._held[:size]
        self._held = self._held[size:]
        return size

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def open_packed(path: str, kind: str, mode: str) -> IO[bytes]:
    """Open a file for reading or writing bytes through a compression named as by `packing`."""
    if kind == "gz":
        return gzip.open(path, mode, **({"compresslevel": 6} if "w" in mode else {}))  # type: ignore
    if kind == "xz":
        return lzma.open(path, mode)  # type: ignore[return-value]
    if kind == "bz2":
        return bz2.open(path, mode)  # type: ignore
    if kind == "zst":
        library = zstd(path)
        if "r" in mode and library.__name__ == "zstandard":
            return io.BufferedReader(ZstandardFrames(path, library), 1 << 16)
        return library.open(path, mode)  # type: ignore[no-any-return]
    return open(path, mode)


def chunks(path: str, size: int = BLOCK) -> Generator[bytes, None, None]:
    """Read a file's unpacked bytes in chunks of at most `size`, one ahead of the caller.

    Raises `DataError`, naming the file, when it is missing, truncated or damaged.
    """
    kind = packing(path)
    pool = ThreadPoolExecutor(1, "mpips-read")
    try:
        with open_packed(path, kind, "rb") as file:
            ahead = pool.submit(file.read, size)
            try:
                while chunk := ahead.result():
                    ahead = pool.submit(file.read, size)
                    yield chunk
            finally:
                pool.shutdown(wait=True)
    except EOFError:
        raise DataError(f"{path}: is truncated: its {kind} data ends too early; copy it again") from None
    except (OSError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: cannot be unpacked or read: {error}") from None
    except Exception as error:
        if type(error).__name__ != "ZstdError":
            raise
        raise DataError(f"{path}: is truncated or damaged: {error}") from None
    finally:
        pool.shutdown(wait=True)


def line_blocks(path: str, size: int = BLOCK) -> Generator[bytearray, None, None]:
    """Cut a file's text into blocks of whole lines, each ending in a newline, of about `size` bytes."""
    held: list[bytes | memoryview] = []
    length = 0
    first = True
    with closing(chunks(path, size)) as stream:
        for chunk in stream:
            if first:
                chunk = chunk.removeprefix(b"\xef\xbb\xbf")
                first = False
            cut = chunk.rfind(b"\n") + 1
            view = memoryview(chunk)
            if cut:
                yield bytearray().join([*held, view[:cut]])
                held, length = [], 0
            held.append(view[cut:])
            length += len(chunk) - cut
            if length > LONGEST_LINE:
                raise DataError(
                    f"{path}: a line is longer than {LONGEST_LINE >> 20} MiB; is this a text file?"
                )
        if length:
            yield bytearray().join([*held, b"\n"])
