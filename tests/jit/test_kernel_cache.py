"""Compiled kernels are cached only where no other user can replace them, whatever the home folder is."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpips.jit import kernel_cache
from mpips.process import user_folders

ROOT = Path(__file__).resolve().parents[2]
STRANGER = 12345
KERNELS = """
from mpips.jit.kernel import kernel

@kernel("i8(i8)")
def double(x):
    return x + x

print(double(21), double._cache.cache_path if hasattr(double._cache, "_cache_file") else "nowhere")
"""


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (kernel_cache.NAMED, kernel_cache.REPORTED, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "sources").mkdir()
    kernel_cache.place.cache_clear()
    yield
    kernel_cache.place.cache_clear()


def deny(path: Path) -> None:
    """Put a file where a folder would be: nothing can be made there, not even by root."""
    path.touch()


def place(tmp_path: Path) -> kernel_cache.Place:
    kernel_cache.place.cache_clear()
    return kernel_cache.place(str(tmp_path / "sources"))


def test_kernels_are_cached_in_the_folder_of_their_sources(tmp_path: Path) -> None:
    found = place(tmp_path)
    assert found == (tmp_path / "sources" / "__pycache__", True, (), "")


def test_where_the_sources_cannot_be_written_they_are_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deny(tmp_path / "sources" / "__pycache__")
    found = place(tmp_path)
    assert found.folder is not None and not found.remark
    assert found.folder.parent == tmp_path / "home" / ".cache" / "mpips" / "kernels"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    found = place(tmp_path)
    assert found.folder is not None and found.folder.parent == tmp_path / "xdg" / "mpips" / "kernels"


@pytest.mark.parametrize("home", ["/nonexistent", "", "relative", "a file"])
def test_without_a_home_they_are_in_a_private_folder_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: str
) -> None:
    deny(tmp_path / "sources" / "__pycache__")
    deny(tmp_path / "a file")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # a user id that is not in the table
    monkeypatch.setenv("HOME", str(tmp_path / home) if home == "a file" else home)
    kernel_cache.place.cache_clear()
    found = kernel_cache.choose(str(tmp_path / "sources"))
    assert found.folder is not None
    private = tmp_path / "temporary" / f"mpips-kernels-{os.geteuid()}"
    assert found.folder.parent == private
    assert private.stat().st_mode & 0o777 == found.folder.stat().st_mode & 0o777 == 0o700
    kernel_cache.choose(str(tmp_path / "sources"))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and str(private) in said and "__pycache__" in said


def test_a_remark_that_the_launcher_has_printed_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(kernel_cache.REPORTED, "said")
    monkeypatch.setenv("HOME", "/nonexistent")
    deny(tmp_path / "sources" / "__pycache__")
    assert kernel_cache.choose(str(tmp_path / "sources")).remark
    assert not capsys.readouterr().err


def test_where_there_is_no_folder_at_all_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deny(tmp_path / "sources" / "__pycache__")
    deny(tmp_path / "home" / ".cache")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "home" / ".cache"))
    found = place(tmp_path)
    assert found.folder is None and "each process compiles" in found.remark


def foreign(path: Path) -> None:
    os.chown(path, STRANGER, STRANGER)


def open_to_all(path: Path) -> None:
    path.chmod(0o777)


def sticky(path: Path) -> None:
    path.chmod(0o1777)


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user, as root can")


@pytest.mark.parametrize("harm", [pytest.param(foreign, marks=as_root), open_to_all, sticky])
@pytest.mark.parametrize("which", ["named", "__pycache__", "cache", "above"])
def test_a_folder_that_others_can_write_to_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: object, which: str
) -> None:
    folder = {
        "named": tmp_path / "named",
        "__pycache__": tmp_path / "sources" / "__pycache__",
        "cache": tmp_path / "home" / ".cache" / "mpips" / "kernels",
        "above": tmp_path / "above" / "named",
    }[which]
    if which in ("named", "above"):
        monkeypatch.setenv(kernel_cache.NAMED, str(folder))
    if which == "cache":
        deny(tmp_path / "sources" / "__pycache__")
    folder.mkdir(parents=True)
    assert str(place(tmp_path).folder).startswith(str(folder))
    harm(folder.parent if which == "above" else folder)  # type: ignore[operator]
    found = place(tmp_path)
    if (which, harm) == ("above", sticky):  # as /tmp: others can put things beside ours, and leave ours alone
        assert found.folder is not None and folder in found.folder.parents
    else:
        assert found.folder is not None and folder not in (found.folder, *found.folder.parents)
        assert any("write to" in flaw or "another user" in flaw for flaw in found.flaws)
        assert (kernel_cache.NAMED in found.remark) is (which in ("named", "above"))


def test_a_temporary_folder_of_another_user_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deny(tmp_path / "sources" / "__pycache__")
    monkeypatch.setenv("HOME", "/nonexistent")
    taken = tmp_path / "temporary" / f"mpips-kernels-{os.geteuid()}"
    taken.mkdir()
    taken.chmod(0o777)
    found = place(tmp_path)
    assert found.folder is not None and found.folder.parent == taken.with_name(f"{taken.name}-1")


def test_a_group_that_can_write_is_named(tmp_path: Path) -> None:
    assert not kernel_cache.shared_with(tmp_path)
    tmp_path.chmod(0o770)
    assert not kernel_cache.shared_with(tmp_path)  # the user's own
    if os.geteuid() == 0:
        os.chown(tmp_path, 0, STRANGER)
        assert kernel_cache.shared_with(tmp_path) == f"group {STRANGER}"


def compiled(folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    if not (folder / "made.py").exists():
        (folder / "made.py").write_text(KERNELS)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-B", "-c", "import made"], cwd=folder, capture_output=True, text=True, timeout=120,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{folder}{os.pathsep}{paths}", **environ}, check=False,
    )  # fmt: skip


def test_a_first_start_says_what_it_does_and_the_next_says_nothing(tmp_path: Path) -> None:
    sources, cache = tmp_path / "sources", tmp_path / "home" / ".cache"
    done = compiled(sources, HOME=str(tmp_path / "home"))
    assert done.stdout.split() == ["42", str(sources / "__pycache__")]
    assert done.stderr.count("\n") == 1 and "compiling kernels, once for this machine, into" in done.stderr
    assert not compiled(sources, HOME=str(tmp_path / "home")).stderr and not cache.exists()
    other = compiled(sources, OMPI_COMM_WORLD_RANK="1", NUMBA_CACHE_DIR=str(tmp_path / "named"))
    assert str(tmp_path / "named") in other.stdout and not other.stderr  # rank 0 says it for all


def test_kernels_that_can_be_kept_nowhere_are_compiled(tmp_path: Path) -> None:
    deny(tmp_path / "sources" / "__pycache__")
    for name in ("TMPDIR", "home/.cache"):
        deny(tmp_path / name)
    code = f"import tempfile; tempfile.tempdir = {str(tmp_path / 'TMPDIR')!r}\n"
    (tmp_path / "sources" / "sitecustomize.py").write_text(code)
    done = compiled(tmp_path / "sources", HOME=str(tmp_path / "home"))
    assert done.stdout.split() == ["42", "nowhere"], done.stderr
    assert "each process compiles them" in done.stderr and "Traceback" not in done.stderr


def test_kernels_that_another_user_has_compiled_for_all_are_not_compiled_again(tmp_path: Path) -> None:
    sources, home = tmp_path / "sources", tmp_path / "home"
    (sources / "made.py").write_text(KERNELS.partition("print(")[0] + "print(double(21))\n")
    assert "compiling" in compiled(sources).stderr
    # As for a user who is not root.
    unwritable = (
        "import os\nold = os.access\ndef access(path, mode):\n"
        "    return not str(path).endswith('sources/__pycache__') and old(path, mode)\nos.access = access\n"
    )
    (sources / "sitecustomize.py").write_text(unwritable)
    done = compiled(sources, HOME=str(home))
    assert (done.stdout, done.stderr) == ("42\n", "") and not [*home.rglob("*.kernels")]
    # A change of the source, or a folder that a stranger can write to, makes a difference.
    (sources / "__pycache__").chmod(0o777)
    assert "compiling" in compiled(sources, HOME=str(home)).stderr and [*home.rglob("*.kernels")]
    (sources / "__pycache__").chmod(0o755)
    (sources / "made.py").write_text((sources / "made.py").read_text().replace("x + x", "x + x + 1"))
    done = compiled(sources, HOME=str(home))
    assert done.stdout == "43\n" and str(home) in done.stderr


@pytest.mark.drawn(1)
@pytest.mark.parametrize("suffix", ["nbi", "nbc"])
def test_a_kernel_that_was_cut_off_is_compiled_again(tmp_path: Path, suffix: str) -> None:
    compiled(tmp_path / "sources")
    for path in (tmp_path / "sources").rglob(f"*.{suffix}"):
        path.write_bytes(path.read_bytes()[:30])
    for _ in range(2):
        done = compiled(tmp_path / "sources")
        assert done.stdout.startswith("42"), done.stderr


def test_user_folders_that_do_not_exist_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert user_folders.home({"HOME": str(tmp_path)}) == tmp_path
    assert user_folders.home({"HOME": "/nonexistent"}) is None
    assert user_folders.config({"HOME": "/nonexistent"}) is None
    assert user_folders.config({"XDG_CONFIG_HOME": "/x"}) == Path("/x")
    assert user_folders.cache({"XDG_CACHE_HOME": "relative", "HOME": str(tmp_path)}) == tmp_path / ".cache"
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    assert user_folders.home({}) is None
