"""Images of machine code: made from an object file, and loaded into memory without LLVM.

LLVM compiles a kernel to an ELF object file whose references are absolute 64-bit addresses, so that its code may be far
from what it calls. An image has the file's sections laid out relative to each other: bytes, the offsets of the
addresses within the image that it contains, and the offsets of the addresses of external functions. No image is made
of a file with any other kind of reference or section: numba loads it itself.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from collections.abc import Callable, Container
from functools import cache
from typing import NamedTuple

_HEADER = struct.Struct("<16s2HI3QI6H")
_SECTION = struct.Struct("<2I4Q2I2Q")
_SYMBOL = struct.Struct("<I2BH2Q")
_RELOCATION = struct.Struct("<QIIq")
_ADDRESS = struct.Struct("<Q")
_ELF64 = b"\x7fELF\x02\x01\x01"
_X86_64, _OBJECT, _ABSOLUTE_64 = 62, 1, 1
_BYTES, _SYMBOLS, _RELOCATIONS, _ZEROS, _UNWIND = 1, 2, 4, 8, 0x70000001
_WRITE, _ALLOCATE = 0x1, 0x2
_COMMON, _RESERVED = 0xFFF2, 0xFF00
# Bits of a section's type and flags that change nothing here: executable, to be merged, of strings, linked, large.
_PLAIN = _WRITE | _ALLOCATE | 0x4 | 0x10 | 0x20 | 0x40 | 0x10000000


class Image(NamedTuple):
    """Machine code for x86-64, in numbers and bytes only."""

    content: bytes
    """The bytes that are not zero at first: code and constants, then variables."""
    fixed: int
    """The bytes of code and constants, a multiple of the page size; what follows can be written to."""
    size: int
    """All bytes, with variables that are zero at first."""
    inner: tuple[tuple[int, int], ...]
    """(place, offset): the 8 bytes at `place` are the address of `offset` in the image."""
    outer: tuple[tuple[int, str, int], ...]
    """(place, name, more): the 8 bytes at `place` are the address of a symbol elsewhere, plus `more`."""
    entry: int
    """The offset of the function."""
    environment: int
    """The offset of the variable with the address of its environment."""
    native: int = 0
    """The offset of the function that other compiled code calls."""


class _Section(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


def image_of(
    file: bytes, entry: str, environment: str, native: str, absent: Container[str] = ()
) -> Image | None:
    """Make the image of an object file; None if the file has an unsupported kind of reference or section.

    Args:
        file: an ELF object file.
        entry: the symbol of the function to be called.
        environment: the symbol of the variable with the address of its environment.
        native: the symbol of the function that other compiled code calls.
        absent: symbols that the image's code must not refer to.
    """
    try:
        return _image_of(file, entry, environment, native, absent)
    except (struct.error, IndexError, KeyError, ValueError):
        return None


def _image_of(file: bytes, entry: str, environment: str, native: str, absent: Container[str]) -> Image:
    identity, kind, machine, *_, begin, _, _, _, _, size, count, _ = _HEADER.unpack_from(file)
    if (
        not identity.startswith(_ELF64)
        or (kind, machine, size) != (_OBJECT, _X86_64, _SECTION.size)
        or mmap.PAGESIZE % 4096
    ):
        raise ValueError("not an object file for x86-64")
    sections = [_Section(*_SECTION.unpack_from(file, begin + size * index)) for index in range(count)]
    kept = [
        index
        for index, each in enumerate(sections)
        if each.flags & _ALLOCATE and each.size and each.kind != _UNWIND
    ]
    for index in kept:
        if sections[index].kind not in (_BYTES, _ZEROS) or sections[index].flags & ~_PLAIN:
            raise ValueError("a section of an unknown kind")
    content, places, fixed = bytearray(), {}, 0
    for writable in (0, _WRITE):
        for index in kept:
            each = sections[index]
            if each.flags & _WRITE == writable:
                _pad(content, max(each.alignment, 1))
                places[index] = len(content)
                content += (
                    bytes(each.size) if each.kind == _ZEROS else file[each.offset : each.offset + each.size]
                )
        if not writable:
            _pad(content, mmap.PAGESIZE)
            fixed = len(content)
    end = len(content)
    (table,) = (each for each in sections if each.kind == _SYMBOLS)
    text = sections[table.link].offset
    symbols: list[tuple[str, int | None]] = []
    for at in range(table.offset, table.offset + table.size, _SYMBOL.size):
        name, info, _, section, value, length = _SYMBOL.unpack_from(file, at)
        where: int | None = None
        if section == _COMMON:
            # `value` is the alignment
            end += -end % max(value, 1)
            where, end = end, end + length
        elif section in places:
            where = places[section] + value
        elif info & 15 == 6 or _RESERVED <= section != 0xFFF1:
            raise ValueError("a symbol of an unknown kind")
        begin = text + name
        symbols.append((file[begin : file.index(b"\0", begin)].decode("ascii"), where))
    inner, outer = [], []
    for each in sections:
        if each.kind == 9:
            raise ValueError("references of an unknown kind")
        if each.kind != _RELOCATIONS or each.info not in places:
            continue
        for at in range(each.offset, each.offset + each.size, _RELOCATION.size):
            place, how, symbol, more = _RELOCATION.unpack_from(file, at)
            if how != _ABSOLUTE_64 or place + _ADDRESS.size > sections[each.info].size:
                raise ValueError("a reference of an unknown kind")
            name, where = symbols[symbol]
            if name in absent:
                raise ValueError("a reference to a symbol that is not available")
            if where is not None:
                inner.append((places[each.info] + place, where + more))
            elif name:
                outer.append((places[each.info] + place, name, more))
            else:
                raise ValueError("a reference without a symbol")
    named = dict(symbols)
    first, variable, inside = named[entry], named[environment], named[native]
    if first is None or variable is None or inside is None:
        raise ValueError("the function is missing")
    return Image(bytes(content), fixed, end, tuple(inner), tuple(outer), first, variable, inside)


def _pad(content: bytearray, alignment: int) -> None:
    content += bytes(-len(content) % alignment)


def load(image: Image, address_of: Callable[[str], int]) -> tuple[mmap.mmap, int]:
    """Load an image into memory, which is then executable and no longer writable.

    Args:
        image: what to load.
        address_of: returns the address of an external symbol; raises KeyError.

    Returns:
        The memory, which must be kept as long as the code may run, and its address.

    Raises:
        KeyError: there is no such symbol.
        OSError: the system refuses the memory.
    """
    memory = mmap.mmap(-1, max(image.size, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[: len(image.content)] = image.content
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for place, offset in image.inner:
        _ADDRESS.pack_into(memory, place, base + offset)
    for place, name, more in image.outer:
        _ADDRESS.pack_into(memory, place, address_of(name) + more)
    if image.fixed and _mprotect()(base, image.fixed, mmap.PROT_READ | mmap.PROT_EXEC):
        raise OSError(ctypes.get_errno(), "memory for machine code is refused")
    return memory, base


def store(memory: mmap.mmap, place: int, address: int) -> None:
    """Store an address in an image's variable."""
    _ADDRESS.pack_into(memory, place, address)


@cache
def _mprotect() -> Callable[[int, int, int], int]:
    function = ctypes.CDLL(None, use_errno=True).mprotect
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


@cache
def system_symbol(name: str) -> int:
    """Return the address of a function that this process has loaded; raise KeyError if there is none."""
    try:
        found = getattr(ctypes.CDLL(None), name)
    except AttributeError:
        raise KeyError(name) from None
    return ctypes.cast(found, ctypes.c_void_p).value or 0
