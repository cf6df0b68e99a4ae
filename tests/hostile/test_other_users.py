"""Two users of a node, root and `nobody`: neither can change, block or stop anything of the other.

It takes root, which runs the commands of both users.
"""

from __future__ import annotations

import importlib
import io
import os
import pkgutil
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mpips.checkpoint.manifest import complete
from mpips.cli.main import main
from mpips.errors import InputError
from mpips.files.safe_open import replacing
from mpips.jit import kernel_cache
from mpips.process import dependent
from mpips.rundir import order_files
from mpips.rundir.claim import release
from mpips.rundir.folder import RunFolder, write_json, write_text
from mpips.transport import wakeup

NOBODY = 65534

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run commands of another user")


@dataclass(frozen=True)
class Done:
    """The outcome of a command of another user."""

    code: int
    said: str


def as_nobody_begun(act: Callable[[], object], folder: Path) -> Callable[[], Done]:
    """Start to run a function as nobody, in a folder, in a separate process; return a function that waits for its end.

    It has the modules that this process has loaded, since nobody may not be able to read this Python.
    """
    said = tempfile.TemporaryFile()  # noqa: SIM115
    pid = os.fork()
    if not pid:
        code = 99
        try:
            os.chdir(folder)
            for each in (1, 2):
                os.dup2(said.fileno(), each)
            sys.stdout, sys.stderr = (
                io.TextIOWrapper(os.fdopen(each, "wb", 0), write_through=True) for each in (1, 2)
            )
            os.environ.pop("HOME", None)
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            done = act()
            code = done if isinstance(done, int) else 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def ended() -> Done:
        _, status = os.waitpid(pid, 0)
        said.seek(0)
        with said:
            return Done(os.waitstatus_to_exitcode(status), said.read().decode(errors="replace"))

    return ended


def as_nobody(act: Callable[[], object], folder: Path) -> Done:
    """Run a function as nobody, see `as_nobody_begun`."""
    return as_nobody_begun(act, folder)()


@pytest.fixture(scope="module", autouse=True)
def loaded() -> None:
    """Load all of mpips: nobody may not be able to read this Python."""
    import mpips

    had = "mpi4py.MPI" in sys.modules
    # The others are benchmarks, programs, and what starts MPI in this process.
    parts = (
        "process",
        "files",
        "rundir",
        "checkpoint",
        "config",
        "provenance",
        "report",
        "cli",
        "launch",
        "jit",
    )
    for each in pkgutil.walk_packages(mpips.__path__, "mpips."):
        if each.name.split(".")[1] in parts and not each.name.endswith(("__main__", ".ping")):
            importlib.import_module(each.name)
    assert ("mpi4py.MPI" in sys.modules) == had


@pytest.fixture
def shared() -> Iterator[Path]:
    """Return a folder like /tmp, which all users can write to."""
    folder = Path(tempfile.mkdtemp(prefix="mpips-shared-"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def run(shared: Path) -> Path:
    """Return a run of root, all of whose files can be read."""
    folder = RunFolder(shared / "run")
    folder.path.mkdir(mode=0o755)
    layout = "servers = 1\nworkers = 1\nspares = 0\nschedulers = 1\n"
    write_text(folder.job, f'[job]\nprogram = "sketch"\nname = "a"\nseed = 0\nbase = "/"\n[layout]\n{layout}')
    write_json(folder.run, {"started": "2026-01-01T00:00:00+00:00", "ranks": [], "folder": str(folder.path)})
    write_text(folder.metrics, '{"event": "trained"}\n')
    for each in (folder.logs, folder.path / "orders"):
        each.mkdir(mode=0o755)
    return folder.path


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and bytes of all files below a folder."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


def refused(act: Callable[[], object]) -> Callable[[], int]:
    """Let a function print the InputError that it raises, as commands do."""

    def acted() -> int:
        try:
            act()
        except InputError as error:
            print(f"mpips: error: {error}")
            return 2
        return 0

    return acted


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("report RUN", "RUN/report.html: cannot be written: Permission denied"),
        ("ctl RUN stop", "RUN/orders: the order cannot be written: Permission denied"),
        ("ctl RUN status", "RUN/orders: the order cannot be written: Permission denied"),
        ("crate RUN -o RUN/run.zip", "RUN/run.zip: cannot be written: Permission denied"),
    ],
)
def test_a_run_of_another_user_is_not_changed_by_commands(
    words: str, says: str, run: Path, shared: Path
) -> None:
    if words.startswith("crate"):
        write_json(run / "result.json", {"status": "completed", "exit_code": 0})
    before = contents(run)
    done = as_nobody(lambda: main(words.replace("RUN", str(run)).split()), shared)
    assert done.code == 2, done.said
    assert says.replace("RUN", str(run)) in done.said.strip().splitlines()[-1], done.said
    assert "Traceback" not in done.said and contents(run) == before


@pytest.mark.parametrize("name", ["run.json", "job.toml", "metrics.jsonl"])
@pytest.mark.parametrize("command", ["report RUN -o page.html", "diff RUN RUN", "crate RUN -o run.zip"])
def test_a_file_of_a_run_that_cannot_be_read_is_named(
    command: str, name: str, run: Path, shared: Path
) -> None:
    write_json(run / "result.json", {"status": "completed", "exit_code": 0})
    (run / name).chmod(0o600)
    done = as_nobody(lambda: main(command.replace("RUN", str(run)).split()), shared)
    assert "Traceback" not in done.said
    assert done.code == 2 and f"{name}: Permission denied" in done.said, done


def test_a_run_of_another_user_cannot_be_taken(run: Path, shared: Path) -> None:
    before = contents(run)
    done = as_nobody(refused(lambda: RunFolder.claim(run, resume=True)), shared)
    assert done == Done(2, f"mpips: error: {run}: the run folder cannot be written\n")
    done = as_nobody(refused(lambda: RunFolder.claim(run / "new")), shared)
    assert done.code == 2 and "run/new: the run folder cannot be made: Permission denied" in done.said
    assert contents(run) == before


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "logs", "logs/rank-0000.jsonl", "orders", "output/host-0000.out"]
)
def test_a_run_whose_files_another_user_has_begun_is_not_continued_in_its_folder(
    name: str, run: Path, shared: Path
) -> None:
    (run / "output").mkdir()
    for each in ("logs/rank-0000.jsonl", "output/host-0000.out"):
        write_text(run / each, "")
    for each in (run, *run.rglob("*")):
        os.chown(each, NOBODY, NOBODY)
    os.chown(run / name, 0, 0)
    before = contents(run)
    done = as_nobody(refused(lambda: RunFolder.claim(run, resume=True)), shared)
    assert done.code == 2 and done.said.startswith(f"mpips: error: {run / name}: is of an earlier start"), (
        done
    )
    assert contents(run) == before
    os.chown(run / name, NOBODY, NOBODY)
    assert as_nobody(refused(lambda: RunFolder.claim(run, resume=True)), shared).code == 0


def test_a_folder_that_all_can_write_to_has_one_run_at_a_time(shared: Path) -> None:
    held = RunFolder.claim(shared).held
    done = as_nobody(refused(lambda: RunFolder.claim(shared)), shared)
    assert done.code == 2 and f"another start has this run folder (process {os.getpid()} on" in done.said
    assert held is not None and held.path.exists()
    as_nobody(lambda: release(shared), shared)
    assert held.path.exists()
    release(shared)
    done = as_nobody(refused(lambda: RunFolder.claim(shared)), shared)
    assert done.code == 0, done.said


def test_a_file_of_another_user_is_not_replaced_and_nothing_is_left_beside_it(shared: Path) -> None:
    (shared / "page.html").write_text("root's")

    def write() -> None:
        with replacing(shared / "page.html", "w") as file:
            file.write("mine")

    done = as_nobody(lambda: write(), shared)
    assert done.code == 99 and f"{shared}/page.html" in done.said and "not permitted" in done.said
    assert [each.read_text() for each in shared.iterdir()] == ["root's"]


def test_the_folder_for_kernels_is_not_one_that_another_user_has_made(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(shared))
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (shared / f"mpips-kernels-{NOBODY}").mkdir(mode=0o777)
    (shared / f"mpips-kernels-{NOBODY}-1").symlink_to(shared)
    done = as_nobody(lambda: print(kernel_cache.place.__wrapped__("/nonexistent/sources").folder), shared)
    assert done.said.startswith(f"{shared}/mpips-kernels-{NOBODY}-2/sources-"), done.said


def test_files_in_shared_folders_of_temporary_files_are_closed_to_others(shared: Path) -> None:
    flags = Path(wakeup._create_flags_file(2))
    try:
        done = as_nobody(lambda: print(flags.read_bytes()), shared)
    finally:
        flags.unlink()
    assert done.code == 99 and "PermissionError" in done.said


def test_an_order_of_another_user_who_may_write_them_is_answered(run: Path, shared: Path) -> None:
    """As in a folder that a group shares: whoever can write orders gives them."""
    (run / "orders").chmod(0o777)
    leader = order_files.Orders(run, time.monotonic, period=0.0)
    asked = as_nobody_begun(lambda: main(["ctl", str(run), "checkpoint"]), shared)
    orders: list[order_files.Order] = []
    while not orders:
        orders = leader.poll()
    leader.answer(orders[0], True, "it will be written")
    assert asked() == Done(0, "it will be written\n") and list((run / "orders").iterdir()) == []


def test_checkpoints_that_cannot_be_listed_are_bad_input(shared: Path) -> None:
    """Also those of `--resume latest`, on every rank."""
    step = shared / "checkpoints" / "step-000001"
    step.mkdir(parents=True)
    for mode, named in ((0o700, step.parent), (0o744, step.parent)):
        step.parent.chmod(mode)
        done = as_nobody(refused(lambda: print(complete(step.parent))), shared)
        assert done == Done(2, f"mpips: error: cannot list {named}: Permission denied\n")


@pytest.mark.parametrize("ours", [False, True])
def test_a_session_of_another_users_launcher_is_not_removed(
    shared: Path, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(shared))
    (shared / "ompi.17").mkdir()
    os.chown(shared / "ompi.17", *((0, 0) if ours else (NOBODY, NOBODY)))
    dependent.clear_session(17)
    assert (shared / "ompi.17").exists() is not ours
