"""The cache file of one module's kernels: their machine code, and the source files that it depends on.

Numba's own cache has two files for each kernel, whose contents are objects of numba. A rank that loads kernels reads
one file for each module instead, `NAME-KEY.kernels`, of numbers and bytes only. KEY identifies what the file depends
on: this format, this Python, numba, and the processor.

The first part of the file, which is read when the module is imported, lists the source files of the module's kernels
with their times and sizes before the kernels were compiled. The list is not computed again when kernels are loaded,
since it can only change if one of its files does: `mpips.jit.compiler.kernel_sources` computes it from the text of
the module and from the values of names that the module imports, and lists each file that defines or re-exports such a
value.

The machine code follows. It is read at a kernel's first call, and each part has a digest of its own.
"""

from __future__ import annotations

import errno
import hashlib
import marshal
import os
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from mpips.files.safe_open import open_regular, replacing
from mpips.jit import kernel_cache, kernel_values
from mpips.jit.code_image import Image

DIGEST = 16
_FORMAT = b"2"
_HEAD = struct.Struct(f"<Q{DIGEST}s")
_LARGEST = 1 << 28
_PROCESSOR = (b"vendor_id", b"cpu family", b"model", b"model name", b"stepping", b"flags")

Stamps = tuple[tuple[str, int, int], ...]
"""(path, time of the last change in ns, bytes) of each source file; paths from the folder of the kernels' own.

So they name the copies if a folder is copied with its cache.
"""
Name = tuple[str, int]
"""A kernel: its qualified name, with a digest of its values for one of a program, and its first line."""
Parameter = str | tuple[str, int, str, bool]
"""The type of a parameter: the name of a dtype, or an array's (dtype, ndim, layout, read-only)."""
Parameters = tuple[Parameter, ...]


class Entry(NamedTuple):
    """Where the machine code for one signature is."""

    parameters: Parameters
    offset: int
    size: int
    digest: bytes


class Index(NamedTuple):
    """The first part of a file."""

    stamps: Stamps
    kernels: Mapping[Name, Mapping[str, Entry]]
    """By kernel and signature."""


def digest(content: bytes | memoryview) -> bytes:
    """Return the digest of a file's bytes, to detect damage."""
    return hashlib.blake2b(content, digest_size=DIGEST).digest()


def path_of(folder: Path, source: str, key: str) -> Path:
    """Return the path of the file for the kernels of a source file."""
    return folder / f"{Path(source).stem}-{key}.kernels"


@cache
def key(numba: str) -> str:
    """Return KEY, with which the names of this process's files end; "" if the processor is not known.

    Args:
        numba: numba's description of its version.
    """
    processor = _processor()
    if not processor:
        return ""
    about = (_FORMAT, sys.implementation.cache_tag.encode(), sys.abiflags.encode(), numba.encode(), processor)
    return hashlib.blake2b(b"\0".join(about), digest_size=6).hexdigest()


def _processor() -> bytes:
    """Return what Linux says of the processor's kind and its features, on which the compiler's choices depend."""
    with suppress(OSError), open("/proc/cpuinfo", "rb", buffering=0) as file:
        # Of the first of many processors.
        lines = file.read(1 << 14).partition(b"\n\n")[0].splitlines()
        found = dict(line.split(b":", 1) for line in lines if b":" in line)
        about = {name.strip(): value.strip() for name, value in found.items()}
        kind = [about.get(name, b"") for name in _PROCESSOR]
        return b"\n".join(kind) if all(kind) else b""
    return b""


def stamps(folder: str, files: Iterable[str]) -> Stamps:
    """Return the state of source files; those that are missing are left out.

    Args:
        folder: the folder of the kernels' own source file.
        files: their paths, from that folder if they are relative.
    """
    found = []
    for file in sorted({os.path.relpath(os.path.join(folder, each), folder) for each in files}):
        with suppress(OSError):
            about = os.stat(os.path.join(folder, file))
            found.append((file, about.st_mtime_ns, about.st_size))
    return tuple(found)


_read: dict[Path, Index | None] = {}


def current(path: Path, folder: str) -> Index | None:
    """Return the index in a file if it is valid, and no source file has changed since; each file is read once.

    Args:
        path: the file.
        folder: the folder of the kernels' own source file.
    """
    if path not in _read:
        _read[path] = _current(path, folder)
    return _read[path]


def name_of(function: Callable[..., Any]) -> Name:
    """Return the name of a kernel among those of its file: it has other names with other values."""
    digest = kernel_values.digest_of(function)
    return function.__qualname__ + (digest and f" {digest}"), function.__code__.co_firstlineno


def folder_of(function: Callable[..., Any]) -> str:
    """Return the folder of a kernel's own source file."""
    return os.path.dirname(function.__code__.co_filename)


def entries(path: Path, function: Callable[..., Any], signatures: Sequence[str]) -> dict[str, Entry]:
    """Return where a kernel's machine code is, by signature; empty if it is not in the file for all of them."""
    index = current(path, folder_of(function))
    found = {} if index is None else index.kernels.get(name_of(function), {})
    return {each: found[each] for each in signatures} if found.keys() >= set(signatures) else {}


def _current(path: Path, folder: str) -> Index | None:
    with suppress(OSError), open_own_file(path) as file:
        found = _index(file)
        if found is not None and stamps(folder, (each for each, _, _ in found.stamps)) == found.stamps:
            return found
    return None


@contextmanager
def open_own_file(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file of this user or of root; raise OSError if it is anything else."""
    with open_regular(path, follow=False) as file:
        if not kernel_cache.is_own_file(path):
            raise OSError(errno.EPERM, "belongs to another user", str(path))
        yield file


def _index(file: BinaryIO) -> Index | None:
    """Read the first part of a file; None if it is damaged."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    size, expected = _HEAD.unpack(head)
    content = file.read(size) if size < _LARGEST else b""
    if len(content) != size or digest(content) != expected:
        return None
    known, kernels = marshal.loads(content)
    return Index(
        known,
        {name: {each: Entry(*entry) for each, entry in entries.items()} for name, entries in kernels.items()},
    )


def code(path: Path, entry: Entry) -> Image:
    """Read machine code.

    Raises:
        OSError: the file cannot be read, or is damaged.
    """
    with open_own_file(path) as file:
        size, _ = _HEAD.unpack(file.read(_HEAD.size).ljust(_HEAD.size))
        file.seek(_HEAD.size + size + entry.offset)
        content = file.read(entry.size)
    if len(content) != entry.size or digest(content) != entry.digest:
        raise OSError(errno.EIO, "is damaged", str(path))
    return Image(*marshal.loads(content))


def add(
    path: Path, known: Stamps, function: Callable[..., Any], images: Mapping[str, tuple[Parameters, Image]]
) -> None:
    """Add a kernel to a file, or replace it; kernels in the file that are no longer valid are dropped.

    Args:
        path: the file.
        known: the state of the kernel's source files before it was compiled.
        function: what the kernel is compiled from.
        images: its machine code, by signature.

    Raises:
        OSError: the file cannot be written.
    """
    kernels: dict[Name, dict[str, tuple[Any, ...]]] = {}
    parts: list[bytes] = []
    before = _current(path, folder_of(function))
    files = {file: stamp for file, *stamp in known}
    if before is not None and all(files.get(file, stamp) == stamp for file, *stamp in before.stamps):
        known = tuple(sorted({*known, *before.stamps}))
        own, line = name_of(function)
        for other, entries in before.kernels.items():
            if other[1] == line and other[0].partition(" ")[0] == own.partition(" ")[0]:
                # It had other values.
                continue
            with suppress(OSError):
                kernels[other] = {
                    each: _append(parts, entry.parameters, code(path, entry))
                    for each, entry in entries.items()
                }
    kernels[name_of(function)] = {each: _append(parts, *image) for each, image in images.items()}
    content = marshal.dumps((known, kernels))
    if not kernel_cache.is_own_file(path):
        # Numba does the same with anything in the place of its files.
        with suppress(OSError):
            os.unlink(path)
    with replacing(path, durable=False) as file:
        file.write(_HEAD.pack(len(content), digest(content)) + content + b"".join(parts))
    _read.pop(path, None)


def _append(parts: list[bytes], parameters: Parameters, image: Image) -> tuple[Any, ...]:
    offset = sum(map(len, parts))
    parts.append(marshal.dumps(tuple(image)))
    return parameters, offset, len(parts[-1]), digest(parts[-1])


def forget(path: Path) -> None:
    """Remove a file that is damaged, and its index from memory."""
    _read.pop(path, None)
    with suppress(OSError):
        os.unlink(path)
