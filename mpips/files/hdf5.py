"""Opening HDF5 files: the one way, for what is ours and for what a stranger gives.

Without locks, since many shared file systems have none and HDF5 then refuses the file; nobody here reads a file while
another writes it. An HDF5 file can make its reader open other files: by external links, by data kept in external files,
by virtual datasets. So a file that is not one of our own views is refused when it has any of these. It is refused too
when a dataset declares much more than the file holds: that reads as zeros, at any length. Compressed data may be much
more than the file; where none are meant, all datasets together are no more than that.

h5py with HDF5 is 2 MB of each process' own and 11 MB in all, which a rank does not need that neither saves nor reads
such files. So what a rank imports at its start imports this module, or h5py, where it opens a file.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import h5py

from mpips.files.error_latching_file import ErrorLatchingFile
from mpips.files.safe_open import open_regular, replacing

SPARE = 1 << 26
"""Bytes of a dataset that need not have been written."""
LARGEST_CHUNK = 1 << 30
"""Bytes, unpacked."""


@contextmanager
def reading(
    path: str | Path, *, follow: bool, beside: Container[str] = (), packed: bool = True
) -> Iterator[h5py.File]:
    """Open an HDF5 file to read it; nothing but this file is read through it.

    Args:
        path: the file.
        follow: whether `path` may be a symbolic link, see `mpips.files.safe_open`.
        beside: files that virtual datasets may show: those of a view of ours, which the caller answers for.
        packed: whether data may be compressed.

    Raises:
        OSError: it is missing, no regular file, no HDF5 file, refers to other files, or declares what it does not hold.
    """
    with open_regular(path, follow=follow):  # says what is wrong with a name in words, which HDF5 does not
        pass
    with h5py.File(path, "r", locking=False) as file:
        found = _flaw(file, beside, None if packed else file.id.get_filesize() + SPARE)
        if found:
            raise OSError(f"{path}: {found}; it is refused")
        yield file


@contextmanager
def writing(path: str | Path) -> Iterator[h5py.File]:
    """Write an HDF5 file that appears whole, or not at all; as `mpips.files.safe_open.replacing`.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    with replacing(path, "w+b") as whole, closing(ErrorLatchingFile(whole.fileno())) as sink:
        with h5py.File(sink, "w", locking=False) as file:
            yield file
        sink.close()


def _flaw(file: h5py.File, beside: Container[str], most: int | None) -> str:
    """Say what in a file refers to another file, or is not in the file; "" if nothing is.

    `most`: bytes that all datasets can have together, if that is known.

    Raises:
        OSError: it is damaged.
    """
    found = ""
    problem: Exception | None = None
    declared = 0

    def look(name: bytes) -> bool | None:
        nonlocal found, problem, declared
        try:
            item = _at(file, name)
            found = item if isinstance(item, str) else _flaw_of(item, beside)
            if most is not None and not found and isinstance(item, h5py.h5d.DatasetID):
                declared += 0 if _is_virtual(item) else _size(item)
                if declared > most:
                    found = f"and those before it declare {declared:,} bytes, more than are in the file"
        except Exception as error:  # HDF5 would lose it on the way through its own code
            problem = error
            return True
        found = found and f"{name.decode(errors='replace')!r} {found}"
        return True if found else None

    try:
        file.id.links.visit(look)
    except (RuntimeError, KeyError, ValueError, SystemError) as error:
        problem = problem or error
    if problem is not None:
        raise OSError(str(problem)) from problem
    return found


def _at(file: h5py.File, name: bytes) -> h5py.h5d.DatasetID | str | None:
    """Give the dataset that a link leads to; what is wrong with the link; or None, if neither."""
    kind = file.id.links.get_info(name).type
    if kind not in (h5py.h5l.TYPE_HARD, h5py.h5l.TYPE_SOFT):
        return "is an external link, and so would read another file"
    item = h5py.h5o.open(file.id, name) if kind == h5py.h5l.TYPE_HARD else None
    return item if isinstance(item, h5py.h5d.DatasetID) else None


def _flaw_of(data: h5py.h5d.DatasetID | None, beside: Container[str]) -> str:
    """Say the same of one dataset."""
    if data is None:
        return ""
    creation = data.get_create_plist()
    if creation.get_external_count():
        return "keeps its data in another file"
    if _is_virtual(data):
        shown = {creation.get_virtual_filename(at) for at in range(creation.get_virtual_count())}
        if all(each in beside for each in shown):
            return ""
        return "is a virtual dataset, and so would read other files"
    return _excess(data, creation)


def _is_virtual(data: h5py.h5d.DatasetID) -> bool:
    return bool(data.get_create_plist().get_layout() == h5py.h5d.VIRTUAL)


def _size(data: h5py.h5d.DatasetID) -> int:
    """Give the bytes that a dataset declares."""
    return math.prod(data.shape or (0,)) * int(data.get_type().get_size())


def _excess(data: h5py.h5d.DatasetID, creation: h5py.h5p.PropDCID) -> str:
    """Say how much more a dataset declares than the file holds; "" if that is little."""
    declared = _size(data)
    if declared <= SPARE:
        return ""
    held = data.get_storage_size()
    if creation.get_layout() == h5py.h5d.CHUNKED:
        chunk = math.prod(creation.get_chunk()) * int(data.get_type().get_size())
        if chunk > LARGEST_CHUNK:
            return (
                f"has chunks of {chunk:,} bytes, of which each is read whole; at most {LARGEST_CHUNK:,} are"
            )
        held = data.get_num_chunks() * chunk
    return f"declares {declared:,} bytes and holds {held:,}" if declared > held + SPARE else ""
