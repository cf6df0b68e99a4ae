"""Opens HDF5 files, trusted or not; no other module does.

Locks are disabled, since many shared file systems have none and HDF5 then refuses the file; mpips does not read a file
while another process writes it. An HDF5 file can make its reader open other files: by external links, by external
storage, by virtual datasets. A file with any of these is refused, except for mpips' own views. It is refused too if a
dataset declares many more bytes than the file holds, which would read as zeros of any length, or if datasets or chunks
share their bytes. Compressed data may exceed the file's size, by what deflate can pack; where no data may be
compressed, the sum of all datasets is bounded by it.

h5py with HDF5 takes 11 MB of memory, 2 MB of them private to each process, which ranks that use no such files do not
need. So modules that a rank imports at its start import this module, or h5py, only where they open a file.
"""

from __future__ import annotations

import math
import os
from collections.abc import Container, Iterator
from contextlib import closing, contextmanager
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
_REFERENCE = np.dtype([("length", "<u4"), ("collection", "<u8"), ("index", "<u4")])
"""A text of variable length, as HDF5 stores it."""


@contextmanager
def reading(
    path: str | Path, *, follow: bool, view_files: Container[str] = (), compressed: bool = True
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
    with open_regular(path, follow=follow):
        pass
    with h5py.File(path, "r", locking=False) as file:
        found = _flaw(file, view_files, None if compressed else file.id.get_filesize() + SLACK)
        if found:
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
    if len(data) * (1 if fixed else _REFERENCE.itemsize) > file.id.get_filesize():
        raise OSError(f"{name} declares {len(data):,} texts, more than are in the file")
    limit, lengths = file.id.get_filesize() + SLACK, _lengths(file, data)
    if fixed:
        found, size = [str(text) for text in data.asstr()[:]], 0
    elif lengths is None:
        found, size = [], 0
        for text in (data.asstr()[at] for at in range(len(data))):
            size += len(text)
            if size > limit:
                break
            found.append(text)
    else:
        size = int(lengths.sum())
        found = [] if size > limit else data.asstr()[:].tolist()
    if size > limit:
        raise OSError(f"{name} declares {size:,} bytes or more, more than are in the file")
    return found


def _lengths(file: h5py.File, data: h5py.Dataset) -> NDArray[np.uint32] | None:
    """Return the lengths of texts, u4[n]; None if they are not stored as references one after the other."""
    kind, begin, size = (
        h5py.check_string_dtype(data.dtype),
        data.id.get_offset(),
        _REFERENCE.itemsize * len(data),
    )
    if kind is None or kind.length is not None or begin is None or file.userblock_size:
        return None
    raw = os.pread(file.id.get_vfd_handle(), size, begin)
    if not len(raw) == size == data.id.get_storage_size():
        return None
    lengths: NDArray[np.uint32] = np.frombuffer(raw, _REFERENCE)["length"]
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


def _flaw(file: h5py.File, view_files: Container[str], limit: int | None) -> str:
    """Describe a reference to another file, or data that the file declares and does not hold; "" if there is neither.

    `limit`: the largest sum of all datasets' bytes, if it is known.

    Raises:
        OSError: it is damaged.
    """
    found = ""
    problem: Exception | None = None
    declared, stored = 0, dict[int, int]()

    def check_link(name: bytes) -> bool | None:
        nonlocal found, problem, declared
        try:
            item = _dataset_at(file, name)
            found = item if isinstance(item, str) else _flaw_of(item, view_files)
            if not found and isinstance(item, h5py.h5d.DatasetID) and not _is_virtual(item):
                declared += _size(item)
                stored[h5py.h5o.get_info(item).addr] = item.get_storage_size()
                if limit is not None and declared > limit:
                    found = f"and those before it declare {declared:,} bytes, more than are in the file"
                elif sum(stored.values()) > file.id.get_filesize():
                    found = "and those before it share their bytes"
        # HDF5 would lose the exception in its C code.
        except Exception as error:
            problem = error
            return True
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
        return "is a virtual dataset, and so would read other files"
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
