"""Images of machine code are loaded with correct addresses; object files with unsupported parts give no image."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from pathlib import Path

import pytest

from mpips.jit import code_image
from mpips.jit.code_image import Image

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="its machine code is for x86-64")

# mov rax, ADDRESS; mov eax, [rax]; ret
READ = b"\x48\xb8" + bytes(8) + b"\x8b\x00\xc3"
# mov rax, ADDRESS; jmp rax
JUMP = b"\x48\xb8" + bytes(8) + b"\xff\xe0"


def called(image: Image, address: int) -> int:
    return ctypes.CFUNCTYPE(ctypes.c_int)(address + image.entry)()


def test_code_reads_the_images_own_constants_and_variables() -> None:
    page = mmap.PAGESIZE
    content = (READ + struct.pack("<i", 1234)).ljust(page, b"\0")
    constant = Image(content, page, page + 8, ((2, len(READ)),), (), 0, page)
    memory, base = code_image.load(constant, {}.__getitem__)
    assert called(constant, base) == 1234
    variable = constant._replace(inner=((2, page),))
    memory, base = code_image.load(variable, {}.__getitem__)
    code_image.store(memory, page, 99)
    assert called(variable, base) == 99


def test_code_calls_functions_elsewhere() -> None:
    image = Image(
        JUMP.ljust(mmap.PAGESIZE, b"\0"), mmap.PAGESIZE, mmap.PAGESIZE, (), ((2, "getpid", 0),), 0, 0
    )
    _memory, base = code_image.load(image, code_image.system_symbol)
    assert called(image, base) == os.getpid()
    with pytest.raises(KeyError):
        code_image.load(image._replace(outer=((2, "no such function", 0),)), code_image.system_symbol)


def test_loaded_code_cannot_be_written_to() -> None:
    image = Image(READ.ljust(mmap.PAGESIZE, b"\0"), mmap.PAGESIZE, 2 * mmap.PAGESIZE, (), (), 0, 0)
    _memory, base = code_image.load(image, {}.__getitem__)
    begin = f"{base:x}-"
    (line,) = [each for each in Path("/proc/self/maps").read_text().splitlines() if each.startswith(begin)]
    assert line.split()[1] == "r-xp"


@pytest.fixture(scope="module")
def compiled() -> tuple[bytes, str, str, str]:
    """Return an object file of numba, and the symbols of its function for Python, environment, and function."""
    import numba

    jit = numba.njit("f8(f8[::1])")(lambda values: values.sum())
    (result,) = jit.overloads.values()
    _, _, (code, _) = result.library.serialize_using_object_code()
    about = result.fndesc
    return code, about.llvm_cpython_wrapper_name, about.env_name, about.llvm_func_name


def test_an_object_file_of_numba_has_an_image(compiled: tuple[bytes, str, str, str]) -> None:
    image = code_image.image_of(*compiled)
    assert image is not None and 0 <= image.entry < image.fixed <= image.environment < image.size
    assert image.native != image.entry and 0 <= image.native < image.fixed
    assert "PyArg_UnpackTuple" in {name for _, name, _ in image.outer}


def test_other_files_have_none(compiled: tuple[bytes, str, str, str]) -> None:
    code, entry, environment, native = compiled
    assert code_image.image_of(code, "other", environment, native) is None
    assert code_image.image_of(code, entry, "other", native) is None
    assert code_image.image_of(code, entry, environment, "other") is None
    assert code_image.image_of(code, entry, environment, native, {"PyArg_UnpackTuple"}) is None
    for flawed in (b"", b"\x7fELF", code[:1000], code[:-1], bytes(len(code))):
        assert code_image.image_of(flawed, entry, environment, native) is None
    # the machine, the kind of file, and the kind of each reference
    for place in (18, 16):
        assert (
            code_image.image_of(code[:place] + b"\x03" + code[place + 1 :], entry, environment, native)
            is None
        )
    begin, size, count = struct.unpack_from("<Q", code, 40)[0], 64, struct.unpack_from("<H", code, 60)[0]
    for at in range(begin, begin + size * count, size):
        (kind,), (offset, length) = (
            struct.unpack_from("<I", code, at + 4),
            struct.unpack_from("<2Q", code, at + 24),
        )
        if kind == 4 and length > 24 * 10:
            other = bytearray(code)
            struct.pack_into("<I", other, offset + 8, 2)
            assert code_image.image_of(bytes(other), entry, environment, native) is None
