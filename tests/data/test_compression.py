"""Decompression: complete, or an error that names the file; bounded in memory for any content."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
import tracemalloc
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from mpips.data import DataSpec, expand, read, unusual_files
from mpips.data import stream as stream_module
from mpips.data.stream import chunks, line_blocks
from mpips.errors import DataError, JobError

CONTENT = b"".join(b"1 %d:0.5 %d:2\n" % (key, key + 7) for key in range(400))
REPEATED = 40_000
BOMB = bytes.fromhex("28b52ffd0058") + REPEATED * bytes.fromhex("02001000") + bytes.fromhex("03001000")
"""A frame of Zstandard: blocks of 4 bytes each that unpack to 128 KiB of zeros."""


def zstd(data: bytes) -> bytes:
    library = pytest.importorskip("zstandard", reason="the optional zstandard package is not installed")
    return bytes(library.ZstdCompressor(write_checksum=True).compress(data))


PACKERS = [gzip.compress, lzma.compress, bz2.compress, zstd]


def load(path: Path, content: bytes) -> bytes:
    path.write_bytes(content)
    return b"".join(chunks(str(path), 100))


@pytest.mark.parametrize("pack", PACKERS)
def test_truncated_files_are_never_taken_for_complete(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    packed = pack(CONTENT)
    assert load(tmp_path / "a", packed) == CONTENT
    assert load(tmp_path / "a", packed + packed) == CONTENT + CONTENT
    for cut in (*range(8, 40), *range(len(packed) - 20, len(packed))):
        with pytest.raises(DataError, match=f"{tmp_path}/a: is truncated"):
            load(tmp_path / "a", packed[:cut])


@pytest.mark.parametrize("pack", PACKERS)
def test_damage_gives_an_error_or_whole_data(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    packed, rng, refused = pack(CONTENT), random.Random(1), 0
    for _ in range(60):
        damaged = bytearray(packed)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        try:
            load(tmp_path / "a", bytes(damaged))
        except DataError as error:
            assert str(error).startswith(f"{tmp_path}/a: ") and "\n" not in str(error)
            refused += 1
    assert refused > 40  # a checksum covers nearly all


@pytest.mark.parametrize(
    "bomb", [gzip.compress(bytes(1 << 25)), bz2.compress(bytes(1 << 25)), lzma.compress(bytes(1 << 25)), BOMB]
)
def test_a_line_without_end_takes_little_memory(
    tmp_path: Path, bomb: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bomb is BOMB:
        zstd(b"")
    monkeypatch.setattr(stream_module, "LONGEST_LINE", 1 << 22)
    (tmp_path / "a").write_bytes(bomb)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"a:1: is longer than 4 MiB; is this a text file\?"):
            list(line_blocks(str(tmp_path / "a")))
        assert tracemalloc.get_traced_memory()[1] < 25e6
    finally:
        tracemalloc.stop()


def test_a_long_line_is_named_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "LONGEST_LINE", 50)
    for start in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "a").write_bytes(start + b"1\n22\n333\n" + b"4" * 99 + b"\n")
        for size in (5, 7, 20, 200):
            found = b""
            with pytest.raises(DataError, match="a:4: is longer") if size < 200 else nullcontext():
                for block in line_blocks(str(tmp_path / "a"), size):
                    found += block
            assert found[:9] == b"1\n22\n333\n"


@pytest.mark.parametrize("change", ["grow", "shrink", "overwrite"])
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.svm"
    path.write_bytes(CONTENT * 500)
    # The clock of a file system may have steps of several milliseconds.
    os.utime(path, ns=(1, 1))
    reading = read([str(path)], DataSpec())
    next(reading)
    if change == "overwrite":
        path.write_bytes(CONTENT * 500)
    else:
        os.truncate(path, 10 if change == "shrink" else 10**8)
    with pytest.raises(DataError, match=r"a\.svm(: has changed while it was read|:\d+: )"):
        list(reading)


def test_a_file_that_is_deleted_or_replaced_while_it_is_read_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "a.svm"
    path.write_bytes(CONTENT * 500)
    reading = read([str(path)], DataSpec())
    found = len(next(reading))
    path.unlink()
    path.write_text("other")
    assert found + sum(map(len, reading)) == 400 * 500


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe1\x00", "is UTF-16 text; convert it, as by iconv -f UTF-16"),
        (b"\xff\xfe\x00\x001\x00\x00\x00", "is UTF-32 text"),
        (b"\xfe\xff\x001", "is UTF-16 text"),
        (gzip.compress(gzip.compress(CONTENT)), "is compressed twice, inside as gz"),
        (b"PK\x03\x04\x14\x00\x00", "is a zip archive; unpack it first"),
        (gzip.compress(b"PAR1\x15\x04"), "is a Parquet file"),
        (b"\x89HDF\r\n\x1a\n\x00", "is an HDF5 file where text was expected"),
        (b"a" + 256 * b"\0" + b"ustar\0" + 250 * b"\0", "is a tar archive; unpack it first"),
        (b"1,x\r0,y\r", "has lines that end in CR alone; convert it, as by tr"),
        (b"1,x\r0,y", "has lines that end in CR alone"),
    ],
)
def test_files_that_are_not_text_are_named_by_their_type(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DataError, match=f"a:1: {said}"):
        list(line_blocks(str(tmp_path / "a")))


def test_files_that_are_named_twice_are_reported(tmp_path: Path) -> None:
    for name in ("a.svm", "b.svm"):
        (tmp_path / name).write_bytes(CONTENT)
    said = unusual_files(DataSpec(train=["a.svm", "*.svm"]), str(tmp_path))
    assert said == f"1 files are named, and read, more than once, the first: {tmp_path}/a.svm"


def test_files_that_hold_nothing_are_distinguished(tmp_path: Path) -> None:
    for name, content in (
        ("a", CONTENT), ("b", b""), ("c.gz", gzip.compress(b"")), ("d", b"\xef\xbb\xbf"), ("e", b"\n"),
        ("f.gz", gzip.compress(b"\xef\xbb\xbf")), ("g.xz", b"damaged"), ("h", CONTENT),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(content)
    assert [Path(each).name for each in expand("*", str(tmp_path))] == ["a", "e", "g.xz", "h"]
    said = unusual_files(DataSpec(train="*", test="b"), str(tmp_path))
    assert said == f"left out 4 empty files, the first: {tmp_path}/b"
    assert unusual_files(DataSpec(train="a"), str(tmp_path)) == ""
    assert len(expand(["b", "d"], str(tmp_path))) == 2  # so that the reader refuses them


def test_pipes_and_devices_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.svm")
    for name, said in ((str(tmp_path / "pipe.svm"), "is a named pipe"), ("/dev/zero", "is a device")):
        with pytest.raises(DataError, match=said):
            expand(name)
        with pytest.raises(DataError, match=said):
            list(read([name], DataSpec()))
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(DataError, match="can be read only once, by one process: write it to a file"):
            expand(f"/dev/fd/{read_end}")
    finally:
        os.close(read_end)
        os.close(write_end)
    with pytest.raises(JobError, match=r"no such file: /dev/fd/987; a pipe of the shell, as <\(\.\.\.\)"):
        expand("/dev/fd/987")
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(DataError, match="link: cannot be read: No such file"):
        expand(str(tmp_path / "link"))
    with pytest.raises(JobError, match="cannot be reached: File name too long"):
        expand("a" * 300)
    with pytest.raises(JobError, match="not a file name"):
        expand("a\0b")
