"""Opening and replacing files of any type."""

from __future__ import annotations

import errno
import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest

from mpips.files.safe_open import (
    create_exclusively,
    inside,
    make_folder,
    open_own,
    open_regular,
    read_bytes,
    replacing,
)


def test_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    with open_regular(tmp_path / "a", follow=False) as file:
        assert file.read() == b"abc"
    assert read_bytes(tmp_path / "a", follow=False, most=3) == b"abc"
    with pytest.raises(OSError, match="more than the allowed 2 bytes"):
        read_bytes(tmp_path / "a", follow=False, most=2)


def test_files_that_are_not_regular_are_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for name, said in (
            ("pipe", "is a named pipe"),
            ("folder", "is a folder"),
            ("socket", "is not a regular file"),
        ):
            with pytest.raises(OSError, match=said) as caught:
                open_regular(tmp_path / name, follow=True)
            assert caught.value.filename == str(tmp_path / name)
    with pytest.raises(OSError, match="is a device"):
        open_regular("/dev/zero", follow=True)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "nothing", follow=True)


def test_a_link_is_followed_only_where_that_is_meant(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("a")
    assert read_bytes(tmp_path / "link", follow=True) == b"abc"
    with pytest.raises(OSError, match="symbolic link") as caught:
        read_bytes(tmp_path / "link", follow=False)
    assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc/passwd", "../a", "a\0b"])
def test_only_plain_file_names_are_accepted_in_a_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match="not a plain file name"):
        inside(tmp_path, name)
    assert inside(tmp_path, "a.h5") == tmp_path / "a.h5"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("precious")
    path = tmp_path / "a"
    path.symlink_to(other)
    with pytest.raises(ZeroDivisionError), replacing(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.is_symlink() and sorted(os.listdir(tmp_path)) == ["a", "other"]
    with replacing(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole" and not path.is_symlink() and other.read_text() == "precious"
    mask = os.umask(0o022)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_what_cannot_be_written_names_the_file_that_was_meant(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "nowhere" / "a"):
        pass
    assert caught.value.filename == str(tmp_path / "nowhere" / "a")


def test_a_file_that_grows_is_no_link_and_no_pipe(tmp_path: Path) -> None:
    for _ in range(2):
        handle = open_own(tmp_path / "new" / "a", append=True)
        os.write(handle, b"ab")
        os.close(handle)
    assert (tmp_path / "new" / "a").read_bytes() == b"abab"
    os.close(open_own(tmp_path / "new" / "a"))
    assert (tmp_path / "new" / "a").read_bytes() == b""
    os.close(open_own(os.path.relpath(tmp_path / "b")))
    (tmp_path / "theirs").write_text("kept")
    (tmp_path / "link").symlink_to("theirs")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    for append in (True, False):
        for name, said in (("link", "symbolic link"), ("dangling", "symbolic link"), ("pipe", "named pipe")):
            with pytest.raises(OSError, match=said):
                open_own(tmp_path / name, append=append)
    assert (tmp_path / "theirs").read_text() == "kept" and not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["/dev/null", "/dev/stdout"])
def test_a_device_is_not_replaced(name: str) -> None:
    before = os.lstat(name)
    with pytest.raises(OSError, match="is a device") as caught, replacing(name):
        pass
    assert caught.value.filename == name
    assert os.path.samestat(os.lstat(name), before)


def test_a_named_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is a named pipe") as caught, replacing(tmp_path / "pipe"):
        pass
    assert caught.value.filename == str(tmp_path / "pipe")
    assert stat.S_ISFIFO(os.lstat(tmp_path / "pipe").st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_text_is_written_as_it_stands(tmp_path: Path) -> None:
    with replacing(tmp_path / "a", "w", durable=False) as file:
        file.write("é\n")
    assert (tmp_path / "a").read_bytes() == "é\n".encode()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~os.umask(os.umask(0o022))


@pytest.mark.parametrize("links", [True, False])
def test_one_of_all_that_create_a_file_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("this file system has no hard links")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda n: create_exclusively(tmp_path / "a", bytes([n] * 99)), range(8)))
    assert sorted(made) == [False] * 7 + [True]
    assert (tmp_path / "a").read_bytes() == bytes([made.index(True)] * 99)
    assert os.listdir(tmp_path) == ["a"], "no draft is left"
    with pytest.raises(FileNotFoundError):
        create_exclusively(tmp_path / "nowhere" / "a", b"")


def test_the_umask_is_read_without_setting_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o077)
    try:
        # Another thread would create its files under the mask that is set meanwhile, or keep it for good.
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail(f"the umask is set to {mask:o}"))
        with replacing(tmp_path / "a", "w") as file:
            file.write("x")
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_a_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b", exist_ok=True)
    assert (tmp_path / "a" / "b").is_dir()
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "a")


@pytest.mark.parametrize(
    ("error", "fails"), [(errno.EINVAL, False), (errno.EACCES, False), (errno.EIO, True)]
)
def test_a_folder_above_that_cannot_be_synced_matters_only_if_the_disk_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int, fails: bool
) -> None:
    def refuse(handle: int) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="error") if fails else nullcontext():
        make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
