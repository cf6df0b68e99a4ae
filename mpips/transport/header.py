"""The header of a message: its fields, from which follow its size, its packing, and where kernels find each field.

Every number is aligned to its size, so that kernels can read and write it in the header's bytes. For the meaning of the
fields see `mpips.transport.message.Message`.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

HEADER = np.dtype(
    [
        ("magic", "S4"),
        ("kind", "<u1"),
        ("command", "<u1"),
        ("flags", "<u1"),
        ("sender", "<i4"),
        ("origin", "<i4"),
        ("shard", "<i4"),
        ("epoch", "<u4"),
        ("namespace", "<u4"),
        # Bytes of the metadata.
        ("meta", "<u4"),
        ("acked", "<i8"),
        ("time", "<i8"),
        ("round", "<i8"),
        # The key range: its first and last key.
        ("first", "<u8"),
        ("last", "<u8"),
        # The numbers of keys and rows; with WRITE_THERE, `rows` is an address.
        ("keys", "<u8"),
        ("rows", "<u8"),
        # Wire type and width of the values.
        ("dtype", "<u1"),
        ("width", "<u4"),
        # The number of dependencies.
        ("after", "<u4"),
        ("signature", "<i8", (2,)),
    ],
    align=True,
)
HEADER_BYTES = HEADER.itemsize
MAGIC = b"mps1"
NO_VALUES = 255
"""In `dtype`: there are no values."""

# Flags.
# Keys and values follow the frame as MPI messages of their own.
DETACHED = 1
# The keys are listed (perhaps none); without it the message is about all keys from `first` to `last`.
LISTED = 2
# The server may write the answer's values to the address in `rows` (`mpips.transport.mpi.process_memory`).
WRITE_THERE = 4
# In the answer: they were written there.
WRITTEN_THERE = 8
# The content was encoded by filters (`mpips.filters`).
FILTERED = 16
# The listed keys have 128 bits.
WIDE_KEYS = 32


_FIELDS: Any = HEADER.fields


def _packing() -> struct.Struct:
    """Return the packing of a header as a tuple of its fields, magic and signature as bytes."""
    codes = {"u1": "B", "i4": "i", "u4": "I", "i8": "q", "u8": "Q"}
    form, end = "<", 0
    for field, offset in _FIELDS.values():
        form += "x" * (offset - end) + codes.get(field.str[1:], f"{field.itemsize}s")
        end = offset + field.itemsize
    return struct.Struct(form + "x" * (HEADER_BYTES - end))


def _index(name: str) -> int:
    """Return the index of a field in a header that is viewed as numbers of the field's size, 1, 4 or 8 bytes."""
    field, offset = _FIELDS[name]
    return int(offset) // int(field.base.itemsize)


PACKING = _packing()

# For kernels: indices in a header viewed as u1.
KIND, COMMAND, FLAGS, DTYPE = map(_index, ("kind", "command", "flags", "dtype"))
# As i4.
START, SENDER, ORIGIN, SHARD = map(_index, ("magic", "sender", "origin", "shard"))
EPOCH, NAMESPACE, META = map(_index, ("epoch", "namespace", "meta"))
WIDTH, AFTER = map(_index, ("width", "after"))
# As i8; the second half of the signature follows the first.
ACKED, TIME, ROUND, FIRST, LAST = map(_index, ("acked", "time", "round", "first", "last"))
KEYS, ROWS, SIGNATURE = map(_index, ("keys", "rows", "signature"))
