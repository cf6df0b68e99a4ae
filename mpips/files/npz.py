"""Reads numpy's archives of arrays (.npz): numbers and strings only, and no more than the file holds.

An archive's directory and the arrays' headers may declare any size, which numpy would allocate before it reads.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from mpips.files.safe_open import open_regular

_RATIO = 100
"""The largest compression ratio of large arrays: that of keys and values is far smaller."""
_SPARE = 1 << 26
"""Bytes of an archive that may have a larger ratio."""


def load(path: str | Path, *, follow: bool) -> dict[str, NDArray[Any]]:
    """Read all arrays of an archive, by name.

    Args:
        path: the file.
        follow: whether `path` may be a symbolic link, see `mpips.files.safe_open`.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
        ValueError: it is not an archive of arrays of numbers and strings, or damaged.
    """
    # Few ranks read such a file, and the import takes 10 modules.
    import zipfile

    found: dict[str, NDArray[Any]] = {}
    with open_regular(path, follow=follow) as raw:
        size = raw.seek(0, 2)
        try:
            with zipfile.ZipFile(raw) as archive:
                members = archive.infolist()
                # Members may not share their bytes.
                if sum(member.compress_size for member in members) > size:
                    raise ValueError("its arrays declare more bytes than the file holds")
                spare = _SPARE
                for member in members:
                    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                        raise ValueError(f"{member.filename} is compressed in a way that numpy does not use")
                    spare -= max(0, member.file_size - _RATIO * member.compress_size)
                    if spare < 0:
                        raise ValueError(f"{member.filename} declares more bytes than the file can hold")
                    with archive.open(member) as file:
                        name = member.filename.removesuffix(".npy")
                        found[name] = _array(file, name, member.file_size)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error) as error:
            raise ValueError(f"is not an archive of arrays, or damaged: {error}") from None
    return found


def _array(file: Any, name: str, size: int) -> NDArray[Any]:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{name} is an array of another format version, {version}")
    header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    try:
        shape, fortran, dtype = header(file)
    except ValueError:
        raise
    except Exception as error:
        # It is an expression of Python, with which numpy may fail in any way: TokenError, MemoryError, IndexError ...
        raise ValueError(f"{name} has no header of an array: {type(error).__name__}") from None
    if dtype.hasobject or dtype.itemsize == 0 or any(length < 0 for length in shape):
        raise ValueError(f"{name} is an array of {dtype} of the shape {shape}; numbers and strings are read")
    # Python's integers do not overflow.
    count = math.prod(map(int, shape))
    if count * dtype.itemsize > size:
        raise ValueError(f"{name} declares {count:,} numbers, but has {size:,} bytes")
    content = file.read(count * dtype.itemsize)
    if len(content) != count * dtype.itemsize:
        raise ValueError(f"{name} is cut off")
    array = np.frombuffer(bytearray(content), dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)
