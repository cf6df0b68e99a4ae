"""Opens HDF5 files, trusted or not; no other module does.

Locks are disabled, since many shared file systems have none and HDF5 then refuses the file; mpips does not read a file
while another process writes it. An HDF5 file can make its reader open other files: by external links, by external
storage, by virtual datasets. A file with any of these is refused, except for mpips' own views. It is refused too if a
dataset declares many more bytes than the file holds, which would read as zeros of any length, or if datasets or chunks
share their bytes. Compressed data may exceed the file's size, by what deflate can pack; where no data may be
compressed, the sum of all datasets is bounded by it.

HDF5 (2.0 and earlier) reads a damaged collection of texts of variable length without end, and one of the files that a
virtual dataset shows beyond its memory. So these are checked before it reads them: those of datasets, attributes and
single texts when the file is opened, others by `texts`.

h5py with HDF5 takes 11 MB of memory, 2 MB of them private to each process, which ranks that use no such files do not
need. So modules that a rank imports at its start import this module, or h5py, only where they open a file.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Collection, Container, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpips.files.error_latching_file import ErrorLatchingFile
from mpips.files.safe_open import open_regular, replacing

SLACK = 1 << 26
"""Bytes that a dataset may declare beyond those stored."""
LARGEST_CHUNK = 1 << 30
"""Bytes of a decompressed chunk."""
RATIO = 1100
"""Bytes that are packed in one, at most: deflate can pack 1,032."""
_COLLECTION = b"GCOL"
"""The beginning of a collection of texts of variable length: a global heap."""
_VIRTUAL = "is a virtual dataset, and so would read other files"
_PART = struct.Struct("<H6xQ")
"""The head of a part of it: its number, and its length."""
_REFERENCE = np.dtype([("length", "<u4"), ("collection", "<u8"), ("index", "<u4")])
"""A text of variable length, as HDF5 stores it."""


@contextmanager
def reading(
    path: str | Path, *, follow: bool, view_files: Collection[str] = (), compressed: bool = True
) -> Iterator[h5py.File]:
    """Open an HDF5 file to read it; no other file is read through it.

    Args:
        path: the file.
        follow: whether `path` may be a symbolic link, see `mpips.files.safe_open`.
        view_files: files that virtual datasets may refer to: those of mpips' own views, which the caller trusts.
        compressed: whether data may be compressed.

    Raises:
        OSError: it is missing, not a regular file, not HDF5, refers to other files, or declares more than it holds.
    """
    # Its errors are clearer than those of HDF5.
    with open_regular(path, follow=follow) as raw, h5py.File(path, "r", locking=False) as file:
        checked = _Checked(raw.fileno(), bool(view_files))
        with h5py.File(checked, "r", locking=False) as same:
            limit = None if compressed else file.id.get_filesize() + SLACK
            if found := _flaw(same, checked, view_files, limit) or _flaw_of_texts(same, checked):
                raise OSError(f"{path}: {found}; it is refused")
        yield file


def is_numeric(data: Any) -> bool:
    """Return whether a dataset, or an array, is of numbers; HDF5 has types that numpy has not.

    To be checked before the data are read: references to texts or lists may all refer to the same bytes.
    """
    try:
        return data.dtype.kind in "biuf"
    except (AttributeError, TypeError):
        return False


def array(group: h5py.Group, name: str) -> NDArray[Any]:
    """Read a dataset of numbers whole.

    Raises:
        KeyError, TypeError: there is no such dataset.
    """
    if not is_numeric(group[name]):
        raise TypeError(f"{name} is not an array of numbers")
    return np.asarray(group[name][()])


def texts(file: h5py.File, name: str) -> list[str]:
    """Return the strings of a one-dimensional dataset.

    Strings of variable length are references, of which many may refer to the same text: a file of 1 MB may hold
    terabytes. All texts together may be as large as the file.

    Raises:
        KeyError, TypeError: there is no such dataset.
        OSError: it declares more than the file holds.
    """
    data = file[name]
    if not isinstance(data, h5py.Dataset) or data.ndim != 1:
        raise TypeError(f"{name} is not a list of texts")
    kind = h5py.check_string_dtype(data.dtype)
    fixed = kind is not None and kind.length is not None
    most = file.id.get_filesize()
    if len(data) * (1 if fixed else _REFERENCE.itemsize) > most:
        raise OSError(f"{name} declares {len(data):,} texts, more than are in the file")
    if not fixed:
        size = int(_lengths(file, data).sum())
        if size > most + SLACK:
            raise OSError(f"{name} declares {size:,} bytes, more than are in the file")
    return [str(text) for text in data.asstr()[:]]


def _lengths(file: h5py.File, data: h5py.Dataset) -> NDArray[np.uint32]:
    """Return the lengths of texts of variable length, u4[n].

    Raises:
        TypeError: they are not stored as references one after the other, as mpips writes them.
        OSError: a collection of them is damaged.
    """
    begin, size = data.id.get_offset(), _REFERENCE.itemsize * len(data)
    raw, handle = b"", file.id.get_vfd_handle()
    if begin is not None and not file.userblock_size:
        raw = os.pread(handle, size, begin)
    if not len(raw) == size == data.id.get_storage_size():
        raise TypeError(f"{data.name} is not a list of texts that are one after the other")
    references = np.frombuffer(raw, _REFERENCE)
    used = np.unique(references["collection"])
    if any(_parts(handle, each) is None for each in used[used > 0].tolist()):
        raise OSError(f"{data.name} is damaged: its texts are not whole")
    lengths: NDArray[np.uint32] = references["length"]
    return lengths


@contextmanager
def writing(path: str | Path) -> Iterator[h5py.File]:
    """Write an HDF5 file atomically, as `mpips.files.safe_open.replacing`.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    with replacing(path, "w+b") as target, closing(ErrorLatchingFile(target.fileno())) as latching:
        with h5py.File(latching, "w", locking=False) as file:
            yield file
        latching.close()


class _Checked:
    """An open file as h5py reads it: of a damaged collection it gets zeros.

    HDF5 reads a collection by itself, from its beginning on: while a dataset is opened, for the files that it shows.
    """

    def __init__(self, handle: int, views: bool) -> None:
        self._handle, self._views, self._offset = handle, views, 0
        self.opens = self.shows = self.damaged = False
        """Whether a dataset is being opened, one has asked for other files, and a collection was damaged."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to an offset."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._offset, os.SEEK_END: os.fstat(self._handle).st_size}
        self._offset = start[whence] + offset
        return self._offset

    def tell(self) -> int:
        """Return the offset."""
        return self._offset

    def readinto(self, buffer: memoryview) -> int:
        """Read bytes."""
        # HDF5 has checked the offset.
        size = os.preadv(self._handle, [buffer], self._offset)
        if bytes(buffer[:4]) == _COLLECTION:
            parts = _parts(self._handle, self._offset)
            self.shows |= self.opens
            if parts is None or (self.opens and not (self._views and all(map(_is_sound_mapping, parts)))):
                self.damaged = True
                buffer[:] = bytes(len(buffer))
        self._offset += size
        return size

    def read(self, size: int = -1) -> bytes:
        """Read some bytes; without it, h5py takes this for a name."""
        found = os.pread(self._handle, size, self._offset)
        self._offset += len(found)
        return found


def _flaw_of_texts(file: h5py.File, checked: _Checked) -> str:
    """Describe what is wrong with the texts of a file's attributes, and single ones; "" if nothing is."""
    # What cannot be read is refused where it is needed.
    for name in file.attrs:
        with suppress(Exception):
            file.attrs[name]
    for name in file:
        with suppress(Exception):
            if h5py.check_string_dtype(file[name].dtype) and file[name].shape == ():
                file[name][()]
    return "is damaged: its texts are not whole" if checked.damaged else ""


def _parts(handle: int, begin: int) -> list[bytes] | None:
    """Return the parts of a collection; None if they do not follow one another to its end."""
    end = os.fstat(handle).st_size
    head = os.pread(handle, 16, begin) if begin < end else b""
    size = int.from_bytes(head[8:], "little")
    if head[:4] != _COLLECTION or begin + size > end:
        return None
    whole, at, found = os.pread(handle, size, begin), 16, []
    while at + 16 <= size:
        index, length = _PART.unpack_from(whole, at)
        # The part 0 is what is free, with its head.
        room = 16 + -(-length // 8) * 8 if index else length
        if not 0 < room <= size - at:
            return None
        if index:
            found.append(whole[at + 16 : at + 16 + length])
        at += room
    return found


def _is_sound_mapping(part: bytes) -> bool:
    """Return whether HDF5 can read a part of a collection as the files that a virtual dataset shows, or refuses it.

    Its selections of rows are bounded here, since HDF5 writes those of too many dimensions beyond its memory.
    """
    if part[:1] not in (b"\0", b"\1"):
        return True
    at, count = 9, int.from_bytes(part[1:9], "little")
    for _ in range(min(count, len(part))):
        for _ in range(2):
            # The names of the file and of the dataset.
            at = part.find(b"\0", at) + 1
            if not at:
                return False
        for _ in range(2):
            kind, version, _, size, dimensions = struct.unpack_from("<5I", part.ljust(at + 20, b"\xff"), at)
            # All rows, or blocks of them.
            bounded = size == 0 if kind == 3 else kind == 2 and size >= 4 and 1 <= dimensions <= 32
            if not bounded or version != 1 or size > len(part) - at - 16:
                return False
            at += 16 + size
    return part[:1] == b"\0" and at + 4 == len(part)


def _flaw(file: h5py.File, checked: _Checked, view_files: Container[str], limit: int | None) -> str:
    """Describe a reference to another file, or data that the file declares and does not hold; "" if there is neither.

    `limit`: the largest sum of all datasets' bytes, if it is known.

    Raises:
        OSError: it is damaged.
    """
    if file.id.get_create_plist().get_sizes() != (8, 8):
        return "has addresses or lengths of another size than 8 bytes"
    found = ""
    problem: Exception | None = None
    declared, stored, seen = 0, 0, set[int]()

    def check_link(name: bytes) -> bool | None:
        nonlocal found, problem, declared, stored
        try:
            checked.opens, checked.shows = True, False
            item = _dataset_at(file, name)
            checked.opens = False
            found = item if isinstance(item, str) else _flaw_of(item, view_files)
            if not found and isinstance(item, h5py.h5d.DatasetID) and not _is_virtual(item):
                declared += _size(item)
                # A dataset may have several names.
                if (address := h5py.h5o.get_info(item).addr) not in seen:
                    seen.add(address)
                    stored += item.get_storage_size()
                if limit is not None and declared > limit:
                    found = f"and those before it declare {declared:,} bytes, more than are in the file"
                elif stored > file.id.get_filesize():
                    found = "and those before it share their bytes"
        # HDF5 would lose the exception in its C code.
        except Exception as error:
            if not checked.shows:
                problem = error
                return True
            found = _VIRTUAL
        found = found and f"{name.decode(errors='replace')!r} {found}"
        return True if found else None

    try:
        file.id.links.visit(check_link)
    except (RuntimeError, KeyError, ValueError, SystemError) as error:
        problem = problem or error
    if problem is not None:
        raise OSError(str(problem)) from problem
    return found


def _dataset_at(file: h5py.File, name: bytes) -> h5py.h5d.DatasetID | str | None:
    """Return the dataset of a link, an error text if the link is invalid, or None if it is another object."""
    kind = file.id.links.get_info(name).type
    if kind not in (h5py.h5l.TYPE_HARD, h5py.h5l.TYPE_SOFT):
        return "is an external link, and so would read another file"
    item = h5py.h5o.open(file.id, name) if kind == h5py.h5l.TYPE_HARD else None
    return item if isinstance(item, h5py.h5d.DatasetID) else None


def _flaw_of(data: h5py.h5d.DatasetID | None, view_files: Container[str]) -> str:
    """Describe what is wrong with a dataset; "" if nothing is."""
    if data is None:
        return ""
    creation = data.get_create_plist()
    if creation.get_external_count():
        return "keeps its data in another file"
    if _is_virtual(data):
        shown = {creation.get_virtual_filename(index) for index in range(creation.get_virtual_count())}
        if all(each in view_files for each in shown):
            return ""
        return _VIRTUAL
    return _excess(data, creation)


def _is_virtual(data: h5py.h5d.DatasetID) -> bool:
    return bool(data.get_create_plist().get_layout() == h5py.h5d.VIRTUAL)


def _size(data: h5py.h5d.DatasetID) -> int:
    """Return the bytes that a dataset declares; a scalar is one element, which may be of any size."""
    if data.shape is None:
        return 0
    return int(math.prod(data.shape)) * int(data.get_type().get_size())


def _excess(data: h5py.h5d.DatasetID, creation: h5py.h5p.PropDCID) -> str:
    """Describe how much more a dataset declares than the file holds; "" if at most `SLACK` bytes."""
    declared = _size(data)
    if declared <= SLACK:
        return ""
    if creation.get_layout() == h5py.h5d.CHUNKED:
        chunk = math.prod(creation.get_chunk()) * int(data.get_type().get_size())
        if chunk > LARGEST_CHUNK:
            return f"has chunks of {chunk:,} bytes, and a chunk is read as a whole; the limit is {LARGEST_CHUNK:,}"
    held = data.get_storage_size() * (RATIO if creation.get_nfilters() else 1)
    return f"declares {declared:,} bytes and holds at most {held:,}" if declared > held + SLACK else ""
