"""Opening HDF5 files: the one way, for what is ours and for what a stranger gives.

Without locks, since many shared file systems have none and HDF5 then refuses the file; nobody here reads a file while
another writes it. An HDF5 file can make its reader open other files: by external links, by data kept in external files,
by virtual datasets. So a file that is not one of our own views is refused when it has any of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import h5py

from mpips.files import open_regular, replacing
from mpips.sink import Sink


@contextmanager
def reading(path: str | Path, *, follow: bool) -> Iterator[h5py.File]:
    """Open an HDF5 file to read it; nothing but this file is read through it.

    Args:
        path: the file.
        follow: whether `path` may be a symbolic link, see `mpips.files`.

    Raises:
        OSError: it is missing, no regular file, no HDF5 file, or it refers to other files.
    """
    with open_regular(path, follow=follow):  # says what is wrong with a name in words, which HDF5 does not
        pass
    with h5py.File(path, "r", locking=False) as file:
        found = _elsewhere(file)
        if found:
            raise OSError(f"{path}: {found}, and so would read other files; it is refused")
        yield file


@contextmanager
def writing(path: str | Path) -> Iterator[h5py.File]:
    """Write an HDF5 file that appears whole, or not at all; as `mpips.files.replacing`.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    with replacing(path, "w+b") as whole, closing(Sink(whole.fileno())) as sink:
        with h5py.File(sink, "w", locking=False) as file:
            yield file
        sink.close()


def _elsewhere(file: h5py.File) -> str:
    """Say what in a file refers to another file; "" if nothing does."""
    found = ""

    def look(name: bytes) -> bool | None:
        nonlocal found
        kind = file.id.links.get_info(name).type
        if kind not in (h5py.h5l.TYPE_HARD, h5py.h5l.TYPE_SOFT):
            found = f"{name.decode(errors='replace')!r} is an external link"
        elif kind == h5py.h5l.TYPE_HARD:
            item = h5py.h5o.open(file.id, name)
            if isinstance(item, h5py.h5d.DatasetID):
                creation = item.get_create_plist()
                if creation.get_external_count():
                    found = f"{name.decode(errors='replace')!r} keeps its data in another file"
                elif creation.get_layout() == h5py.h5d.VIRTUAL:
                    found = f"{name.decode(errors='replace')!r} is a virtual dataset"
        return True if found else None

    file.id.links.visit(look)
    return found
