"""Streams of bytes from plain and compressed files (`packed`), cut into blocks of complete lines.

One block is read ahead in a thread: the decompressors release the GIL, so that decompression overlaps with parsing.
"""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import IO

from mpips.data.compression import (
    HDF5_MAGIC,
    MAGIC,
    compression_of,
    decompressed,
    empty_file_error,
    naming_errors,
    open_data,
)
from mpips.errors import DataError
from mpips.rundir.unpacked import shared

UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
BLOCK = 1 << 20
LONGEST_LINE = 1 << 27
"""Maximum size of a line, bytes: a file without newlines must not fill the memory."""
CHECKED_SIZE = 512
"""Size of compressed files, in bytes, up to which their content is checked for being empty."""
UNSUPPORTED = {
    **dict.fromkeys(UTF32, "is UTF-32 text; convert it, as by iconv -f UTF-32 -t UTF-8"),
    **dict.fromkeys(UTF16, "is UTF-16 text; convert it, as by iconv -f UTF-16 -t UTF-8"),
    **{
        start: f"is compressed twice, inside as {kind}; decompress it once"
        for kind, start in MAGIC.items()
        if kind != "bz2"
    },
    b"BZh91AY&SY": "is compressed twice, inside as bz2; decompress it once",
    HDF5_MAGIC: "is an HDF5 file where text was expected",
    b"PK\x03\x04": "is a zip archive; unpack it first",
    b"7z\xbc\xaf\x27\x1c": "is a 7z archive; unpack it first",
    b"\x1f\x9d": "was compressed by compress, which is not supported; decompress it first",
    b"\x04\x22\x4d\x18": "was compressed by lz4, which is not supported; decompress it first",
    b"PAR1": "is a Parquet file where text was expected",
}
"""The first bytes of files in formats that are not read."""


def chunks(path: str, size: int = BLOCK, readers: int = 1) -> Generator[bytes, None, None]:
    """Read a file's decompressed bytes in chunks of `size` (the last: the rest), one chunk ahead of the caller.

    `readers`: how many processes of the run read the file, and may share its decompression (`mpips.rundir.unpacked`).
    Raises `DataError` with the file's name if it is missing, not a regular file, truncated or damaged, or if it changes
    meanwhile.
    """
    with closing(open_data(path)) as whole:
        kind = compression_of(path, whole)
        before = os.fstat(whole.fileno())
        pool = ThreadPoolExecutor(1, "mpips-read")
        here = shared() if kind and readers > 1 else None
        file: IO[bytes] = whole
        try:
            with naming_errors(path, kind):
                alone = partial(decompressed, path, whole, kind)
                file = alone() if here is None else here.open(path, whole, chunks, alone)
                ahead = pool.submit(file.read, size)
                while chunk := ahead.result():
                    ahead = pool.submit(file.read, size)
                    yield chunk
                after = os.fstat(whole.fileno())
        finally:
            pool.shutdown(wait=True)
            if here is not None:
                file.close()
        same = before.st_size == after.st_size <= whole.tell()
        if not same or before.st_mtime_ns != after.st_mtime_ns:
            how = "" if same else f", from {before.st_size:,} to {after.st_size:,} bytes"
            raise DataError(
                f"{path}: has changed while it was read{how}; read a file that is not being written"
            )


def is_empty(path: str) -> bool:
    """Return whether a file is empty after decompression, except for a byte order mark; damaged files are not."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) or found.st_size > CHECKED_SIZE:
            return False
        if found.st_size == 0:
            return True
        with closing(chunks(path, CHECKED_SIZE)) as stream:
            return next(stream, b"") in (b"", codecs.BOM_UTF8)
    # The error is raised when the file is read.
    except (OSError, DataError):
        return False


def check_text(path: str, chunk: bytes) -> int:
    """Return the size of a byte order mark at a text's start; raise `DataError` if its first chunk is not of text."""
    for start, what in UNSUPPORTED.items():
        if chunk.startswith(start):
            raise DataError(f"{path}:1: {what}")
    if chunk[257:262] == b"ustar":
        raise DataError(f"{path}:1: is a tar archive; unpack it first")
    return len(codecs.BOM_UTF8) * chunk.startswith(codecs.BOM_UTF8)


def line_blocks(path: str, size: int = BLOCK, readers: int = 1) -> Generator[bytearray, None, None]:
    """Cut a file's text into blocks of complete lines, each ending in a newline, of about `size` bytes.

    `readers` as in `chunks`. Yields at least one. Raises `DataError`, also for an empty file.
    """
    pieces: list[bytes | memoryview] = []
    length = begin = bom = 0
    first = True
    with closing(chunks(path, size, readers)) as stream:
        for chunk in stream:
            if first:
                begin = bom = check_text(path, chunk)
                chunk = chunk[bom:]
                first = False
            cut = chunk.rfind(b"\n") + 1
            view = memoryview(chunk)
            if cut:
                yield bytearray().join([*pieces, view[:cut]])
                pieces, begin, length = [], begin + length + cut, 0
            pieces.append(view[cut:])
            length += len(chunk) - cut
            if length > LONGEST_LINE:
                pieces = []
                raise DataError(
                    f"{path}:{_lines(path, begin) + 1}: is longer than {LONGEST_LINE >> 20} MiB; is this a text file?"
                )
        if length:
            last = bytearray().join([*pieces, b"\n"])
            if begin == bom and b"\r" in last.rstrip():
                raise DataError(f"{path}:1: has lines that end in CR alone; convert it, as by tr '\\r' '\\n'")
            yield last
        elif begin == bom:
            raise empty_file_error(path)


def _lines(path: str, size: int) -> int:
    """Count the newlines in the first bytes of a file by reading them again; lines are not counted before an error."""
    with closing(chunks(path)) as stream:
        lines = 0
        for chunk in stream:
            lines += chunk[: max(size, 0)].count(b"\n")
            size -= len(chunk)
            if size <= 0:
                break
        return lines
