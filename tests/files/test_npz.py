"""Archives of arrays: only numbers are read, and no more than the file contains."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from mpips.files.npz import load


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes_is_read(tmp_path: Path, save: object) -> None:
    arrays = {
        "keys": np.arange(5, dtype=np.uint64), "rows": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "one": np.array(7), "text": np.array("counts"), "none": np.empty((0, 3), np.float32),
        "zeros": np.zeros(10**6, np.int64),
    }  # fmt: skip
    with (tmp_path / "a.npz").open("wb") as file:
        save(file, **arrays)  # type: ignore[operator]
    found = load(tmp_path / "a.npz", follow=False)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype


def member(content: bytes, how: int = zipfile.ZIP_STORED) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", how) as archive:
        archive.writestr("table.npy", content)
    return raw.getvalue()


def header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not an archive"),
        (b"PK\x03\x04 nothing", "not an archive"),
        (member(b"nothing"), "magic"),
        (member(header("{'descr': '<i8', 'fortran_order': False, 'shape': (2199023255552,)}\n")), "declares"),
        (member(header("{'descr': '<i8', 'fortran_order': False, 'shape': (4294967296, 4294967296)}\n")), "declares"),
        (member(header("{'descr': '<i8', 'fortran_order': False, 'shape': (-1,)}\n")), "array of"),
        (member(header("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n")), "array of object"),
        (member(header("__import__('os').abort()\n")), "malformed"),
        (member(header("{'descr': (")), "has no header of an array: TokenError"),
        (member(header("{'descr': ('<i4',), 'fortran_order': False, 'shape': (1,)}\n")), "has no header of an array"),
        (member(header("-" * 9000 + "1\n")), "has no header|malformed"),
        (member(bytes(99), zipfile.ZIP_LZMA), "compressed in a way"),
    ],
)  # fmt: skip
def test_an_archive_that_declares_more_than_it_holds_is_refused(
    tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=said):
        load(tmp_path / "a.npz", follow=False)


def test_an_archive_directory_that_declares_too_many_bytes_is_refused(tmp_path: Path) -> None:
    content = bytearray(
        member(header("{'descr': '|u1', 'fortran_order': False, 'shape': (9,)}\n") + bytes(9))
    )
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = (2**31).to_bytes(4, "little")
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match="declares more bytes"):
        load(tmp_path / "a.npz", follow=False)


def test_a_too_large_compression_ratio_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", keys=np.zeros(6_000_000), values=np.zeros(6_000_000))
    with pytest.raises(ValueError, match=r"values\.npy declares more bytes than the file can hold"):
        load(tmp_path / "a.npz", follow=False)


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    content = member(header("{'descr': '|u1', 'fortran_order': False, 'shape': (999,)}\n") + bytes(999))
    at, end = content.index(b"PK\x01\x02"), content.index(b"PK\x05\x06")
    many, size = content[at:end] * 9, (9 * (end - at)).to_bytes(4, "little")
    tail = content[end : end + 8] + 2 * (9).to_bytes(2, "little") + size + content[end + 16 :]
    (tmp_path / "a.npz").write_bytes(content[:at] + many + tail)
    with pytest.raises(ValueError, match=r"declare more bytes|[Oo]verlapped"):
        load(tmp_path / "a.npz", follow=False)
