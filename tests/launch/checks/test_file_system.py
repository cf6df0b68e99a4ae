"""The checks of a file system, by ranks that are threads, on a real one and on ones with faults."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mpips.launch.checks import file_system
from mpips.launch.checks.check import Check, Verdict
from mpips.launch.checks.file_system import Files, RealFiles

RANKS = 3
HOSTS = dict(enumerate(("a", "a", "b")))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_system, "REPLACING", 0.02)


def check(name: str, folder: Path, of: Callable[[int], Files], limit: float = 20.0) -> Check:
    """Do a check with `RANKS` ranks, each on what it sees of the file system; `limit` is that of the last rank (s)."""
    barrier = threading.Barrier(RANKS, timeout=30.0)

    def wait() -> None:
        barrier.wait()

    def rank(number: int) -> file_system.Facts:
        steps = file_system.steps(name, of(number), folder, number, limit if number == 2 else 20.0)
        return file_system.take(steps, wait)

    with ThreadPoolExecutor(RANKS) as threads:
        found = dict(enumerate(threads.map(rank, range(RANKS))))
    return file_system.judge(name, found, HOSTS, str(folder))


@pytest.mark.parametrize("name", file_system.NAMES)
def test_a_sound_file_system_passes(name: str, tmp_path: Path) -> None:
    found = check(name, tmp_path, lambda rank: RealFiles())
    assert found.name == name
    # A disk that is busy with other things may be slow.
    assert found.verdict in {Verdict.OK, *([Verdict.WARN] if name == "fsync" else [])}


class Blind(RealFiles):
    """Sees none of the others' files."""

    def read(self, path: Path) -> str:
        raise FileNotFoundError(2, "No such file or directory")


def test_a_node_that_does_not_see_the_others_files_fails(tmp_path: Path) -> None:
    found = check("visibility", tmp_path, lambda rank: Blind() if rank == 2 else RealFiles(), limit=0.05)
    assert found.verdict is Verdict.FAIL
    assert found.value == "rank 2 on b does not see what rank 0 on a writes"
    assert "--folder" in found.mend


def test_a_node_that_sees_files_late_is_a_warning() -> None:
    facts = {0: {"created": 0.0, "replaced": 0.0}, 1: {"created": 0.2, "replaced": 3.0}}
    found = file_system.judge("visibility", facts, HOSTS, "/x")
    assert (found.verdict, found.value) == (Verdict.WARN, "seen by all ranks after 3.0 s (rank 1 on a last)")
    assert "actimeo" in found.mend


def test_a_folder_that_a_node_does_not_have_fails_with_its_error(tmp_path: Path) -> None:
    class Missing(RealFiles):
        def replace(self, path: Path, text: str) -> None:
            raise PermissionError(13, "Permission denied")

    found = check("fsync", tmp_path, lambda rank: Missing() if rank == 2 else RealFiles())
    assert (found.verdict, found.value) == (Verdict.FAIL, "rank 2 on b: Permission denied")
    assert f"see {tmp_path}" in found.mend


class InPlace(RealFiles):
    """Writes over the old content, as an object store behind FUSE may."""

    def replace(self, path: Path, text: str) -> None:
        with path.open("w") as file:
            file.write(text[:100])
            file.flush()
            file.write(text[100:])


class Outdated(RealFiles):
    """Remembers what it has read, for every second read."""

    def __init__(self) -> None:
        self._kept: list[str] = []

    def read(self, path: Path) -> str:
        now = super().read(path)
        self._kept.append(now)
        return self._kept[0] if len(self._kept) % 2 == 0 else now


def test_files_that_are_written_in_place_fail(tmp_path: Path) -> None:
    found = check("atomic rename", tmp_path, lambda rank: InPlace())
    assert found.verdict is Verdict.FAIL and "torn" in found.value and "all whole" not in found.value


def test_reads_that_go_back_in_time_fail(tmp_path: Path) -> None:
    class Slow(RealFiles):
        """Replaces a file no faster than readers see it."""

        def replace(self, path: Path, text: str) -> None:
            super().replace(path, text)
            threading.Event().wait(0.004)

    found = check("atomic rename", tmp_path, lambda rank: Outdated() if rank == 2 else Slow())
    assert found.verdict is Verdict.FAIL and "older" in found.value


def test_a_reader_that_never_sees_the_last_version_fails(tmp_path: Path) -> None:
    found = check("atomic rename", tmp_path, lambda rank: Blind() if rank == 2 else RealFiles(), limit=0.05)
    assert found.verdict is Verdict.FAIL
    assert "missing" in found.value and "rank 2 on b never saw the last version" in found.value


def test_slow_syncs_are_a_warning_and_lost_writes_fail(tmp_path: Path) -> None:
    slow = file_system.judge("fsync", {0: {"seconds": 0.01}, 2: {"seconds": 2.0}}, HOSTS, "/x")
    assert (slow.verdict, slow.value) == (Verdict.WARN, "2.0 s for a durable write (rank 2 on b)")

    class Forgets(RealFiles):
        def read(self, path: Path) -> str:
            return ""

    lost = check("fsync", tmp_path, lambda rank: Forgets())
    assert lost.verdict is Verdict.FAIL and "not read back" in lost.value


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path) -> None:
    class NoLocks(RealFiles):
        def lock(self, path: Path) -> Callable[[], None]:
            raise OSError(38, "Function not implemented")

    found = check("locks", tmp_path, lambda rank: NoLocks())
    assert found.verdict is Verdict.WARN and "no flock: Function not implemented (rank 0 on a)" in found.value
    assert "NUMBA_CACHE_DIR" in found.mend


def test_locks_that_are_only_known_on_their_node_are_a_warning(tmp_path: Path) -> None:
    class OfNode(RealFiles):
        def lock(self, path: Path) -> Callable[[], None]:
            return super().lock(path.with_name("of-b"))

    found = check("locks", tmp_path, lambda rank: OfNode() if rank == 2 else RealFiles())
    assert found.verdict is Verdict.WARN
    assert found.value == "flock is granted to ranks 0 on a and 2 on b at once"


def test_exclusive_creation_by_two_ranks_fails(tmp_path: Path) -> None:
    class Creates(RealFiles):
        def create(self, path: Path, text: str) -> bool:
            return True

    found = check("locks", tmp_path, lambda rank: Creates() if rank else RealFiles())
    assert found.verdict is Verdict.FAIL and "two runs could claim one folder" in found.mend
