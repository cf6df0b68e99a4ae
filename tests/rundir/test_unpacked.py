"""Decompressed files that processes share: the same bytes as alone, whoever dies, hangs, or finds no room."""

from __future__ import annotations

import bz2
import fcntl
import gzip
import lzma
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from mpips.data import DataSpec, read, stream
from mpips.data.compression import compression_of, decompressed, open_data
from mpips.data.stream import chunks
from mpips.errors import DataError
from mpips.rundir import unpacked
from mpips.rundir.unpacked import COMPLETE, GIVEN_UP, GROWING, Unpacked, name_of

CONTENT = random.Random(1).randbytes(300_000)
MOST = 1e9


def zstd(data: bytes) -> bytes:
    library = pytest.importorskip("zstandard", reason="the optional zstandard package is not installed")
    return bytes(library.ZstdCompressor(write_checksum=True).compress(data))


PACKERS = [gzip.compress, lzma.compress, bz2.compress, zstd]


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were decompressed, each time; the folder of temporary files may be in memory."""
    found: list[str] = []

    def counting(path: str, *rest: object) -> object:
        found.append(path)
        return decompressed(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(stream, "decompressed", counting)
    monkeypatch.setattr(unpacked, "IN_MEMORY", ())
    monkeypatch.setattr(unpacked, "ROOM_PART", 0.0)
    monkeypatch.setattr(unpacked, "ROOM", 0)
    return found


@contextmanager
def process(folder: Path, run: str = "run", most: float = MOST) -> Iterator[Unpacked]:
    """Another process of a host: it has its own locks."""
    made = Unpacked(run, most, str(folder))
    try:
        yield made
    finally:
        made.leave()


def whole(here: Unpacked, path: Path, size: int = 70_000) -> bytes:
    """Read a file's decompressed bytes, as `chunks` does."""
    with closing(open_data(str(path))) as file:
        kind = compression_of(str(path), file)
        alone = partial(stream.decompressed, str(path), file, kind)
        with closing(here.open(str(path), file, chunks, alone)) as shared:
            return b"".join(iter(lambda: shared.read(size), b""))


def packed(folder: Path, content: bytes = CONTENT, pack: Callable[[bytes], bytes] = gzip.compress) -> Path:
    path = folder / "a"
    path.write_bytes(pack(content))
    return path


def kept(here: Unpacked, path: Path) -> Path:
    """Return the file of a file's decompressed bytes."""
    return here.path / name_of(os.stat(path))


@pytest.mark.parametrize("pack", PACKERS)
def test_one_process_decompresses_for_all(
    tmp_path: Path, counted: list[str], pack: Callable[[bytes], bytes]
) -> None:
    path = packed(tmp_path, CONTENT[:150_000], pack)
    path.write_bytes(path.read_bytes() + pack(CONTENT[150_000:]))
    with process(tmp_path) as first, process(tmp_path) as second:
        assert whole(first, path) == whole(second, path, 999) == whole(second, path) == CONTENT
        assert counted == [str(path)]
        assert os.stat(first.path).st_mode & 0o777 == 0o700
    assert list(tmp_path.iterdir()) == [path]


def test_empty_streams(tmp_path: Path) -> None:
    with process(tmp_path) as here:
        assert whole(here, packed(tmp_path, b"")) == b""


@pytest.mark.parametrize("begin", [0, 1, 65_536, 299_999, 300_000])
def test_a_dead_writers_file_is_completed(tmp_path: Path, begin: int) -> None:
    path = packed(tmp_path)
    with process(tmp_path) as here, process(tmp_path) as other:
        kept(here, path).write_bytes(CONTENT[:begin])
        kept(here, path).chmod(GROWING)
        assert whole(here, path) == CONTENT == whole(other, path)
        assert kept(here, path).read_bytes() == CONTENT
        assert kept(here, path).stat().st_mode & 0o777 == COMPLETE


def test_a_writer_that_leaves_is_followed_by_a_reader(tmp_path: Path) -> None:
    path = packed(tmp_path)
    with process(tmp_path) as here, closing(open_data(str(path))) as file:

        def leaves(name: str) -> Iterator[bytes]:
            yield CONTENT[:100_000]
            first._left.set()
            yield CONTENT[100_000:]

        with (
            process(tmp_path) as first,
            closing(first.open(str(path), file, leaves, lambda: file)) as reader,  # type: ignore[arg-type]
        ):
            assert reader.read(100_000) == CONTENT[:100_000]
        assert kept(here, path).read_bytes() == CONTENT[:100_000]
        assert whole(here, path) == CONTENT


def test_a_killed_writer(tmp_path: Path) -> None:
    path = packed(tmp_path, CONTENT * 4)
    program = """
import sys, time
from contextlib import closing
from mpips.rundir import unpacked
unpacked.IN_MEMORY, unpacked.ROOM, unpacked.ROOM_PART = (), 0, 0.0
from mpips.data.stream import chunks
def slow(path):
    for piece in chunks(path, 100_000):
        yield piece
        print(len(piece), flush=True)
        time.sleep(0.3 if piece else 0)
here = unpacked.Unpacked("run", 1e9, sys.argv[1])
with open(sys.argv[2], "rb") as file, closing(here.open(sys.argv[2], file, slow, None)) as shared:
    shared.read()
"""
    with process(tmp_path) as here:
        command = [sys.executable, "-c", program, str(tmp_path), str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            for _ in range(2):
                writer.stdout.readline()
            writer.kill()
        written = kept(here, path).stat()
        assert 100_000 <= written.st_size < 4 * len(CONTENT) and written.st_mode & 0o777 == GROWING
        assert whole(here, path) == CONTENT * 4 == kept(here, path).read_bytes()


def test_a_writer_that_hangs_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked, "PATIENCE", 0.05)
    path = packed(tmp_path)
    with process(tmp_path) as here:
        kept(here, path).write_bytes(CONTENT[:1000])
        kept(here, path).chmod(GROWING)
        with kept(here, path).open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert whole(here, path) == CONTENT
        assert kept(here, path).read_bytes() == CONTENT[:1000]


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[str]) -> None:
    path, write, wrote = packed(tmp_path), os.write, 0

    def full(handle: int, data: memoryview) -> int:
        nonlocal wrote
        if wrote:
            raise OSError(28, "No space left on device")
        wrote = write(handle, data[:70_000])
        return wrote

    monkeypatch.setattr(os, "write", full)
    with process(tmp_path) as here, process(tmp_path) as other:
        assert whole(here, path) == CONTENT == whole(other, path)
        found = kept(here, path).stat()
        assert found.st_size == 0 and found.st_mode & 0o777 == GIVEN_UP and wrote == 70_000
        # One attempt, and each by itself.
        assert len(counted) == 3


@pytest.mark.parametrize("limit", ["room", "most"])
def test_the_disk_is_not_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    path = packed(tmp_path)
    if limit == "room":
        monkeypatch.setattr(unpacked, "ROOM", 1 << 60)
    with process(tmp_path, most=MOST if limit == "room" else len(CONTENT) - 1) as here:
        assert whole(here, path) == CONTENT
        assert kept(here, path).stat().st_size == 0


def test_errors_are_those_of_a_file_that_is_not_shared(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    with unpacked_here(tmp_path):
        for damaged in (gzip.compress(CONTENT)[:-9], gzip.compress(CONTENT)[:-9] + b"\1" * 9):
            path.write_bytes(damaged)
            found = []
            for readers in (1, 2):
                with pytest.raises(DataError) as error:
                    list(chunks(str(path), 1000, readers))
                found.append(str(error.value))
            assert found[0] == found[1]


@contextmanager
def unpacked_here(folder: Path) -> Iterator[None]:
    """Share the files of this process in a folder."""
    before = unpacked.tempfile.tempdir
    unpacked.tempfile.tempdir = str(folder)
    try:
        with unpacked.sharing("run", 1.0):
            yield
    finally:
        unpacked.tempfile.tempdir = before


@pytest.mark.parametrize(
    "name, text", [("a.svm", "%d %d:0.5\n"), ("a.tsv", "%d\tx%d\n"), ("a.csv", "%d,%d\n")]
)
def test_parts_share_files_of_text(tmp_path: Path, counted: list[str], name: str, text: str) -> None:
    lines = "".join(text % (row % 2, row + 1) for row in range(500))
    spec = DataSpec()
    if name.endswith(".csv"):
        pytest.importorskip("pyarrow")
        lines, spec = "y,x\n" + lines, DataSpec(label="y", numeric={"x": "plain"})
    paths = [tmp_path / f"{name}{end}" for end in ("", ".gz")]
    paths[0].write_text(lines)
    paths[1].write_bytes(gzip.compress(lines.encode()))
    found = []
    with unpacked_here(tmp_path):
        for path in paths:
            counted.clear()
            parts = [list(read([str(path)], spec, part, 3)) for part in range(3)]
            found.append([[each.keys.tolist() for each in part] for part in parts])
        # The first lines are read by each, to find columns; all of the file by one.
        heads = 0 if name.endswith(".svm") else 3
        assert counted.count(str(paths[1])) - heads * (2 if name.endswith(".csv") else 1) <= 1 + heads
    assert found[0] == found[1] and sum(map(len, found[0])) > 0
    assert sorted(each.name for each in tmp_path.iterdir()) == [name, f"{name}.gz"]


def test_a_file_that_is_replaced_is_decompressed_anew(tmp_path: Path) -> None:
    path = packed(tmp_path)
    with process(tmp_path) as here:
        assert whole(here, path) == CONTENT
        path.unlink()
        assert whole(here, packed(tmp_path, b"other" * 100)) == b"other" * 100


@pytest.mark.parametrize("kind", ["link", "open", "file"])
def test_a_folder_of_others_is_not_used(tmp_path: Path, kind: str) -> None:
    with process(tmp_path) as here:
        path = here.path
    (tmp_path / "other").mkdir(mode=0o700)
    if kind == "link":
        path.symlink_to(tmp_path / "other")
    elif kind == "open":
        path.mkdir()
        path.chmod(0o750)
    else:
        path.write_bytes(b"")
    with pytest.raises(OSError, match=r"Too many|[Oo]ther|[Nn]ot a"):
        Unpacked("run", MOST, str(tmp_path))
    with unpacked_here(tmp_path):
        assert b"".join(chunks(str(packed(tmp_path)), 1000, 2)) == CONTENT


def test_memory_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacked, "file_system", lambda device: "tmpfs")
    monkeypatch.setattr(unpacked, "IN_MEMORY", ("tmpfs",))
    with pytest.raises(OSError, match="is in memory"):
        Unpacked("run", MOST, str(tmp_path))


def test_hosts_and_runs_do_not_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[str]
) -> None:
    path = packed(tmp_path)
    with process(tmp_path) as here, process(tmp_path, "other") as other:
        monkeypatch.setattr(unpacked, "machine", lambda: b"12345678")
        with process(tmp_path) as there:
            assert whole(here, path) == whole(other, path) == whole(there, path) == CONTENT
            assert len({here.path, other.path, there.path}) == 3 and len(counted) == 3


def test_the_folder_of_a_killed_run_is_removed_by_the_next_one(tmp_path: Path) -> None:
    path = packed(tmp_path)
    killed, alive = Unpacked("killed", MOST, str(tmp_path)), Unpacked("alive", MOST, str(tmp_path))
    assert whole(killed, path) == whole(alive, path) == CONTENT
    os.close(killed._folder)
    with process(tmp_path):
        assert not killed.path.exists() and alive.path.exists()
    alive.leave()


def test_only_decompressed_files_are_removed(tmp_path: Path) -> None:
    mine = tmp_path / f"mpips-unpacked-{os.geteuid()}-results"
    mine.mkdir(mode=0o700)
    (mine / "a.txt").write_text("a")
    with process(tmp_path) as here:
        assert whole(here, packed(tmp_path)) == CONTENT
        moved = here.path.rename(tmp_path / "moved")
        here.path.mkdir()
        (here.path / "b.txt").write_text("b")
    assert (mine / "a.txt").read_text() == "a" and (here.path / "b.txt").read_text() == "b"
    assert list(moved.iterdir()) == []


def test_a_folder_that_gives_its_group_to_new_ones_is_used(tmp_path: Path, counted: list[str]) -> None:
    tmp_path.chmod(0o2700)
    path = packed(tmp_path)
    with process(tmp_path) as first, process(tmp_path) as second:
        assert whole(first, path) == whole(second, path) == CONTENT and len(counted) == 1


@pytest.mark.parametrize("begun", [0, 1000])
def test_no_byte_is_of_a_file_that_was_replaced_meanwhile(tmp_path: Path, begun: int) -> None:
    path = packed(tmp_path)
    with process(tmp_path) as here, closing(open_data(str(path))) as file:
        kept(here, path).write_bytes(CONTENT[:begun])
        kept(here, path).chmod(GROWING)
        path.unlink()
        packed(tmp_path, b"other" * 50_000)
        alone = partial(decompressed, str(path), file, "gz")
        with closing(here.open(str(path), file, chunks, alone)) as shared:
            assert shared.read() == CONTENT
