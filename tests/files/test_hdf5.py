"""HDF5 files that refer to other files are refused; files are written atomically."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from mpips.files.hdf5 import array, is_numeric, reading, texts, writing


def test_what_is_written_is_read(tmp_path: Path) -> None:
    with writing(tmp_path / "a.h5") as file:
        file["group/data"] = np.arange(5)
    with reading(tmp_path / "a.h5", follow=False) as file:
        assert file["group/data"][:].tolist() == [0, 1, 2, 3, 4]


def test_a_writer_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"before")
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "a.h5") as file:
        file["data"] = np.arange(5)
        raise ZeroDivisionError
    assert (tmp_path / "a.h5").read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1


def external_link(file: h5py.File) -> None:
    file["sub/there"] = h5py.ExternalLink("secret.h5", "data")


def external_data(file: h5py.File) -> None:
    file.create_dataset("sub/there", (4,), "u1", external=[("secret.txt", 0, 4)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((5,), "i8")
    layout[:] = h5py.VirtualSource("secret.h5", "data", (5,))
    file.create_virtual_dataset("sub/there", layout)


@pytest.mark.parametrize("refer", [external_link, external_data, virtual])
def test_a_file_that_refers_to_another_is_refused(tmp_path: Path, refer: object) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["fine"] = 1
        refer(file)  # type: ignore[operator]
    with (
        pytest.raises(OSError, match=r"a\.h5: 'sub/there' .*it is refused"),
        reading(tmp_path / "a.h5", follow=True),
    ):
        pass


def contiguous(file: h5py.File) -> None:
    file.create_dataset("sub/there", (2**41,), "i8")


def chunked(file: h5py.File) -> None:
    data = file.create_dataset("sub/there", (2**41,), "i8", chunks=(1 << 16,))
    data[:100] = 1


def large_chunk(file: h5py.File) -> None:
    file.create_dataset("sub/there", (2**29,), "i4", chunks=(2**29,), compression="gzip")


def scalar(file: h5py.File) -> None:
    text = h5py.h5t.C_S1.copy()
    text.set_size(2_000_000_000)
    file.create_group("sub")
    h5py.h5d.create(file.id, b"sub/there", text, h5py.h5s.create(h5py.h5s.SCALAR))


@pytest.mark.parametrize("declare", [contiguous, chunked, large_chunk, scalar])
def test_a_file_that_declares_what_it_does_not_hold_is_refused(tmp_path: Path, declare: object) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        declare(file)  # type: ignore[operator]
    with (
        pytest.raises(OSError, match=r"a\.h5: 'sub/there' (declares|has chunks of) .*it is refused"),
        reading(tmp_path / "a.h5", follow=True),
    ):
        pass


def test_a_little_that_was_never_written_reads_as_zeros(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("data", (1000,), "i8")
    with reading(tmp_path / "a.h5", follow=True) as file:
        assert not file["data"][:].any()


def test_texts_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path, words = tmp_path / "a.h5", ["x" * 10**6, *("größe" for _ in range(99))]
    with h5py.File(path, "w") as file:
        begin = file.create_dataset("words", data=words, dtype=h5py.string_dtype()).id.get_offset()
        file.create_dataset("apart", data=words, dtype=h5py.string_dtype(), chunks=(64,))
    with reading(path, follow=True) as file:
        assert texts(file, "words") == words
        with pytest.raises(TypeError, match="/apart is not a list of texts that are one after the other"):
            texts(file, "apart")
    raw = bytearray(path.read_bytes())
    raw[begin : begin + 16 * 100] = raw[begin : begin + 16] * 100
    path.write_bytes(raw)
    with pytest.MonkeyPatch.context() as patch, reading(path, follow=True) as file:
        patch.setattr("mpips.files.hdf5.SLACK", 1 << 20)
        with pytest.raises(OSError, match=r"words declares .* more than are in the file"):
            texts(file, "words")


def test_only_numbers_are_read_as_numbers(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["numbers"], file["texts"] = [1.0, 2.0], ["a", "b"]
        file.create_dataset("lists", (2,), h5py.vlen_dtype(np.int64))
        h5py.h5d.create(file.id, b"times", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((2,)))
    with reading(tmp_path / "a.h5", follow=True) as file:
        assert array(file, "numbers").tolist() == [1.0, 2.0]
        assert [name for name in file if is_numeric(file[name])] == ["numbers"]
        for name in ("texts", "lists", "times"):
            with pytest.raises(TypeError, match=f"{name} is not an array of numbers"):
                array(file, name)


def test_chunks_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path, packed = tmp_path / "a.h5", zlib.compress(np.random.default_rng(1).bytes(4096))
    with h5py.File(path, "w") as file:
        data = file.create_dataset("sub/there", (1024 * 64,), "i4", chunks=(1024,), compression="gzip")
        for at in range(64):
            data.id.write_direct_chunk((1024 * at,), b"x" if at else packed)
        places = [data.id.get_chunk_info(at).byte_offset.to_bytes(8, "little") for at in range(64)]
    with reading(path, follow=True) as file:
        assert file["sub/there"].shape == (1024 * 64,)
    raw = bytearray(path.read_bytes())
    for place in places[1:]:
        # Before it in the tree: the size, a mask, and the offsets of two dimensions.
        at = raw.index(place)
        raw[at : at + 8], raw[at - 24 : at - 20] = places[0], len(packed).to_bytes(4, "little")
    path.write_bytes(raw)
    shared = pytest.raises(OSError, match=r"'sub/there' .* share their bytes; it is refused")
    with shared, reading(path, follow=True):
        pass


def test_data_that_deflate_cannot_have_packed_are_refused(tmp_path: Path) -> None:
    """As the filter scaleoffset packs them: any number of equal numbers in some bytes."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("sub/there", (1 << 26,), "i4", chunks=(1 << 20,), scaleoffset=0)
        for at in range(64):
            data.id.write_direct_chunk((at << 20,), b"x" * 21)
    much = pytest.raises(OSError, match="'sub/there' declares 268,435,456 bytes and holds at most 1,478,400")
    with much, reading(tmp_path / "a.h5", follow=True):
        pass


def test_many_texts_in_a_small_file_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("words", (60_000_000,), "S1")
        file.create_dataset("others", (4_000_000,), h5py.string_dtype())
        file["few"] = np.array([b"one", b"more"])
    with reading(tmp_path / "a.h5", follow=True) as file:
        for name in ("words", "others"):
            with pytest.raises(OSError, match=f"{name} declares .* texts, more than are in the file"):
                texts(file, name)
        assert texts(file, "few") == ["one", "more"]


@pytest.mark.parametrize("what", ["attribute", "single", "words"])
@pytest.mark.parametrize("length", [0, 69, 2**40, 2**63])
def test_damaged_texts_are_refused_and_not_read_without_end(tmp_path: Path, what: str, length: int) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        if what == "attribute":
            file.attrs["program"] = "peace"
        elif what == "single":
            file["meta"] = "peace"
        else:
            file["words"] = ["peace", "bread"]
    with reading(path, follow=True) as file:
        assert what != "words" or texts(file, "words") == ["peace", "bread"]
    raw = bytearray(path.read_bytes())
    # Before a text: its number and, from 8 bytes before it on, its length.
    at = raw.index(b"peace")
    assert raw[at - 8 : at] == (5).to_bytes(8, "little")
    raw[at - 8 : at] = length.to_bytes(8, "little")
    if length == 0:
        # Free, and of no length.
        raw[at - 16 : at - 14] = bytes(2)
    path.write_bytes(raw)
    with (
        pytest.raises(OSError, match="is damaged: its texts are not whole"),
        reading(path, follow=True) as file,
    ):
        texts(file, "words")


@pytest.mark.parametrize("views", [(), ("secret.h5",)])
@pytest.mark.parametrize("change", ["dimensions", "cut", "version"])
def test_a_damaged_virtual_dataset_does_not_end_the_process(
    tmp_path: Path, views: tuple[str, ...], change: str
) -> None:
    """HDF5 would write to memory that is not its own."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout((5,), "i8")
        layout[1:3] = h5py.VirtualSource("secret.h5", "data", (5,))[2:4]
        file.create_virtual_dataset("sub/there", layout)
    if views:
        with reading(path, follow=True, view_files=views) as file:
            assert file["sub/there"].shape == (5,)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"data\0") + 5
    kind, version, _, _, dimensions, _ = struct.unpack_from("<6I", raw, at)
    assert (kind, version, dimensions) == (2, 1, 1)
    place = {"dimensions": at + 16, "cut": at + 12, "version": at + 4}[change]
    raw[place : place + 4] = b"\xff\xff\0\0"
    path.write_bytes(raw)
    with pytest.raises(OSError, match="it is refused"), reading(path, follow=True, view_files=views):
        pass
